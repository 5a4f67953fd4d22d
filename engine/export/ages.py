"""When a weight was unmasked against how far it moved since. Imports torch when called."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engine.export.finished import opened
from engine.export.grown import before, selected_at

GROUPS = 20
"""Entries are put together by the step of their selection, into about so many groups of the same size."""


def ages(home: Path, run_id: str) -> dict[str, Any]:
    """How far the entries of one run's mask have moved, by the step they were selected at.

    Args:
        home: the store.
        run_id: a finished run whose mask grew while it trained.

    Returns:
        ``run``, ``method`` and ``rows``, in order of selection: ``first`` and ``last`` (steps of the
        group, from 0), ``count``, ``quartiles`` (three, of the absolute change of its entries from
        before training, in units of the weights) and ``unmoved`` (entries that ended where they began).

    Raises:
        SpecError: for a run that selected nothing, or everything at once.
        EngineError: for a run without a result.
    """
    from engine.export.rebuild import own_tensors, rebuild
    from engine.training.build import Caches
    from engine.training.result_file import read_result

    with opened(home, run_id) as finished:
        finished.check_finished()
        trained = own_tensors(read_result(finished.folder.result), 0)
        edges = _edges(selected_at(trained, finished))
        caches = Caches()
        start = before(rebuild(finished, caches), trained, caches)
        title = finished.spec.method.name
    names = [key.removesuffix(".step") for key in trained if key.endswith(".step")]
    steps = np.concatenate([trained[f"{name}.step"].numpy() for name in names])
    moved = np.concatenate([(trained[f"{n}.value"].double() - start[f"{n}.value"].double()).abs() for n in names])
    rows = []
    for first, end in pairwise(edges):
        own = moved[(steps >= first) & (steps < end)]
        rows.append(
            {
                "first": int(first),
                "last": int(end) - 1,
                "count": len(own),
                "quartiles": [float(value) for value in np.quantile(own, (0.25, 0.5, 0.75))],
                "unmoved": int((own == 0).sum()),
            }
        )
    return {"run": run_id, "method": title, "rows": rows}


def _edges(steps: np.ndarray) -> list[int]:
    """First steps of the groups and the end of the last; no step is in two groups, and none is empty."""
    places = np.arange(GROUPS) * len(steps) // GROUPS
    return [*sorted({int(steps[place]) for place in places}), int(steps[-1]) + 1]
