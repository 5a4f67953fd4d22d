"""Scores against the formulas written out."""

from __future__ import annotations

import pytest
import torch

from engine.sparse.scores import BLOCK, CLOSED, add_squares, d3, d3_bound, d3_tops, magnitude
from engine.sparse.selection import EXCLUDED


@pytest.mark.parametrize(("power", "exp", "eps"), [(1, 1, 1e-3), (2, 3, 0.1), (1, 0, 1e-8), (1, -1, 1e-3), (0.5, 2, 1)])
def test_d3_is_the_formula(power: float, exp: float, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, weight = torch.randn(2, 500, generator=generator)
    expected = gradient.double().abs() ** power / (weight.double().abs() + eps) ** exp
    torch.testing.assert_close(d3(gradient, weight, power, exp, eps).double(), expected, rtol=1e-5, atol=0)


def test_d3_leaves_its_arguments_alone() -> None:
    gradient, weight = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -4.0])
    d3(gradient, weight, 2, 2, 0.1)
    assert gradient.tolist() == [-1.0, 2.0]
    assert weight.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize(("power", "exp", "eps"), [(1, 1, 1e-3), (2, 3, 0.1), (1, 0, 1e-8), (0.5, 0.5, 1e-3)])
def test_no_score_exceeds_the_bound_of_its_block(scale: float, power: float, exp: float, eps: float) -> None:
    gradient = scale * torch.randn(128, generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(128)
    norm = torch.linalg.vector_norm(gradient)
    assert (d3(gradient, weight, power, exp, eps) <= d3_bound(norm, power, exp, eps)).all()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_tops_of_blocks_are_the_highest_scores_in_them(device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    gradient, weight = torch.randn(2, 37 * BLOCK, generator=generator)
    gradient[torch.rand(len(gradient), generator=generator) < 0.3] = CLOSED
    gradient[5 * BLOCK : 6 * BLOCK] = CLOSED
    tops, squares = d3_tops(gradient.to(device), weight.to(device), 1e-3)
    free = gradient != CLOSED
    scores = torch.where(free, d3(gradient, weight, 1, 1, 1e-3), EXCLUDED)
    assert torch.equal(tops.cpu(), scores.view(-1, BLOCK).amax(1))
    assert tops[5] == EXCLUDED
    expected = torch.where(free, gradient, 0.0).double().square().view(-1, BLOCK).sum(1)
    torch.testing.assert_close(squares.cpu().double(), expected, rtol=1e-6, atol=0)


def test_squares_add_up_example_by_example() -> None:
    fisher = [torch.zeros(3), torch.zeros(2)]
    add_squares(fisher, [torch.tensor([1.0, 2.0, 3.0]), None])
    add_squares(fisher, [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[4.0], [0.5]])], share=0.5)
    assert fisher[0].tolist() == [1.5, 6.0, 9.0]
    assert fisher[1].tolist() == [8.0, 0.125]


def test_squares_of_a_gradient_by_rows() -> None:
    rows = torch.sparse_coo_tensor(
        torch.tensor([[2, 0, 2]]), torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 0.0]]), (4, 2)
    )
    by_rows, dense = [torch.zeros(8)], [torch.zeros(8)]
    for _ in range(2):
        add_squares(by_rows, [rows], share=0.5)
        add_squares(dense, [rows.to_dense()], share=0.5)
    assert torch.equal(by_rows[0], dense[0])


def test_magnitudes_are_scored_in_fp32() -> None:
    scores = magnitude(torch.tensor([[-1.5, 0.25]], dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.5, 0.25]
