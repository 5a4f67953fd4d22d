"""The one loop that pretrains: AdamW, warm-up and decay, progress, checkpoints, resuming.

Products are computed in bfloat16; weights, moments and what is measured at the end are fp32.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

CHECKPOINT_SECONDS = 120.0
SAY_SECONDS = 10.0


class Objective(Protocol):
    """A model with its texts and what it is to learn from them."""

    model: nn.Module
    device: str

    def batches(self, after: int) -> Iterator[np.ndarray]:
        """What each step reads, from step `after` on; without end."""

    def losses(self, chosen: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """The losses of one batch, 0-d, ``loss`` being what is minimised."""

    def tokens_of(self, chosen: np.ndarray) -> int:
        """Tokens of one batch, padding left out."""

    def held_out(self) -> dict[str, float]:
        """The same losses on texts that are not trained on."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimizer steps.
        lr: peak learning rate, reached after `warmup` steps; then a half cosine down to a hundredth.
        warmup: steps.
        weight_decay: of matrices; vectors and embeddings have none.
    """

    steps: int
    lr: float
    warmup: int
    weight_decay: float

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def pretrain(objective: Objective, schedule: Schedule, path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train to the end, from the checkpoint at `path` if there is one.

    Returns:
        ``held_out`` losses at the end, ``seconds`` of training, ``tokens`` read, padding left out, and
        ``history``, mean losses by step.
    """
    optimizer = _optimizer(objective.model, schedule)
    done, seconds, tokens, history = _resume(path, objective.model, optimizer)
    began = saved = said = time.monotonic()
    recent: list[dict[str, torch.Tensor]] = []
    first = done
    objective.model.train()
    for step, chosen in zip(range(done, schedule.steps), objective.batches(done), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast(torch.device(objective.device).type, torch.bfloat16):
            losses = objective.losses(chosen, step)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(objective.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append({name: loss.detach() for name, loss in losses.items()})
        tokens += objective.tokens_of(chosen)
        now, last = time.monotonic(), step + 1 == schedule.steps
        if now - said > SAY_SECONDS or last:
            means = {name: float(torch.stack([part[name] for part in recent]).mean()) for name in recent[0]}
            history.append({"step": step + 1, **{name: round(value, 4) for name, value in means.items()}})
            left = (schedule.steps - step - 1) * (now - began) / (step + 1 - first)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            say(f"step {step + 1:,}/{schedule.steps:,}, {shown}, {left / 60:.0f} min left")
            recent, said = [], now
        if now - saved > CHECKPOINT_SECONDS or last:
            _save(path, objective.model, optimizer, step + 1, seconds + now - began, tokens, history)
            saved = now
    spent = seconds + time.monotonic() - began
    return {"held_out": objective.held_out(), "seconds": spent, "tokens": tokens, "history": history}


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    kept = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98), fused=True)


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    tokens: int,
    history: list[Any],
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
        "tokens": tokens,
        "history": json.dumps(history),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, int, list[Any]]:
    """Steps done, seconds spent, tokens read and history; the model and its optimizer as they were."""
    if not path.exists():
        return 0, 0.0, 0, []
    # The optimizer's state is nested, so no safetensors; weights_only: reading it can run no code.
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"], state["tokens"], json.loads(state["history"])
