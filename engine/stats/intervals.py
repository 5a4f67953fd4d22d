"""Intervals: how far off a measured accuracy, or a difference of two, may be.

Three sources of chance are kept apart. A test set is a sample of items (`wilson`,
`over_items`), a run is one draw of its seeds (`mean_over_seeds`, `paired_difference`), and an
interval that speaks of one says nothing about the other: each `Interval` says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Chance = Literal["items", "seeds"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: the measured value.
        low, high: its limits; None where nothing can be said, as for the mean of one seed.
        level: how often such an interval holds the true value.
        n: how many items or seeds it rests on.
        over: what was drawn at random.
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    n: int
    over: Chance

    @property
    def known(self) -> bool:
        """Whether there are limits at all."""
        return self.low is not None and self.high is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the limits."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "estimate": self.estimate,
            "ci": [self.low, self.high],
            "level": self.level,
            "n": self.n,
            "over": self.over,
        }


def wilson(correct: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of one accuracy (Wilson 1927).

    Unlike the interval with plus and minus 1.96 standard errors it stays inside [0, 1] and
    holds its level near 0 and 1.

    Raises:
        ValueError: unless 0 <= correct <= total and total >= 1.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} right answers of {total}")
    found = stats.binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return Interval(correct / total, float(found.low), float(found.high), level, total, "items")


def mean_over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds; without limits for a single seed.

    Raises:
        ValueError: for no value, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"needs finite values, got {values!r}")
    return _student(data, level, "seeds")


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``first - second``, paired by seed.

    Raises:
        ValueError: when the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}: they are not paired")
    return mean_over_seeds([float(a) - float(b) for a, b in zip(first, second, strict=True)], level)


def mean_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``first - second``, paired by item, as of losses.

    Raises:
        ValueError: when they are not of equally many items, or a difference is not finite.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1 or not np.isfinite(one - other).all():
        raise ValueError(f"values of shapes {one.shape} and {other.shape} are not of the same items, or not finite")
    return _student(one - other, level, "items")


def over_items(
    first: ArrayLike, second: ArrayLike, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Bootstrap interval of a difference of accuracies on the same items, items drawn anew.

    The bootstrap is used here because with several seeds an item's difference takes the
    values -1, ..., 1 in steps of 1/S, for which there is no exact test like McNemar's; an item
    carries the answers of all its seeds with it. Items are hundreds, so its limits are honest;
    seeds are few, and are never resampled.

    Args:
        first, second: bool (n,) or (S, n), right or wrong per seed and item.
        level: how often the interval should hold the true value.
        resamples: draws of the bootstrap.
        seed: of its random numbers.
    """
    difference = item_differences(first, second)
    mean, n = float(difference.mean()), int(difference.size)
    if np.ptp(difference) == 0:  # every resample would be the same: the items say nothing of their spread
        return Interval(mean, None, None, level, n, "items")
    # Drawing items is drawing how often each of the few distinct differences occurs.
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / n
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), level, n, "items")


def _student(data: np.ndarray, level: float, over: Chance) -> Interval:
    """Student's t interval of a mean; without limits for a single value."""
    mean, n = float(data.mean()), int(data.size)
    if n == 1:
        return Interval(mean, None, None, level, 1, over)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, level, n, over)


def item_differences(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """float64 (n,): per item, the share of seeds right in `first` minus that in `second`.

    Raises:
        ValueError: when the two were not measured on equally many items.
    """
    one, other = np.atleast_2d(np.asarray(first, dtype=bool)), np.atleast_2d(np.asarray(second, dtype=bool))
    if one.shape[1] != other.shape[1] or one.shape[1] == 0:
        raise ValueError(f"{one.shape[1]} items against {other.shape[1]}: they are not the same items")
    return np.asarray(one.mean(axis=0) - other.mean(axis=0))
