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
    """

    first: str
    second: str
    counts: tuple[int, int]
    common: int
    expected: float
    within: float
    spread: float | None
    jaccard: float

    @property
    def sentence(self) -> str:
        """What it says, in words."""
        smaller = min(self.counts)
        share = f"{self.common:,} of {smaller:,} ({100 * self.common / smaller:.1f} %)" if smaller else "nothing"
        if self.spread is None:
            return f"{self.first} and {self.second} share {share}; by lot it would be {self.expected:,.0f} on average."
        if self.common > self.expected + 3 * self.spread:
            times = f"{self.common / self.expected:,.1f} times as many as by lot" if self.expected else "by lot none"
            return f"{self.first} and {self.second} share {share}, {times}."
        if self.common < self.expected - 3 * self.spread:
            return f"{self.first} and {self.second} share {share}, fewer than by lot ({self.expected:,.0f})."
        return f"{self.first} and {self.second} share {share}, about as many as by lot ({self.expected:,.0f})."


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
    return found


def left_out(masks: Sequence[Mask], pairs: Sequence[Overlap]) -> str | None:
    """How many pairs do not compare, in words; None when all do."""
    missing = len(masks) * (len(masks) - 1) // 2 - len(pairs)
    return f"Left out, as their masks are of different tensors or models: {missing} of the pairs." if missing else None


def _overlap(first: Mask, second: Mask) -> Overlap:
    shared = first.entries.keys() & second.entries.keys()
    common = sum(len(np.intersect1d(first.entries[name], second.entries[name], assume_unique=True)) for name in shared)
    total = sum({**first.sizes, **second.sizes}.values())
    within = sum(len(first.entries[name]) * len(second.entries[name]) / first.sizes[name] for name in shared)
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
        within,
        max(variance, 0.0) ** 0.5 if first.scattered and second.scattered else None,
        common / either if either else 0.0,
    )
