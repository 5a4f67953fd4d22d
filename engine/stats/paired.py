"""Tests of whether two classifiers differ, on the same items or over the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from engine.stats.intervals import item_differences


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same items.

    Attributes:
        both, only_first, only_second, neither: items by who was right.
        p: two-sided p-value of McNemar's exact test.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float

    @property
    def discordance(self) -> float:
        """Share of the items on which exactly one was right."""
        total = self.both + self.only_first + self.only_second + self.neither
        return (self.only_first + self.only_second) / total


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test: are the items that only one got right split evenly?

    Args:
        first, second: bool (n,), right or wrong, item by item.

    Raises:
        ValueError: when they are not equally long.
    """
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != other.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"outcomes of shapes {one.shape} and {other.shape} are not of the same items")
    only_first, only_second = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(int((one & other).sum()), only_first, only_second, int((~one & ~other).sum()), p)


def paired_t(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t test over seeds; None with fewer than two of them.

    Raises:
        ValueError: when the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}: they are not paired")
    difference = np.subtract(first, second)
    if difference.size < 2:
        return None
    if np.ptp(difference) == 0:  # no spread: the statistic is 0/0, or infinite
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def welch_t(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t test, for runs that share no seeds; None with fewer than two each."""
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def items_t(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p-value for a difference on new items, from outcomes (S, n) of the same n items.

    A t test of the items' differences, each averaged over its seeds; with one seed McNemar's
    exact test says the same without an approximation.
    """
    difference = item_differences(first, second)
    if difference.size < 2 or np.ptp(difference) == 0:
        return 1.0 if difference.size < 2 or difference[0] == 0 else 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for having tested them together (Holm 1979), in the given order.

    Written out because statsmodels' `multipletests` collects garbage at each call, which stalls
    a page's server.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in corrected]
