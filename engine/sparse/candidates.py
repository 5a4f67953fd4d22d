"""Exact top-k of scores that are seen one tensor after another, while the backward pass produces them.

An element of the global top-k is in the top-k of its own tensor, so that few candidates per
tensor are enough. Two bounds spare most of the work: no score below the k-th best seen so far can
win, and the norm of a block of gradients bounds every score in the block, so that only blocks
which could hold a winner are scored at all. This is for a CPU, where looking at a value is cheap;
`engine.sparse.unmasking` is for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.sparse.gradient import StreamedGradient

BLOCK = 128
"""Entries whose gradients share one norm."""

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Bound = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Winners:
    """Selected entries, best first: tensor and flat index int64 (k,), gradient fp32 (k,)."""

    tensor: torch.Tensor
    index: torch.Tensor
    gradient: torch.Tensor


def block_norms(gradient: torch.Tensor) -> torch.Tensor:
    """Norms of the consecutive blocks of a flat fp32 gradient; the last block may be short."""
    whole = len(gradient) // BLOCK * BLOCK
    norms = torch.linalg.vector_norm(gradient[:whole].view(-1, BLOCK), dim=1)
    if whole == len(gradient):
        return norms
    return torch.cat([norms, torch.linalg.vector_norm(gradient[whole:]).view(1)])


class TopCandidates:
    """Collects the k best entries; ties go to the lowest tensor, then the lowest index.

    Entries with a score of 0 are never candidates: excluded entries are fed with gradient 0.

    Args:
        k: how many to find; at least 1.
        score: (gradient, weight), both fp32 (n,), to scores (n,).
        bound: highest score possible at a given size of the gradient, or None when there is none.
    """

    def __init__(self, k: int, score: Score, bound: Bound | None) -> None:
        self.k, self._score, self._bound = k, score, bound
        self._pool: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._pooled = 0
        self._floor = 0.0

    def feed(self, tensor: int, gradient: StreamedGradient, weight: torch.Tensor, norms: torch.Tensor) -> None:
        """Look at one tensor: its gradient, its values and its gradient's `block_norms`."""
        values, held = gradient.values, gradient.weights(weight)
        place, score = self._promising(values, held, norms)
        if len(place):
            self._keep(score, tensor, gradient.positions(place), values[place])

    def _promising(
        self, gradient: torch.Tensor, weight: torch.Tensor, norms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places and scores of all entries that could win."""
        places = self._hot(len(gradient), norms)
        if places is not None:
            gradient, weight = gradient[places], weight[places]
        scores = self._score(gradient, weight)
        kept = (scores >= self._floor).nonzero().flatten() if self._floor else scores.nonzero().flatten()
        if len(kept) > self.k:
            lowest = scores[kept].topk(self.k).values[-1]
            kept = kept[scores[kept] >= lowest]
        return kept if places is None else places[kept], scores[kept]

    def _hot(self, size: int, norms: torch.Tensor) -> torch.Tensor | None:
        """Entries of the blocks that could hold a winner; None for all of them."""
        if self._bound is None or not self._floor:
            return None
        hot = (self._bound(norms) >= self._floor).nonzero()
        if 2 * len(hot) > len(norms):
            return None
        places = (hot * BLOCK + torch.arange(BLOCK)).flatten()
        return places[places < size]

    def _keep(self, score: torch.Tensor, tensor: int, index: torch.Tensor, gradient: torch.Tensor) -> None:
        self._pool.append((score, torch.full_like(index, tensor), index, gradient))
        self._pooled += len(score)
        full = self._pooled >= (2 * self.k if self._floor else self.k)
        if full:
            self._reduce()
            self._floor = float(self._pool[0][0][-1])

    def _reduce(self) -> None:
        """Keep the k best of the pool, best first."""
        score, tensor, index, gradient = (torch.cat(column) for column in zip(*self._pool, strict=True))
        order = index.argsort()
        order = order[tensor[order].argsort(stable=True)]
        order = order[score[order].argsort(descending=True, stable=True)][: self.k]
        self._pool = [(score[order], tensor[order], index[order], gradient[order])]
        self._pooled = len(order)

    def winners(self) -> Winners | None:
        """The best entries with a score above 0, at most k; None when there is none."""
        if not self._pool:
            return None
        self._reduce()
        score, tensor, index, gradient = self._pool[0]
        positive = score > 0
        return Winners(tensor[positive], index[positive], gradient[positive])
