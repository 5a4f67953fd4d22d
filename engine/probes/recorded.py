"""The mask of a run, as its record holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.methods.registry import methods
from engine.stats.overlap import Mask


def mask_of(
    label: str, method: str, metas: Mapping[str, Any], selection: Mapping[str, np.ndarray], count: float
) -> Mask | None:
    """The recorded entries of a run by tensor name; None without a mask, or when not all of it was recorded.

    Args:
        label: names the run.
        method: its method's name.
        metas: of its record.
        selection: of its record: ``tensor`` and ``index``, one element per entry.
        count: how many entries it selected, the last of its ``mask/selected``.
    """
    layout = metas.get("layout")
    if not layout or not len(selection["index"]) or len(selection["index"]) != count:
        return None
    order = np.argsort(selection["tensor"], kind="stable")
    tensors, index = selection["tensor"][order], selection["index"][order]
    numbers, starts = np.unique(tensors, return_index=True)
    parts = np.split(index, starts[1:])
    return Mask(
        label,
        str(metas.get("provenance", {}).get("weights", {}).get("sha256", "")),
        {row["name"]: int(row["eligible"]) for row in layout},
        {row["name"]: tuple(row["shape"]) for row in layout},
        {layout[number]["name"]: part for number, part in zip(numbers.tolist(), parts, strict=True)},
        getattr(methods().get(method), "scattered", True),
    )
