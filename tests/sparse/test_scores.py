"""Scores against the formulas written out."""

from __future__ import annotations

import pytest
import torch

from engine.sparse.scores import add_squares, d3, d3_bound, magnitude


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
