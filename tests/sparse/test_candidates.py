"""Streaming selection against sorting everything."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from engine.sparse.candidates import BLOCK, TopCandidates, Winners, block_norms
from engine.sparse.gradient import StreamedGradient
from engine.sparse.scores import d3, d3_bound

SIZES = (5, 3 * BLOCK, 40 * BLOCK + 17, BLOCK, 1, 12 * BLOCK + 1)


def network(kind: str, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients and weights; most kinds make many equal scores."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(size, generator=generator) for size in SIZES]
    weights = [0.05 * torch.randn(size, generator=generator) for size in SIZES]
    if kind == "ties":
        gradients = [gradient.round() for gradient in gradients]
        weights = [torch.zeros_like(weight) for weight in weights]
    if kind == "rows":  # as in an embedding: nearly all rows without a gradient
        for gradient in gradients:
            gradient[torch.rand(len(gradient), generator=generator) < 0.97] = 0.0
    if kind == "peaks":
        gradients = [gradient**7 for gradient in gradients]
    return gradients, weights


def stream(
    gradients: list[torch.Tensor], weights: list[torch.Tensor], k: int, knobs: dict[str, float]
) -> Winners | None:
    bound = partial(d3_bound, **knobs) if knobs["exp"] >= 0 else None
    top = TopCandidates(k, partial(d3, **knobs), bound)
    for number in reversed(range(len(gradients))):  # as the backward pass does
        top.feed(number, StreamedGradient.of(gradients[number]), weights[number], block_norms(gradients[number]))
    return top.winners()


def brute_force(
    gradients: list[torch.Tensor], weights: list[torch.Tensor], k: int, knobs: dict[str, float]
) -> list[tuple[int, int]]:
    """Positive scores, best first, ties by place."""
    entries = []
    for number, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
        scores = d3(gradient, weight, **knobs).tolist()
        entries += [(-score, number, index) for index, score in enumerate(scores) if score > 0]
    return [(number, index) for _, number, index in sorted(entries)[:k]]


@pytest.mark.parametrize("kind", ["plain", "ties", "rows", "peaks"])
@pytest.mark.parametrize("k", [1, 8, 300, 6000])
@pytest.mark.parametrize("exp", [0.0, 1.0, 2.0, -1.0])
def test_streaming_selects_what_sorting_everything_selects(kind: str, k: int, exp: float) -> None:
    gradients, weights = network(kind, seed=k)
    knobs = {"power": 1.0, "exp": exp, "eps": 1e-3}
    expected = brute_force(gradients, weights, k, knobs)
    found = stream(gradients, weights, k, knobs)
    assert found is not None
    assert list(zip(found.tensor.tolist(), found.index.tolist(), strict=True)) == expected
    picked = [float(gradients[number][index]) for number, index in expected]
    assert found.gradient.tolist() == picked


def test_a_score_of_zero_never_wins() -> None:
    gradients = [torch.zeros(300), torch.tensor([0.0, 2.0, 0.0])]
    weights = [torch.zeros(300), torch.zeros(3)]
    found = stream(gradients, weights, 5, {"power": 1.0, "exp": 1.0, "eps": 1e-3})
    assert found is not None
    assert (found.tensor.tolist(), found.index.tolist()) == ([1], [1])


def test_the_last_entry_of_a_short_last_block_can_win() -> None:
    first, second = torch.full((2 * BLOCK,), 1e-3), torch.zeros(9 * BLOCK + 4)
    first[0] = 5.0
    second[-1] = 9.0
    weights = [torch.zeros(len(second)), torch.zeros(len(first))]
    found = stream([second, first], weights, 1, {"power": 1.0, "exp": 1.0, "eps": 1e-3})
    assert found is not None
    assert (found.tensor.tolist(), found.index.tolist()) == ([0], [9 * BLOCK + 3])


def test_gradients_too_small_to_square_are_still_ranked() -> None:
    gradient = torch.zeros(4 * BLOCK)
    gradient[3 * BLOCK + 5] = 1e-30
    gradient[7] = 2e-30
    found = stream([gradient], [torch.zeros_like(gradient)], 2, {"power": 1.0, "exp": 1.0, "eps": 1e-3})
    assert found is not None
    assert found.index.tolist() == [7, 3 * BLOCK + 5]


def test_blocks_cover_the_whole_gradient() -> None:
    gradient = torch.randn(5 * BLOCK + 3, generator=torch.Generator().manual_seed(0))
    norms = block_norms(gradient)
    assert len(norms) == 6
    torch.testing.assert_close(norms.square().sum(), gradient.square().sum())
    assert len(block_norms(gradient[:7])) == 1
