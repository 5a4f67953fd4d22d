"""Which entries a selective method trains: counts per tensor, and the entries that are new."""

from __future__ import annotations

import numpy as np

from engine.methods.observed import Selection


def counts(selection: Selection) -> np.ndarray:
    """Selected entries per row of `selection.parameters`: int64 (R,)."""
    return np.bincount(selection.tensor, minlength=len(selection.parameters)).astype(np.int64)


def newly_selected(selection: Selection, known: int) -> dict[str, np.ndarray]:
    """The entries selected after the first `known`, in the order of their selection.

    Kept frame by frame they add up to the whole selection, so that the exact mask of every
    moment can be drawn again.

    Args:
        selection: the present selection; it only ever grows.
        known: how many of its entries earlier frames hold.

    Returns:
        ``tensor``, ``index`` and ``step``, each int32 (new entries,).
    """
    return {
        "tensor": selection.tensor[known:].astype(np.int32),
        "index": selection.index[known:].astype(np.int32),
        "step": selection.step[known:].astype(np.int32),
    }
