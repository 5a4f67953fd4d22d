"""How far the masks of several runs agree, and how far masks drawn by lot would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from engine.errors import SpecError


@dataclass(frozen=True)
class Mask:
    """The entries one run trains.

    Attributes:
        label: names the run.
        base: sha256 of the model it started from; masks of other models do not compare.
        sizes: eligible entries of each tensor it may select from, by name.
        entries: flat indices by tensor name, each without repetition.
    """

    label: str
    base: str
    sizes: Mapping[str, int]
    entries: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """Selected entries."""
        return sum(len(index) for index in self.entries.values())


@dataclass(frozen=True)
class Overlap:
    """Two masks against each other.

    Attributes:
        first, second: their labels.
        counts: their sizes.
        common: entries in both.
        expected: entries that two masks of these sizes, drawn by lot, have in common on average.
        spread: standard deviation of that number.
        jaccard: common entries over all that are in either.
        expected_jaccard: the same at the expected number.
    """

    first: str
    second: str
    counts: tuple[int, int]
    common: int
    expected: float
    spread: float
    jaccard: float
    expected_jaccard: float

    @property
    def sentence(self) -> str:
        """What it says, in words."""
        smaller = min(self.counts)
        share = f"{self.common:,} of {smaller:,} ({100 * self.common / smaller:.1f} %)" if smaller else "nothing"
        if self.common > self.expected + 3 * self.spread:
            times = f"{self.common / self.expected:,.1f} times as many as by lot" if self.expected else "by lot none"
            return f"{self.first} and {self.second} share {share}, {times}."
        if self.common < self.expected - 3 * self.spread:
            return f"{self.first} and {self.second} share {share}, fewer than by lot ({self.expected:,.0f})."
        return f"{self.first} and {self.second} share {share}, as many as by lot ({self.expected:,.0f})."


def overlaps(masks: Sequence[Mask]) -> list[Overlap]:
    """All pairs of masks, in order.

    By lot means: each mask is drawn without replacement from all eligible entries of the tensors that
    either may select from, which gives a hypergeometric number of common ones.

    Raises:
        SpecError: for masks of different models.
    """
    if len({mask.base for mask in masks}) > 1:
        raise SpecError("These runs started from different models: their masks do not compare.", "Choose others.")
    return [_overlap(first, second) for first, second in combinations(masks, 2)]


def _overlap(first: Mask, second: Mask) -> Overlap:
    shared = first.entries.keys() & second.entries.keys()
    common = sum(len(np.intersect1d(first.entries[name], second.entries[name], assume_unique=True)) for name in shared)
    total = sum({**first.sizes, **second.sizes}.values())
    one, two = first.count, second.count
    expected = one * two / total if total else 0.0
    variance = expected * (1 - one / total) * (total - two) / (total - 1) if total > 1 else 0.0
    either = one + two - common
    return Overlap(
        first.label,
        second.label,
        (one, two),
        common,
        expected,
        max(variance, 0.0) ** 0.5,
        common / either if either else 0.0,
        expected / (one + two - expected) if one + two > expected else 0.0,
    )
