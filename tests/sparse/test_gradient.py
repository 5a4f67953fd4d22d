"""A gradient by rows must answer exactly as the dense one."""

from __future__ import annotations

import pytest
import torch

from engine.sparse.gradient import StreamedGradient

SHAPE = (9, 4)


def both(rows: list[int]) -> tuple[StreamedGradient, StreamedGradient]:
    """The same gradient sparse (with repeated rows to add up) and dense."""
    values = torch.randn(len(rows), SHAPE[1], generator=torch.Generator().manual_seed(0))
    gradient = torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64).view(1, -1), values, SHAPE, check_invariants=True
    )
    return StreamedGradient.of(gradient), StreamedGradient.of(gradient.to_dense())


@pytest.mark.parametrize("rows", [[], [0], [8, 2, 2, 5], [3, 3, 3]])
def test_reading_and_clearing(rows: list[int]) -> None:
    sparse, dense = both(rows)
    everywhere = torch.arange(SHAPE[0] * SHAPE[1])
    assert torch.equal(sparse.at(everywhere), dense.at(everywhere))
    for gradient in (sparse, dense):
        gradient.clear(torch.tensor([0, 9, 33]))
        gradient.clear_rows(2, 4, SHAPE[1])
    assert torch.equal(sparse.at(everywhere), dense.at(everywhere))
    assert not sparse.at(torch.tensor([9, 8, 33])).any()


def test_places_weights_and_positions_fit_together() -> None:
    sparse, dense = both([8, 2, 2, 5])
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    place = torch.arange(len(sparse.values))
    position = sparse.positions(place)
    assert position.tolist() == sorted(position.tolist())
    assert torch.equal(dense.values[position], sparse.values)
    assert torch.equal(weight.flatten()[position], sparse.weights(weight))
    assert torch.equal(dense.weights(weight), weight.flatten())
