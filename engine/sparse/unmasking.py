"""Exact top-k of a score while gradients come in, part by part, and the unmasking of the winners.

The k highest entries of a part lie in its k blocks with the highest entries, so that ranking the blocks
and then what is in the best of them is enough. Nothing asks the device, and all shapes stay. Candidates
are kept in the order of their addresses: a stable sort then gives ties to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from engine.sparse.blocks import CLOSED, Blocks, Candidates, highest
from engine.sparse.flat import FlatSparseAdamW, Part

WAITING = 32
"""Candidates that are less than this fraction of their part wait as they are: at most an 8th of the weights' room."""


class Unmasking:
    """Unmasks the highest scores of each step.

    Args:
        sparse: gets the winners.
        blocks: the score.
        quotas: how many entries each step takes, int64 (steps,); after the last step none.
        never: entries that may not be chosen, as (tensor, start, stop).
    """

    def __init__(
        self,
        sparse: FlatSparseAdamW,
        blocks: Blocks,
        quotas: Sequence[int],
        never: Sequence[tuple[int, int, int]],
    ) -> None:
        self._sparse, self._blocks = sparse, blocks
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
            best = highest(score, most)
            step = self._sparse.clock().clamp(max=len(self._quotas) - 1)
            quota = self._quotas.index_select(0, step)[0]
            self._sparse.unmask(address.index_select(0, best), gradient.index_select(0, best), quota)
        self._found, self._squares = {}, []
        return square

    def _look(self, complete: Iterator[tuple[Part, torch.Tensor]], most: int) -> None:
        for part, gradient in complete:
            self._close(part, gradient, CLOSED if most else 0.0)
            if most:
                self._rank(part, gradient, most)
            else:
                self._squares.append(torch.linalg.vector_norm(gradient).square())

    def _close(self, part: Part, gradient: torch.Tensor, mark: float) -> None:
        """Take the selected entries' gradients; mark them, what the method excludes, and what is no entry."""
        self._sparse.gather_part(part, gradient, mark)
        for places in [*self._never.get(part, ()), slice(part.filled, part.size)]:
            gradient[places] = mark

    def _rank(self, part: Part, gradient: torch.Tensor, most: int) -> None:
        """Let candidates wait for those of the other parts: of many the best, a few as they are, which is faster."""
        weight = self._sparse.flat.values[part.begin : part.begin + len(gradient)].float()
        tops, squares = self._blocks.tops(gradient, weight)
        self._squares.append(squares.sum())
        found = self._blocks.entries(gradient, weight, highest(tops, most).sort().values, part.begin)
        many = len(found.score) * WAITING > part.size
        self._found[part.begin] = found.best(most) if many else found
