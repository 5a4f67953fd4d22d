"""One run, many budgets: the accuracy of a growing mask's earlier sizes, measured again. Imports torch when called.

A method that adds entries step by step leaves masks inside masks. Cut to what was selected up to some
step, with the values the run ended with, each is a smaller result of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import SpecError
from engine.export.finished import Finished, opened
from engine.export.grown import before, selected_at
from engine.stats.intervals import wilson

if TYPE_CHECKING:
    import torch

    from engine.training.build import Built

SIZES = 10
Progress = Callable[[int, int], None]


def budgets(home: Path, run_id: str, *, folder: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Accuracy on the test set at growing sizes of one run's mask.

    Args:
        home: the store.
        run_id: a finished run whose mask grew while it trained.
        folder: where each size is written as a delta; nowhere by default.
        progress: takes (sizes done, all sizes).

    Returns:
        ``run``, ``method``, ``head`` (scalars of the task head, which is the trained one throughout) and
        ``rows``, by size: ``step`` until which entries were selected, ``params`` (how many), ``correct``,
        ``total``, ``accuracy``, ``ci95`` by Wilson, and ``file`` where one was written.

    Raises:
        SpecError: for a run that selected nothing, or everything at once.
        EngineError: for a run without a result.
    """
    from engine.export.rebuild import own_tensors, rebuild
    from engine.training.build import Caches, encoded_splits
    from engine.training.result_file import read_result

    with opened(home, run_id) as finished:
        finished.check_finished()
        if folder is not None and finished.spec.method.on:
            raise SpecError(
                "This mask lies on what another method added, so that no delta fits the base model.",
                "Measure it without --write.",
            )
        result = read_result(finished.folder.result)
        trained = own_tensors(result, 0)
        limits = _limits(selected_at(trained, finished))
        caches = Caches()
        built = rebuild(finished, caches)
        test = encoded_splits(built.spec, built.setting, caches)["test"]
        start = before(built, trained, caches)
        rows = []
        for done, limit in enumerate(limits):
            own = until(trained, limit)
            built.method.install(start)
            built.method.install(own)
            rows.append({"step": limit, "params": _count(own), **_measured(built, test)})
            if folder is not None:
                rows[-1]["file"] = str(_write(finished, replace(result, tensors=_renamed(own)), limit, folder))
            if progress:
                progress(done + 1, len(limits))
    head = sum(tensor.numel() for tensor in result.head.values())
    return {"run": run_id, "method": finished.spec.method.name, "head": head, "rows": rows}


def until(trained: Mapping[str, torch.Tensor], limit: int) -> dict[str, torch.Tensor]:
    """The triples of a selective result, cut to the entries selected before step `limit`."""
    kept: dict[str, torch.Tensor] = {}
    for name in (key.removesuffix(".step") for key in trained if key.endswith(".step")):
        early = trained[f"{name}.step"] < limit
        if bool(early.any()):
            kept.update({f"{name}.{part}": trained[f"{name}.{part}"][early] for part in ("index", "value", "step")})
    return kept


def _limits(steps: np.ndarray) -> list[int]:
    """Steps at which the mask had about a tenth, two tenths ... of its entries; the last has all."""
    places = np.ceil(len(steps) * np.arange(1, SIZES + 1) / SIZES).astype(int) - 1
    return sorted({int(steps[place]) + 1 for place in places})


def _count(triples: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for key, tensor in triples.items() if key.endswith(".index"))


def _measured(built: Built, test: Any) -> dict[str, Any]:
    from engine.training.evaluation import predict

    right = int((predict(built.model, test, "cpu").argmax(1) == test.labels).sum())
    found = wilson(right, len(test.labels))
    return {
        "correct": right,
        "total": len(test.labels),
        "accuracy": found.estimate,
        "ci95": [found.low, found.high],
    }


def _renamed(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"0/{name}": tensor for name, tensor in own.items()}


def _write(finished: Finished, result: Any, limit: int, folder: Path) -> Path:
    from engine.export.weights import delta_to

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{finished.row.id}-step-{limit}.safetensors"
    delta_to(finished, result, target)
    return target
