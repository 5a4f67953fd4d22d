"""How a method that allocates ranks spreads them over its matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.methods.observed import Ranks


def frame(ranks: Ranks) -> dict[str, np.ndarray]:
    """One frame: ``allocated`` and ``active`` int32 (M,), ``budget`` and ``final_budget`` int64 (1,)."""
    return {
        "allocated": ranks.allocated.astype(np.int32),
        "active": ranks.active.astype(np.int32),
        "budget": np.array([ranks.budget], dtype=np.int64),
        "final_budget": np.array([ranks.final_budget], dtype=np.int64),
    }


def ever_moved(allocated: Sequence[np.ndarray]) -> bool:
    """Whether any matrix was ever given another rank than at the first frame.

    Args:
        allocated: the ``allocated`` arrays of a run's frames, in order.
    """
    if not allocated:
        return False
    table = np.stack(allocated)
    return bool((table != table[0]).any())
