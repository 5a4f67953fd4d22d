"""Rank frames, and whether ranks ever move."""

from __future__ import annotations

import numpy as np

from engine.methods.observed import Ranks
from engine.models.architecture import Parameter
from engine.probes.rank import ever_moved, frame


def test_a_frame_holds_what_the_view_needs():
    row = Parameter("q.weight", (4, 4), 0, "q", "weight")
    made = frame(Ranks((row, row), np.array([3, 1]), np.array([3, 0]), 4, 2))
    assert {key: (value.dtype.name, value.tolist()) for key, value in made.items()} == {
        "allocated": ("int32", [3, 1]),
        "active": ("int32", [3, 0]),
        "budget": ("int64", [4]),
        "final_budget": ("int64", [2]),
    }


def test_ranks_move_when_any_matrix_changes():
    still, moved = np.array([6, 6]), np.array([6, 5])
    assert not ever_moved([])
    assert not ever_moved([still, still.copy()])
    assert ever_moved([still, still, moved])
