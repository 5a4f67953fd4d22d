"""Blocks against entries one by one, and kernels against plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.sparse.blocks import BLOCK, CLOSED, Blocks, PlainD3
from engine.sparse.flat import FlatSparseAdamW
from engine.sparse.scores import d3
from engine.sparse.selection import EXCLUDED

EPS = 1e-3
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WAYS = [
    pytest.param("cpu", Blocks(lambda gradient, weight: d3(gradient, weight, 1, 1, EPS)), id="any score"),
    pytest.param("cpu", PlainD3(EPS), id="plain score"),
    pytest.param("cuda", PlainD3(EPS), id="plain score on a GPU", marks=GPU),
]


def columns() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of which some are closed, weights, and the score of each entry."""
    generator = torch.Generator().manual_seed(2)
    gradient, weight = torch.randn(2, 37 * BLOCK, generator=generator)
    gradient[torch.rand(len(gradient), generator=generator) < 0.3] = CLOSED
    gradient[5 * BLOCK : 6 * BLOCK] = CLOSED
    return gradient, weight, torch.where(gradient == CLOSED, EXCLUDED, d3(gradient, weight, 1, 1, EPS))


@pytest.mark.parametrize(("device", "blocks"), WAYS)
def test_tops_of_blocks_are_the_highest_scores_in_them(device: str, blocks: Blocks) -> None:
    gradient, weight, scores = columns()
    tops, squares = blocks.tops(gradient.to(device), weight.to(device))
    assert torch.equal(tops.cpu(), scores.view(-1, BLOCK).amax(1))
    assert tops[5] == EXCLUDED
    expected = torch.where(gradient == CLOSED, 0.0, gradient).double().square().view(-1, BLOCK).sum(1)
    torch.testing.assert_close(squares.cpu().double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("device", "blocks"), WAYS)
def test_entries_are_those_of_the_blocks(device: str, blocks: Blocks) -> None:
    gradient, weight, scores = columns()
    chosen = torch.tensor([0, 5, 36], device=device)
    found = blocks.entries(gradient.to(device), weight.to(device), chosen, 40 * BLOCK)
    places = torch.cat([torch.arange(number * BLOCK, (number + 1) * BLOCK) for number in (0, 5, 36)])
    assert torch.equal(found.score.cpu(), scores[places])
    assert torch.equal(found.gradient.cpu(), torch.where(gradient == CLOSED, 0.0, gradient)[places])
    assert torch.equal(found.address.cpu(), places + 40 * BLOCK)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("mark", [None, CLOSED])
@pytest.mark.parametrize("last", [BLOCK, BLOCK + 3])
def test_selected_entries_give_their_gradients_once_and_are_marked(device: str, mark: float | None, last: int) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = (2 * BLOCK, 5, last, 9 * BLOCK)
    tensors = [nn.Parameter(torch.randn(size, generator=generator).to(device)) for size in sizes]
    sparse = FlatSparseAdamW(tensors, 8)
    chosen = [(0, 1), (3, 9 * BLOCK - 1), (2, last - 1), (1, 0), (3, 0)]
    sparse.add(*(torch.tensor(column, device=device) for column in zip(*chosen, strict=True)), step=0)
    gradients = [torch.randn(size, generator=generator) for size in sizes]
    left = []
    for number, gradient in enumerate(gradients):
        for part, column in sparse.flat.take(number, gradient.to(device)):
            sparse.gather_part(part, column, mark)
            left.append(column[: part.filled].cpu())
    held = sparse._values["gradient"].tolist()
    assert held == [float(gradients[number][index]) for number, index in chosen] + [0.0] * 3
    if mark is not None:
        for number, index in chosen:
            gradients[number][index] = mark
    assert torch.equal(torch.cat(left), torch.cat(gradients))
