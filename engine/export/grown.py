"""Masks that grew while a run trained: when each entry was selected, and what it was before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import SpecError
from engine.export.finished import Finished

if TYPE_CHECKING:
    import torch

    from engine.training.build import Built, Caches


def selected_at(trained: Mapping[str, torch.Tensor], finished: Finished) -> np.ndarray:
    """The step of every selected entry, ascending.

    Raises:
        SpecError: for a result that selected nothing, or everything at once, or not for good.
    """
    if not finished.methods[0].grows:
        raise SpecError(
            f"{finished.methods[0].title} gives selected weights up again, so that its mask holds no smaller ones.",
            "Choose a finished run of ID3.",
        )
    columns = [tensor.numpy() for key, tensor in trained.items() if key.endswith(".step")]
    steps = np.sort(np.concatenate(columns)) if columns else np.zeros(0, np.int64)
    if len(np.unique(steps)) < 2:
        raise SpecError(
            f"{finished.methods[0].title} chose nothing step by step in this run, so its mask has one size only.",
            "Choose a finished run of ID3.",
        )
    return steps


def before(built: Built, trained: Mapping[str, torch.Tensor], caches: Caches) -> dict[str, torch.Tensor]:
    """The selected entries as they were before training: of the base, or of what the method below it made."""
    from engine.training.build import build

    untouched = dict(build(built.spec, caches).model.named_parameters())
    start = dict(trained)
    for name in (key.removesuffix(".index") for key in trained if key.endswith(".index")):
        start[f"{name}.value"] = untouched[name].detach().view(-1)[trained[f"{name}.index"].long()]
    return start
