"""Exact top-k of a score while gradients come in, part by part, and the unmasking of the winners.

The k highest entries of a part lie in its k blocks with the highest entries, so that ranking the blocks
and then what is in the best of them is enough. Nothing asks the device, and all shapes stay. Candidates
are kept in the order of their addresses: a stable sort then gives ties to the first, and takes a GPU less
time than `topk` of keys that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from engine.sparse.candidates import Score
from engine.sparse.flat import FlatSparseAdamW, Part
from engine.sparse.scores import BLOCK, CLOSED
from engine.sparse.selection import EXCLUDED

WAITING = 32
"""Candidates that are less than this fraction of their part wait as they are: at most an 8th of the weights' room."""

Tops = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Candidates(NamedTuple):
    """Entries that may be chosen: score, gradient fp32 (n,) and address int64 (n,), ascending."""

    score: torch.Tensor
    gradient: torch.Tensor
    address: torch.Tensor

    def best(self, most: int) -> Candidates:
        """The `most` highest, ties to the first."""
        places = _places_of_highest(self.score, most).sort().values
        return Candidates(*(column.index_select(0, places) for column in self))


class Unmasking:
    """Unmasks the highest scores of each step.

    Args:
        sparse: gets the winners.
        score: (gradient, weight), both fp32 (n,), to non-negative scores (n,).
        quotas: how many entries each step takes, int64 (steps,); after the last step none.
        never: entries that may not be chosen, as (tensor, start, stop).
        tops: where the score has one, its `engine.sparse.scores.d3_tops`, which needs no score of every entry.
    """

    def __init__(
        self,
        sparse: FlatSparseAdamW,
        score: Score,
        quotas: Sequence[int],
        never: Sequence[tuple[int, int, int]],
        tops: Tops | None = None,
    ) -> None:
        self._sparse, self._score, self._tops = sparse, score, tops
        self._quotas = torch.tensor([*quotas, 0], device=sparse.flat.values.device)
        self._never: dict[Part, list[slice]] = {}
        for tensor, start, stop in never:
            part, places = sparse.flat.span(tensor, start, stop)
            self._never.setdefault(part, []).append(places)
        self._found: dict[int, Candidates] = {}
        """By the first address of their part."""
        self._squares: list[torch.Tensor] = []

    def feed(self, tensor: int, gradient: torch.Tensor, most: int) -> None:
        """One tensor's gradient; of each part at most `most` entries are candidates, 0 for a step that takes none."""
        self._look(self._sparse.flat.take(tensor, gradient), most)

    def finish(self, most: int) -> torch.Tensor:
        """Unmask this step's winners; returns the sum of squares of the gradients of all that is eligible, 0-d."""
        self._look(self._sparse.flat.rest(), most)
        square = torch.stack([*self._squares, self._sparse.gradient_square()]).sum()
        if self._found:
            parts = [self._found[begin] for begin in sorted(self._found)]
            score, gradient, address = (torch.cat(column) for column in zip(*parts, strict=True))
            best = _places_of_highest(score, most)
            step = self._sparse.clock().clamp(max=len(self._quotas) - 1)
            quota = self._quotas.index_select(0, step)[0]
            self._sparse.unmask(address.index_select(0, best), gradient.index_select(0, best), quota)
        self._found, self._squares = {}, []
        return square

    def _look(self, complete: Iterator[tuple[Part, torch.Tensor]], most: int) -> None:
        for part, gradient in complete:
            selected = self._sparse.gather_part(part, gradient)
            weight = self._sparse.flat.values[part.begin : part.end].float()
            if most and self._tops is not None and most * BLOCK < part.size:
                self._close(part, selected, gradient, CLOSED)
                highest, squares = self._tops(gradient, weight)
                self._squares.append(squares.sum())
                self._keep(part, self._of_blocks(part, gradient, weight, _entries_of_best(highest, most)), most)
            else:
                self._close(part, selected, gradient, 0.0)
                self._squares.append(torch.linalg.vector_norm(gradient).square())
                if most:
                    self._keep(part, self._best(part, gradient, weight, selected, most), most)

    def _keep(self, part: Part, found: Candidates, most: int) -> None:
        """Let candidates wait for those of the other parts: of many the best, a few as they are, which is faster."""
        many = len(found.score) * WAITING > part.size
        self._found[part.begin] = found.best(most) if many else found

    def _close(self, part: Part, selected: torch.Tensor, column: torch.Tensor, mark: float) -> None:
        """Mark what cannot be chosen: the selected entries, those the method excludes, and what is no entry."""
        column.index_fill_(0, selected, mark)
        for places in [*self._never.get(part, ()), slice(part.filled, part.size)]:
            column[places] = mark

    def _of_blocks(self, part: Part, gradient: torch.Tensor, weight: torch.Tensor, places: torch.Tensor) -> Candidates:
        """The entries of some blocks; a gradient that is `CLOSED` marks one that is not free."""
        own = gradient.index_select(0, places)
        closed, scores = own == CLOSED, self._score(own, weight.index_select(0, places))
        return Candidates(scores.masked_fill(closed, EXCLUDED), own.masked_fill(closed, 0.0), places + part.begin)

    def _best(
        self, part: Part, gradient: torch.Tensor, weight: torch.Tensor, selected: torch.Tensor, most: int
    ) -> Candidates:
        """Entries of the part, among them the best that are free."""
        scores = self._score(gradient, weight)
        self._close(part, selected, scores, EXCLUDED)
        if most * BLOCK >= part.size:
            return Candidates(scores, gradient, torch.arange(part.begin, part.end, device=scores.device))
        places = _entries_of_best(scores.view(-1, BLOCK).amax(1), most)
        return Candidates(scores.index_select(0, places), gradient.index_select(0, places), places + part.begin)


def _places_of_highest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the highest values, the highest first and ties to the first; int64 (count,), or fewer if there are."""
    return values.sort(stable=True, descending=True).indices[:count]


def _entries_of_best(tops: torch.Tensor, most: int) -> torch.Tensor:
    """Places of all entries of the `most` blocks with the highest tops, ascending; int64 (most * BLOCK,)."""
    blocks = _places_of_highest(tops, most).sort().values
    return (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=tops.device)).flatten()
