"""Mask frames: counts per row, and new entries that add up to the whole."""

from __future__ import annotations

import numpy as np

from engine.methods.observed import Selection
from engine.models.architecture import Parameter
from engine.probes import describe
from engine.probes.mask import counts, newly_selected

ROWS = tuple(Parameter(f"layer.{n}.weight", (3, 4), n, "q", "weight") for n in range(4))


def selection(tensor: list[int]) -> Selection:
    places = np.arange(len(tensor), dtype=np.int32)
    return Selection(ROWS, np.array(tensor, np.int32), places, places // 2)


def test_counts_have_one_entry_per_row_also_for_empty_ones():
    found = counts(selection([2, 0, 2, 2]))
    assert found.tolist() == [1, 0, 3, 0]
    assert found.dtype == np.int64
    assert counts(selection([])).tolist() == [0, 0, 0, 0]


def test_new_entries_add_up_to_the_selection():
    whole = selection([2, 0, 2, 2, 1])
    parts = [newly_selected(selection([2, 0]), 0), newly_selected(whole, 2), newly_selected(whole, 5)]
    assert [len(part["tensor"]) for part in parts] == [2, 3, 0]
    for key in ("tensor", "index", "step"):
        assert np.array_equal(np.concatenate([part[key] for part in parts]), getattr(whole, key))
        assert all(part[key].dtype == np.int32 for part in parts)


def test_rows_are_described_as_plain_data():
    row = Parameter("embeddings.weight", (5, 2), -1, "token", "weight", frozen_rows=((0, 1),))
    assert describe([row]) == [
        {"name": "embeddings.weight", "layer": -1, "role": "token", "part": "weight", "shape": [5, 2], "eligible": 8}
    ]
