"""The mask of a run, as its record holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.stats.overlap import Mask


def mask_of(label: str, metas: Mapping[str, Any], selection: Mapping[str, np.ndarray]) -> Mask | None:
    """The recorded entries of a run by tensor name, or None for a run without a mask.

    Args:
        label: names the run.
        metas: of its record.
        selection: of its record: ``tensor`` and ``index``, one element per entry.
    """
    layout = metas.get("layout")
    if not layout or not len(selection["index"]):
        return None
    order = np.argsort(selection["tensor"], kind="stable")
    tensors, index = selection["tensor"][order], selection["index"][order]
    numbers, starts = np.unique(tensors, return_index=True)
    parts = np.split(index, starts[1:])
    return Mask(
        label,
        str(metas.get("provenance", {}).get("weights", {}).get("sha256", "")),
        {row["name"]: int(row["eligible"]) for row in layout},
        {layout[number]["name"]: part for number, part in zip(numbers.tolist(), parts, strict=True)},
    )
