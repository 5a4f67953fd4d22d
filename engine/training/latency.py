"""How long the finished model takes to answer, beside the base: as it is, and merged where that changes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.tasks.encoding import Encoded
from engine.training.build import Built
from engine.training.evaluation import to_device

log = logging.getLogger(__name__)
SECONDS = 0.5
"""What all rounds together may take, after the first three."""
ROUNDS = 30


def measure(built: Built, encoded: Encoded, company: int = 1) -> dict[str, Any] | None:
    """Medians over interleaved rounds, so that a slow moment of the machine slows all of them.

    None where memory has no room for the copies that this needs: a finished run must not fail for it.

    Args:
        built: the finished run.
        encoded: a split; its example of median length is asked.
        company: runs that are measured one after another while the others wait; they share the time.

    Returns:
        ``tokens`` of the one example, ``rounds``, and milliseconds per answer: ``base``, ``trained``,
        and ``merged`` where merging makes another model of it.
    """
    try:
        return _measure(built, encoded, SECONDS / company)
    except (MemoryError, RuntimeError) as error:  # torch says either, and its own kind of the latter
        log.warning("answer times could not be measured: %s", error)
        return None


def _measure(built: Built, encoded: Encoded, seconds: float) -> dict[str, Any]:
    device = built.spec.train.device
    place = int(np.argsort(encoded.lengths, kind="stable")[len(encoded) // 2])
    batch = to_device(encoded.batch(np.array([place])), device)
    batch.pop("labels")
    asked: dict[str, nn.Module] = {"base": built.placed, "trained": built.model}
    merged = built.method.merged(built.model)
    if merged is not built.model:
        asked["merged"] = merged
    training = {name: model.training for name, model in asked.items()}
    for model in asked.values():
        model.eval()
    times = _interleaved({name: _question(model, batch, device) for name, model in asked.items()}, seconds)
    for name, model in asked.items():
        model.train(training[name])
    milliseconds = {name: 1000 * median(found) for name, found in times.items()}
    return {"tokens": int(encoded.lengths[place]), "rounds": len(times["base"]), **milliseconds}


def _question(model: nn.Module, batch: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    def ask() -> None:
        with torch.inference_mode():
            model(**batch)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return ask


def _interleaved(questions: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Seconds per question and round; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in questions}
    end = 0.0
    for number in range(ROUNDS + 1):
        if number > 3 and time.perf_counter() > end:
            break
        for name, ask in questions.items():
            started = time.perf_counter()
            ask()
            if number:
                times[name].append(time.perf_counter() - started)
        if number == 0:
            end = time.perf_counter() + seconds
    return times
