"""Exact selection of the k highest or lowest scores over all tensors, without putting the scores together.

A non-negative fp32 number read as an integer keeps its order, so that three rounds of
counting (11, 10 and 10 bits) find the k-th score exactly; a last round collects the winners.
Memory beyond one tensor's scores: 2,048 counters and k results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from engine.errors import BudgetError, RunFailed

EXCLUDED = -1.0
"""Score of an entry that must not be selected."""
_ROUNDS = ((20, 11), (10, 10), (0, 10))
_LARGEST_KEY = 2**31 - 1
_MOST_BITS = 2**28 - 1
"""Of a seed: more would leave int64 where it is scrambled."""

Keys = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Picks:
    """Selected entries in ascending order of tensor and index, both int64 (k,)."""

    tensor: torch.Tensor
    index: torch.Tensor


def exclude(scores: torch.Tensor, rows: Sequence[tuple[int, int]], row_size: int) -> torch.Tensor:
    """Mark half-open ranges of rows as excluded, in place; `scores` is flat."""
    for start, stop in rows:
        scores[start * row_size : stop * row_size] = EXCLUDED
    return scores


def select(
    scores: Callable[[int], torch.Tensor],
    sizes: Sequence[int],
    k: int,
    *,
    smallest: bool = False,
    seed: int | None = None,
) -> Picks:
    """The k entries with the highest (or lowest) scores over all tensors.

    Args:
        scores: gives the flat fp32 scores of one tensor, not negative but for `EXCLUDED` where
            it may not be selected; called a few times per tensor, and must answer the same.
        sizes: scalars of each tensor.
        k: how many.
        smallest: take the lowest scores instead of the highest.
        seed: None breaks ties by the lowest global index; a seed breaks them at random.

    Raises:
        BudgetError: when fewer than k entries may be selected.
        RunFailed: when a score is not finite.
    """

    def keys(number: int) -> torch.Tensor:
        return _keys(scores(number), smallest)

    count = len(sizes)
    for number in range(count):
        _check_finite(scores(number))
    threshold, ties = _threshold(keys, count, k)
    if seed is None:
        return _collect(keys, count, threshold, ties)

    def lots(number: int) -> torch.Tensor:
        """Random keys for the tied entries, the same at every call."""
        offset = sum(sizes[:number])
        tied = keys(number) == threshold
        drawn = _scramble(torch.arange(offset, offset + sizes[number], device=tied.device), seed)
        return torch.where(tied, drawn, -1).int()

    strict = _collect(keys, count, threshold, 0)
    drawn = _collect(lots, count, *_threshold(lots, count, ties)) if ties else None
    return strict if drawn is None else _in_order(strict, drawn)


def select_by_tensor(
    scores: Callable[[int], torch.Tensor],
    sizes: Sequence[int],
    quotas: Sequence[int],
    *,
    smallest: bool = False,
    seed: int | None = None,
) -> Picks:
    """As `select`, with a ranking and a number of its own for every tensor.

    Raises:
        BudgetError: when a tensor has fewer entries than its quota.
        RunFailed: when a score is not finite.
    """
    tensors, indices = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for number, (size, quota) in enumerate(zip(sizes, quotas, strict=True)):
        if quota:
            own_seed = None if seed is None else (seed * 1_000_003 + number) & _MOST_BITS
            picks = select(partial(_of_tensor, scores, number), [size], quota, smallest=smallest, seed=own_seed)
            tensors.append(torch.full_like(picks.index, number).cpu())
            indices.append(picks.index.cpu())
    device = scores(0).device if sizes else torch.device("cpu")
    return Picks(torch.cat(tensors).to(device), torch.cat(indices).to(device))


def _of_tensor(scores: Callable[[int], torch.Tensor], number: int, _: int) -> torch.Tensor:
    return scores(number)


def best_of_each_row(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The highest scores of every row; ties go to the lowest column.

    Args:
        scores: fp32 (rows, columns), not negative.
        count: per row, at most the number of columns.

    Returns:
        Flat indices, int64 (rows * count,), ascending.

    Raises:
        RunFailed: when a score is not finite.
    """
    _check_finite(scores)
    columns = torch.arange(scores.shape[1], device=scores.device)
    keys = unique_keys(scores.contiguous(), columns)
    chosen = keys.topk(count, dim=1).indices.sort(1).values
    return (chosen + torch.arange(len(scores), device=scores.device)[:, None] * scores.shape[1]).flatten()


def unique_keys(scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """int64 keys of non-negative fp32 scores: score above, reversed place below, so that topk has no tie to break."""
    return (scores.view(torch.int32).long() << 32) | (0xFFFFFFFF - places)


def shares(sizes: Sequence[int], k: int) -> list[int]:
    """k divided among tensors in proportion to their sizes, by largest remainders; the first ones win ties."""
    total = sum(sizes)
    parts = [k * size // total for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda number: -(k * sizes[number] % total))
    for number in rest[: k - sum(parts)]:
        parts[number] += 1
    return parts


def _keys(scores: torch.Tensor, smallest: bool) -> torch.Tensor:
    """int32 keys, higher is better; negative for excluded entries, whose sign bit is set."""
    keys = scores.float().contiguous().view(torch.int32)
    # The subtraction wraps around for negative keys, and they stay negative.
    return _LARGEST_KEY - keys if smallest else keys


def _check_finite(scores: torch.Tensor) -> None:
    """One sum tells: it is finite only if all scores are, and none overflows fp64."""
    if not bool(scores.sum(dtype=torch.float64).isfinite()):
        raise RunFailed("A score is not finite, so that weights cannot be ranked.", "Lower the learning rate.")


def _threshold(keys: Keys, count: int, k: int) -> tuple[int, int]:
    """The k-th highest key, and how many of the entries that equal it are among the k highest."""
    prefix, wanted = 0, k
    for shift, bits in _ROUNDS:
        bins = 2**bits
        counts = torch.zeros(bins, dtype=torch.int64)
        for number in range(count):
            own = keys(number)
            if shift < 20:
                own = own[(own >> (shift + bits)) == prefix] & ((1 << (shift + bits)) - 1)
            # Negative keys fall into the lower half, which is dropped.
            counts += torch.bincount((own >> shift) + bins, minlength=2 * bins)[bins:].cpu()
        reached = counts.flip(0).cumsum(0)
        if int(reached[-1]) < wanted:
            raise BudgetError(
                f"{k:,} weights were to be selected, but only {int(reached[-1]):,} can be.", "Ask for fewer."
            )
        place = int((reached >= wanted).nonzero()[0])
        wanted -= int(reached[place - 1]) if place else 0
        prefix = (prefix << bits) | (bins - 1 - place)
    return prefix, wanted


def _collect(keys: Keys, count: int, threshold: int, ties: int) -> Picks:
    """All entries above the threshold, and the first `ties` of those that equal it."""
    tensors, indices = [], []
    for number in range(count):
        own = keys(number)
        tied = (own == threshold).nonzero().flatten()[:ties] if ties else own.new_empty(0, dtype=torch.int64)
        ties -= len(tied)
        index = torch.cat([(own > threshold).nonzero().flatten(), tied]).sort().values
        indices.append(index)
        tensors.append(torch.full_like(index, number))
    return Picks(torch.cat(tensors), torch.cat(indices))


def _in_order(first: Picks, second: Picks) -> Picks:
    tensor = torch.cat([first.tensor, second.tensor])
    index = torch.cat([first.index, second.index])
    order = index.argsort()
    order = order[tensor[order].argsort(stable=True)]
    return Picks(tensor[order], index[order])


def _scramble(index: torch.Tensor, seed: int) -> torch.Tensor:
    """A 31-bit pseudo-random number per global index: the finaliser of a 32-bit hash, in int64."""
    x = (index + seed * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 1
