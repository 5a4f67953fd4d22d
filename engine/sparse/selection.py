"""Exact selection of the k highest or lowest scores over all tensors, without putting the scores together.

A non-negative fp32 number read as an integer keeps its order. On a CPU three rounds of counting (11, 10 and
10 bits) find the k-th score exactly. A GPU, which waits at each question, ranks a few large parts instead, and
is asked four times in all. A last round collects the winners. Memory beyond one tensor's scores: a byte for
each entry and the places of those that tie, and on a GPU a part as large as the largest tensor, and k keys of
each part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

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

    def masks(self, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Which entries of each tensor are selected, flat bool; `sizes` are the scalars of all tensors."""
        starts = _starts(sizes, self.index.device)
        every = torch.zeros(sum(sizes), dtype=torch.bool, device=self.index.device)
        return every.index_fill_(0, starts[self.tensor] + self.index, True).split(list(sizes))


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

    _check_finite(scores(number) for number in range(len(sizes)))
    threshold, ties = _threshold(keys, sizes, k)
    if seed is None:
        return _collect(keys, sizes, threshold, ties)

    def lots(number: int) -> torch.Tensor:
        """Random keys for the tied entries, the same at every call."""
        offset = sum(sizes[:number])
        tied = keys(number) == threshold
        drawn = _scramble(torch.arange(offset, offset + sizes[number], device=tied.device), seed)
        return torch.where(tied, drawn, -1).int()

    strict = _collect(keys, sizes, threshold, 0)
    drawn = _collect(lots, sizes, *_threshold(lots, sizes, ties)) if ties else None
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
    own = [number for number, quota in enumerate(quotas) if quota]
    device = scores(0).device if sizes else torch.device("cpu")
    if own and seed is None and device.type == "cuda":
        return _each_ranked(lambda number: _keys(scores(number), smallest), scores, quotas, own)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    picked = [Picks(nothing, nothing)]
    for number in own:
        own_seed = None if seed is None else (seed * 1_000_003 + number) & _MOST_BITS
        found = select(
            partial(_given, scores(number)), [sizes[number]], quotas[number], smallest=smallest, seed=own_seed
        )
        picked.append(Picks(torch.full_like(found.index, number), found.index))
    return _joined(picked)


def _each_ranked(
    keys: Keys, scores: Callable[[int], torch.Tensor], quotas: Sequence[int], numbers: Sequence[int]
) -> Picks:
    """`select_by_tensor` that asks the device twice, however many tensors there are."""
    _check_finite(map(scores, numbers))
    picked, lowest = [], []
    for number in numbers:
        order = keys(number).sort(stable=True, descending=True)  # ties stay in the order of their places
        lowest.append(order.values[: quotas[number]].min())
        index = order.indices[: quotas[number]].sort().values
        picked.append(Picks(torch.full_like(index, number), index))
    enough = (torch.stack(lowest) >= 0).tolist()
    for number, picks, full in zip(numbers, picked, enough, strict=True):
        if not full or len(picks.index) < quotas[number]:
            raise _too_few(quotas[number], int((keys(number) >= 0).sum()))
    return _joined(picked)


def _joined(picked: Sequence[Picks]) -> Picks:
    return Picks(torch.cat([picks.tensor for picks in picked]), torch.cat([picks.index for picks in picked]))


def _given(scores: torch.Tensor, _: int) -> torch.Tensor:
    """Scores of the only tensor, which are asked for several times."""
    return scores


def _starts(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each tensor begins with all of them end to end, and where the last one ends; int64 (n + 1,)."""
    return torch.tensor(list(accumulate(sizes, initial=0)), device=device)


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
    _check_finite([scores])
    columns = torch.arange(scores.shape[1], device=scores.device)
    # The score above, the reversed place below: topk has no tie to break.
    keys = (scores.contiguous().view(torch.int32).long() << 32) | (scores.shape[1] - 1 - columns)
    chosen = keys.topk(count, dim=1).indices.sort(1).values
    return (chosen + torch.arange(len(scores), device=scores.device)[:, None] * scores.shape[1]).flatten()


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


def _check_finite(scores: Iterable[torch.Tensor]) -> None:
    """One sum tells: it is finite only if all scores are, and none overflows fp64."""
    sums = [one.sum(dtype=torch.float64) for one in scores]
    if sums and not bool(torch.stack(sums).sum().isfinite()):
        raise RunFailed("A score is not finite, so that weights cannot be ranked.", "Lower the learning rate.")


def _threshold(keys: Keys, sizes: Sequence[int], k: int) -> tuple[int, int]:
    """The k-th highest key, and how many of the entries that equal it are among the k highest.

    Raises:
        BudgetError: when fewer than k keys are not negative.
    """
    on_gpu = bool(sizes) and keys(0).is_cuda
    return (_threshold_by_ranking if on_gpu else _threshold_by_counting)(keys, sizes, k)


def _threshold_by_counting(keys: Keys, sizes: Sequence[int], k: int) -> tuple[int, int]:
    """`_threshold` by histograms, each of the bits below those already known."""
    prefix, wanted = 0, k
    for shift, bits in _ROUNDS:
        bins = 2**bits
        counts = torch.zeros(bins, dtype=torch.int64)
        for number in range(len(sizes)):
            own = keys(number)
            if shift < 20:
                own = own[(own >> (shift + bits)) == prefix] & ((1 << (shift + bits)) - 1)
            # Negative keys fall into the lower half, which is dropped.
            counts += torch.bincount((own >> shift) + bins, minlength=2 * bins)[bins:]
        reached = counts.flip(0).cumsum(0)
        if int(reached[-1]) < wanted:
            raise _too_few(k, int(reached[-1]))
        place = int((reached >= wanted).nonzero()[0])
        wanted -= int(reached[place - 1]) if place else 0
        prefix = (prefix << bits) | (bins - 1 - place)
    return prefix, wanted


def _threshold_by_ranking(keys: Keys, sizes: Sequence[int], k: int) -> tuple[int, int]:
    """`_threshold` by the k highest keys of each part, and of these; one question to the device."""
    best = [_highest(torch.cat([keys(number) for number in part]), k) for part in _parts(sizes)]
    winners = _highest(torch.cat(best), k)
    lowest = winners.min()
    threshold, ties, found = torch.stack([lowest, (winners == lowest).sum(), (winners >= 0).sum()]).tolist()
    if found < k:
        raise _too_few(k, found)
    return threshold, ties


def _highest(keys: torch.Tensor, k: int) -> torch.Tensor:
    return keys.topk(k, sorted=False).values if k < len(keys) else keys


def _parts(sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of consecutive tensors that together are no larger than the largest one."""
    parts: list[list[int]] = [[]]
    for number, size in enumerate(sizes):
        if parts[-1] and sum(sizes[one] for one in parts[-1]) + size > max(sizes):
            parts.append([])
        parts[-1].append(number)
    return parts


def _too_few(wanted: int, found: int) -> BudgetError:
    return BudgetError(f"{wanted:,} weights were to be selected, but only {found:,} can be.", "Ask for fewer.")


def _collect(keys: Keys, sizes: Sequence[int], threshold: int, ties: int) -> Picks:
    """All entries above the threshold, and the first `ties` of those that equal it."""
    standing = []
    for number in range(len(sizes)):
        own = keys(number)
        standing.append((own > threshold).byte() + (own >= threshold))
    every = torch.cat(standing)
    place = (every == 2).nonzero().flatten()
    if ties:
        place = torch.cat([place, (every == 1).nonzero().flatten()[:ties]]).sort().values
    starts = _starts(sizes, place.device)
    tensor = torch.searchsorted(starts, place, right=True) - 1
    return Picks(tensor, place - starts[tensor])


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
