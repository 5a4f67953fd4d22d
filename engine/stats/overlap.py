"""How far the masks of several runs agree, and how far masks drawn by lot would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from engine.errors import SpecError

LEVEL = 0.01
"""Of the tests behind a sentence, after Holm's correction over all pairs."""
_REACH = 12.0
"""Standard deviations around the mean beyond which probabilities count as zero."""
_NOTHING = 1e-16
"""A probability that counts as zero in a sum: no more than what Fourier transforms leave of rounding."""


@dataclass(frozen=True)
class Mask:
    """The entries one run trains.

    Attributes:
        label: names the run.
        base: sha256 of the model it started from; masks of other models do not compare.
        sizes: eligible entries of each tensor it may select from, by name.
        shapes: of these tensors.
        entries: flat indices by tensor name, each without repetition.
        scattered: whether each entry was chosen for itself, and not with a whole block.
    """

    label: str
    base: str
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    entries: Mapping[str, np.ndarray]
    scattered: bool = True

    @property
    def count(self) -> int:
        """Selected entries."""
        return sum(len(index) for index in self.entries.values())

    def compares_with(self, other: Mask) -> bool:
        """Whether their entries are of the same tensors: same model, and tensors in common, all of the same shape."""
        common = self.shapes.keys() & other.shapes.keys()
        return self.base == other.base and bool(common) and all(self.shapes[n] == other.shapes[n] for n in common)


@dataclass(frozen=True)
class Overlap:
    """Two masks against each other.

    Attributes:
        first, second: their labels.
        counts: their sizes.
        common: entries in both.
        expected: entries that two masks of these sizes, drawn by lot, have in common on average.
        within: the same when each tensor keeps as many entries as it has: what is left is agreement within tensors.
        spread: standard deviation of the expected number; None where blocks were chosen, whose entries hang together.
        jaccard: common entries over all that are in either.
        p: how probable a number at least as far out would be by lot, on both sides; None for blocks.
        within_p: the same when each tensor keeps as many entries as it has.
    """

    first: str
    second: str
    counts: tuple[int, int]
    common: int
    expected: float
    within: float
    spread: float | None
    jaccard: float
    p: float | None
    within_p: float | None

    @property
    def sentence(self) -> str:
        """What it says, in words."""
        smaller = min(self.counts)
        if not smaller:
            return f"{self.first} and {self.second} share nothing: one of them is empty."
        found = f"{self.first} and {self.second} share {self.common:,} of {smaller:,} "
        found += f"({100 * self.common / smaller:.1f} %)"
        if self.p is None:
            return f"{found}; by lot it would be {_about(self.expected)} on average."
        if self.p >= LEVEL:
            few = self.common < self.expected and 2 * math.exp(-self.expected) >= LEVEL
            doubt = "; so small a number could not show that they avoid each other" if few else ""
            return f"{found}, about as many as by lot ({_about(self.expected)}){doubt}."
        if self.common < self.expected:
            return f"{found}, fewer than by lot ({_about(self.expected)}){self._beyond_tensors}."
        times = f"{self.common / self.expected:,.1f} times as many as by lot"
        return f"{found}, {times}{self._beyond_tensors}."

    @property
    def _beyond_tensors(self) -> str:
        """What is left once both masks keep as many entries in each tensor as they have."""
        if self.within_p is None or math.isclose(self.within, self.expected, rel_tol=1e-9):
            return ""
        way = (
            "about as many as" if self.within_p >= LEVEL else "fewer than" if self.common < self.within else "more than"
        )
        return f"; {way} by lot within the tensors they chose ({_about(self.within)})"


def _about(number: float) -> str:
    """An expected number: small ones with their decimals."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def overlaps(masks: Sequence[Mask]) -> list[Overlap]:
    """All pairs of masks that compare, in order.

    By lot means: each mask is drawn without replacement from all eligible entries of the tensors that
    either may select from, which gives a hypergeometric number of common ones.

    Raises:
        SpecError: when all are masks of different models, or of tensors that are not the same.
    """
    found = [_overlap(first, second) for first, second in combinations(masks, 2) if first.compares_with(second)]
    if not found:
        labels = ", ".join(mask.label for mask in masks)
        raise SpecError(
            f"{labels} chose from different tensors: their masks do not compare.",
            "Choose runs of one model, on the same method if on any.",
        )
    from engine.stats.paired import holm  # with scipy, which commands that only list masks do without

    judged = [place for place, pair in enumerate(found) if pair.p is not None]
    both = zip(holm([found[n].p or 0.0 for n in judged]), holm([found[n].within_p or 0.0 for n in judged]), strict=True)
    for place, (p, within_p) in zip(judged, both, strict=True):
        found[place] = replace(found[place], p=p, within_p=within_p)
    return found


def left_out(masks: Sequence[Mask], pairs: Sequence[Overlap]) -> str | None:
    """How many pairs do not compare, in words; None when all do."""
    missing = len(masks) * (len(masks) - 1) // 2 - len(pairs)
    return f"Left out, as their masks are of different tensors or models: {missing} of the pairs." if missing else None


def _overlap(first: Mask, second: Mask) -> Overlap:
    shared = first.entries.keys() & second.entries.keys()
    common = sum(len(np.intersect1d(first.entries[name], second.entries[name], assume_unique=True)) for name in shared)
    sizes = {name: max(first.sizes.get(name, 0), second.sizes.get(name, 0)) for name in {**first.sizes, **second.sizes}}
    total = sum(sizes.values())
    one, two = first.count, second.count
    each = np.array([[len(first.entries[n]), len(second.entries[n]), sizes[n]] for n in shared]).reshape(-1, 3)
    whole = np.array([[one, two, max(total, 1)]])
    scattered = first.scattered and second.scattered
    either = one + two - common
    return Overlap(
        first.label,
        second.label,
        (one, two),
        common,
        float(_means(whole).sum()),
        float(_means(each).sum()),
        float(_variances(whole).sum() ** 0.5) if scattered else None,
        common / either if either else 0.0,
        _two_sided(common, whole) if scattered else None,
        _two_sided(common, each) if scattered else None,
    )


def _means(draws: np.ndarray) -> np.ndarray:
    """Mean number of common entries by lot; `draws` has the sizes of both masks and of what they choose from."""
    return np.asarray(draws[:, 0] * draws[:, 1] / draws[:, 2], dtype=float)


def _variances(draws: np.ndarray) -> np.ndarray:
    one, two, total = draws.T.astype(float)
    return _means(draws) * (1 - one / total) * (total - two) / np.maximum(total - 1, 1)


def _chances(low: int, high: int, one: int, two: int, total: int) -> np.ndarray:
    """Hypergeometric probabilities of `low` to `high` common entries, which are all that count; from their ratios."""
    k = np.arange(low, high, dtype=float)
    ratios = np.log((one - k) * (two - k) / ((k + 1) * (total - one - two + k + 1)))
    logs = np.concatenate([np.zeros(1), np.cumsum(ratios)])
    chances = np.exp(logs - logs.max())
    return np.asarray(chances / chances.sum())


def _two_sided(common: int, draws: np.ndarray) -> float:
    """Twice the smaller tail of a sum of independent hypergeometric numbers, one for each row of `draws`."""
    from scipy import signal

    start, chances = 0, np.ones(1)
    means, reach = _means(draws), _REACH * (_variances(draws) ** 0.5 + 1)
    lows = np.maximum(np.ceil(means - reach), np.maximum(0, draws[:, 0] + draws[:, 1] - draws[:, 2])).astype(int)
    highs = np.minimum(np.floor(means + reach), draws[:, :2].min(axis=1)).astype(int)
    for low, high, (one, two, total) in zip(lows.tolist(), highs.tolist(), draws.tolist(), strict=True):
        # By Fourier transforms where both are long.
        chances = signal.convolve(chances, _chances(low, high, one, two, total))
        possible = np.flatnonzero(chances > _NOTHING)
        chances = chances[possible[0] : possible[-1] + 1]
        start += low + int(possible[0])
    below, above = chances[: max(0, common - start + 1)].sum(), chances[max(0, common - start) :].sum()
    return float(min(1.0, 2 * min(below, above)))
