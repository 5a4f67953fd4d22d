"""Exact top-k of a score while gradients come in, part by part, and the unmasking of the winners.

The k highest entries of a part lie in its k blocks with the highest entries, so that ranking the blocks
and then what is in the best of them is enough. Nothing asks the device, and all shapes stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from engine.sparse.candidates import Score
from engine.sparse.flat import BLOCK, LARGEST_ADDRESS, FlatSparseAdamW, Part
from engine.sparse.selection import EXCLUDED, unique_keys


class Unmasking:
    """Unmasks the highest scores of each step.

    Args:
        sparse: gets the winners.
        score: (gradient, weight), both fp32 (n,), to non-negative scores (n,).
        quotas: how many entries each step takes, int64 (steps,); after the last step none.
        never: entries that may not be chosen, as (tensor, start, stop).
    """

    def __init__(
        self,
        sparse: FlatSparseAdamW,
        score: Score,
        quotas: Sequence[int],
        never: Sequence[tuple[int, int, int]],
    ) -> None:
        self._sparse, self._score = sparse, score
        self._quotas = torch.tensor([*quotas, 0], device=sparse.flat.values.device)
        self._never: dict[Part, list[slice]] = {}
        for tensor, start, stop in never:
            part, places = sparse.flat.span(tensor, start, stop)
            self._never.setdefault(part, []).append(places)
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._squares: list[torch.Tensor] = []

    def feed(self, tensor: int, gradient: torch.Tensor, most: int) -> None:
        """One tensor's gradient; of each part at most `most` entries are candidates, 0 for a step that takes none."""
        self._look(self._sparse.flat.take(tensor, gradient), most)

    def finish(self, most: int) -> torch.Tensor:
        """Unmask this step's winners; returns the sum of squares of all gradients, 0-d."""
        self._look(self._sparse.flat.rest(), most)
        if self._found:
            keys, gradients = (torch.cat(column) for column in zip(*self._found, strict=True))
            best = keys.topk(min(most, len(keys)))
            address = LARGEST_ADDRESS - (best.values & LARGEST_ADDRESS)
            step = self._sparse.clock().clamp(max=len(self._quotas) - 1)
            self._sparse.unmask(address, gradients.index_select(0, best.indices), self._quotas.index_select(0, step)[0])
        square = torch.stack(self._squares).sum() if self._squares else self._sparse.gradient_square()
        self._found, self._squares = [], []
        return square

    def _look(self, complete: Iterator[tuple[Part, torch.Tensor]], most: int) -> None:
        for part, gradient in complete:
            places = part.local(self._sparse.addresses())
            self._sparse.gather_part(part, gradient, places)
            self._squares.append(torch.linalg.vector_norm(gradient).square())
            if most:
                self._found.append(self._best(part, gradient, places, most))

    def _best(
        self, part: Part, gradient: torch.Tensor, selected: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and gradients of entries of the part, among them the best that are free."""
        scores = self._score(gradient, self._sparse.flat.values[part.begin : part.end].float())
        scores.index_fill_(0, selected, EXCLUDED)
        for places in [*self._never.get(part, ()), slice(part.filled, part.size)]:
            scores[places] = EXCLUDED
        if most * BLOCK < part.size:
            places = _promising(scores, most)
            return unique_keys(scores.index_select(0, places), places + part.begin), gradient.index_select(0, places)
        every = torch.arange(part.begin, part.end, device=scores.device)
        best = unique_keys(scores, every).topk(min(most, part.size), sorted=False)
        return best.values, gradient.index_select(0, best.indices)


def _promising(scores: torch.Tensor, most: int) -> torch.Tensor:
    """Places of the blocks that hold the `most` highest scores, ties to the first."""
    tops = scores.view(-1, BLOCK).amax(1)
    numbers = torch.arange(max(BLOCK, len(tops)), device=scores.device)
    blocks = unique_keys(tops, numbers[: len(tops)]).topk(most, sorted=False).indices
    return (blocks[:, None] * BLOCK + numbers[:BLOCK]).flatten()
