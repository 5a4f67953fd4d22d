"""What a test set can show: the smallest difference that would be found, known before launch.

All functions answer for a two-sided test at `alpha` that finds a true difference of the
returned size with probability `power`. Accuracies and differences are shares, not per cent.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

DISCORDANCE = 0.10
"""Share of items on which exactly one of two runs is right: an assumption for the time before any
was trained; then `engine.stats.paired.McNemar.discordance` measures it."""
ACCURACY = 0.84
"""Accuracy assumed before any run was trained."""


@dataclass(frozen=True)
class Detectable:
    """The smallest differences that a comparison can show; None where none is large enough.

    Attributes:
        items, seeds: the test items, and the seeds per method.
        paired: on the same items and seeds.
        unpaired: on different items of the same number, with one seed each.
        discordance, accuracy: what was assumed.
        power, alpha: of the test.
    """

    items: int
    seeds: int
    paired: float | None
    unpaired: float | None
    discordance: float
    accuracy: float
    power: float
    alpha: float

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        runs = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        start = f"With {self.items:,} test items and {runs} per method"
        if self.paired is None:
            return f"{start}, no difference at all can be shown: use a larger test set."
        return (
            f"{start}, a difference below {100 * self.paired:.1f} points will probably not show "
            f"({self.power:.0%} power, alpha {self.alpha:.0%}, assuming that two runs disagree on "
            f"{self.discordance:.0%} of the items)."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, the sentence included."""
        return asdict(self) | {"sentence": self.sentence}


def detectable(
    items: int,
    seeds: int = 1,
    discordance: float = DISCORDANCE,
    accuracy: float = ACCURACY,
    power: float = 0.8,
    alpha: float = 0.05,
) -> Detectable:
    """The smallest differences that `items` test items and `seeds` seeds per method can show."""
    return Detectable(
        items=items,
        seeds=seeds,
        paired=smallest_paired(items, discordance, power, alpha)
        if seeds == 1
        else smallest_over_seeds(items, seeds, discordance, power, alpha),
        unpaired=smallest_unpaired(items, accuracy, power, alpha),
        discordance=discordance,
        accuracy=accuracy,
        power=power,
        alpha=alpha,
    )


def smallest_paired(items: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference for McNemar's test on the same items (Connor 1987).

    Solves ``n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2`` for d, with psi the share of
    items on which exactly one of the two is right. d cannot exceed psi; None when even that
    would not be found.
    """
    z_alpha, z_beta = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)

    def short(d: float) -> float:
        return float(z_alpha * math.sqrt(discordance) + z_beta * math.sqrt(discordance - d * d) - d * math.sqrt(items))

    if discordance <= 0 or items < 1 or short(discordance) > 0:
        return None
    return float(optimize.brentq(short, 0.0, discordance))


def smallest_unpaired(items: int, accuracy: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference between accuracies on two separate samples of `items` items each.

    By the arcsine transformation (Cohen 1988), h = (z_a + z_b) sqrt(2 / n); of a gain and a loss
    against `accuracy` the harder to find is returned, None when neither fits between 0 and 1.
    """
    if items < 1:
        return None
    effect = float(special.ndtri(1 - alpha / 2) + special.ndtri(power)) * math.sqrt(2 / items)
    angle = 2 * math.asin(math.sqrt(accuracy))
    others = [math.sin(a / 2) ** 2 for a in (angle - effect, angle + effect) if 0 <= a <= math.pi]
    return max((abs(other - accuracy) for other in others), default=None)


def smallest_over_seeds(
    items: int, seeds: int, discordance: float, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Smallest mean difference for the paired t test over seeds, all runs on the same items.

    When items flip independently, the difference of two runs' accuracies has a standard
    deviation of sqrt(psi / n). Seeds that move many items at once vary more, so a real
    comparison may need a larger difference: after it, use the measured spread.
    """
    if seeds < 2 or items < 1 or discordance <= 0:
        return None
    return smallest_for_spread(math.sqrt(discordance / items), seeds, power, alpha)


def smallest_for_spread(spread: float, seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest mean difference for the paired t test, given the standard deviation of the differences."""
    effect = optimize.brentq(lambda e: t_test_power(e, seeds, alpha) - power, 1e-6, 1e3)
    return spread * float(effect)


def t_test_power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided one-sample (or paired) t test finds an effect, given in standard deviations.

    Averages the normal distribution of the mean over that of the estimated deviation. The
    noncentral t distribution says the same in one call, but SciPy's returns NaN for some of
    the large effects that two or three seeds need.
    """
    deviation = _deviations(n)
    limit, shift = special.stdtrit(n - 1, 1 - alpha / 2) * deviation, effect * math.sqrt(n)
    return float(np.mean(special.ndtr(shift - limit) + special.ndtr(-limit - shift)))


@functools.lru_cache(maxsize=1024)
def _deviations(n: int) -> np.ndarray:
    """Quantiles, evenly spaced, of the estimated standard deviation of n draws with deviation 1."""
    quantiles = (np.arange(1000) + 0.5) / 1000
    return np.asarray(np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1)))


def seeds_needed(difference: float, spread: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Seeds per method that a paired t test needs to find a mean difference of this size.

    Args:
        difference: the mean difference to find.
        spread: standard deviation of the differences over seeds.
        power: chance of finding it.
        alpha: chance of finding one that is not there.

    Returns:
        At least 2; None for a difference of zero, or one that more than 10,000 seeds would need.
    """
    if difference == 0:
        return None
    low, high = 2, 10_000
    if spread == 0:
        return low
    effect = abs(difference) / spread
    if t_test_power(effect, high, alpha) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if t_test_power(effect, middle, alpha) >= power else (middle + 1, high)
    return low
