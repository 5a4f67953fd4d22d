"""Blocks of consecutive entries: what a GPU ranks at once instead of single weights."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from engine.sparse.candidates import Score
from engine.sparse.kernels import entries_kernel, launch, tops_kernel
from engine.sparse.scores import d3
from engine.sparse.selection import EXCLUDED

BLOCK = 128
"""Entries of a block."""
CLOSED = torch.finfo(torch.float32).min
"""Stands for the gradient of an entry that may not be chosen."""


class Candidates(NamedTuple):
    """Entries that may be chosen: score, gradient fp32 (n,) and address int64 (n,), ascending."""

    score: torch.Tensor
    gradient: torch.Tensor
    address: torch.Tensor

    def best(self, most: int) -> Candidates:
        """The `most` highest, ties to the first."""
        places = highest(self.score, most).sort().values
        return Candidates(*(column.index_select(0, places) for column in self))


def highest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the highest values, the highest first and ties to the first; int64 (count,), or fewer if there are.

    A stable sort takes a GPU less time than `topk` of keys that differ.
    """
    return values.sort(stable=True, descending=True).indices[:count]


class Blocks:
    """Ranks blocks and gives their entries, for any score.

    Args:
        score: (gradient, weight), both fp32 (n,), to new non-negative scores (n,).
    """

    def __init__(self, score: Score) -> None:
        self._score = score

    def tops(self, gradient: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each block the highest score, and the sum of squares of the gradients.

        Args:
            gradient: fp32 (n,), n a multiple of `BLOCK`; entries that are `CLOSED` do not count.
            weight: fp32 (n,).

        Returns:
            Two columns, fp32 (n / `BLOCK`,). Without an entry that counts, a block's top is `EXCLUDED`.
        """
        closed = gradient == CLOSED
        tops = self._score(gradient, weight).masked_fill_(closed, EXCLUDED).view(-1, BLOCK).amax(1)
        return tops, gradient.masked_fill(closed, 0.0).square_().view(-1, BLOCK).sum(1)

    def entries(self, gradient: torch.Tensor, weight: torch.Tensor, blocks: torch.Tensor, begin: int) -> Candidates:
        """The entries of some blocks.

        Args:
            gradient, weight: as in `tops`.
            blocks: their numbers, int64 (m,), ascending.
            begin: address of the first entry.
        """
        places = (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten()
        own = gradient.index_select(0, places)
        closed, scores = own == CLOSED, self._score(own, weight.index_select(0, places))
        return Candidates(scores.masked_fill_(closed, EXCLUDED), own.masked_fill_(closed, 0.0), places.add_(begin))


class PlainD3(Blocks):
    """The score of ID3 with both powers 1, where there are kernels for it: no score of every entry is written."""

    def __init__(self, eps: float) -> None:
        super().__init__(partial(d3, power=1, exp=1, eps=eps))
        self._eps = eps

    def tops(self, gradient: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = tops_kernel(gradient.device, self._eps)
        if kernel is None:
            return super().tops(gradient, weight)
        count = len(gradient) // BLOCK
        tops, squares = (torch.empty(count, device=gradient.device) for _ in range(2))
        launch(kernel, 32 * count, gradient, weight, tops, squares, count)
        return tops, squares

    def entries(self, gradient: torch.Tensor, weight: torch.Tensor, blocks: torch.Tensor, begin: int) -> Candidates:
        kernel = entries_kernel(gradient.device, self._eps)
        if kernel is None:
            return super().entries(gradient, weight, blocks, begin)
        count = len(blocks)
        kinds = (torch.float32, torch.float32, torch.int64)
        scores, own, address = (torch.empty(count * BLOCK, dtype=kind, device=blocks.device) for kind in kinds)
        launch(kernel, 32 * count, gradient, weight, blocks, begin // BLOCK, scores, own, address, count)
        return Candidates(scores, own, address)
