"""Intervals against statsmodels, SciPy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from engine.stats.intervals import (
    item_differences,
    mean_difference,
    mean_over_seeds,
    over_items,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (81, 263), (899, 1066), (1, 1)])
def test_wilson_is_statsmodels_wilson(correct: int, total: int) -> None:
    found = wilson(correct, total)
    low, high = proportion_confint(correct, total, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.n == total
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_wilson_of_newcombes_example() -> None:
    """81 of 263, method 3 of Newcombe (1998), table I: 0.2553 to 0.3662."""
    found = wilson(81, 263)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="right answers of"):
        wilson(correct, total)


def test_mean_over_seeds_is_the_t_interval() -> None:
    values = [0.841, 0.836, 0.848, 0.839, 0.844]
    found = mean_over_seeds(values)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(), abs=1e-12)
    assert (found.n, found.over) == (5, "seeds")


def test_one_seed_has_no_interval() -> None:
    found = mean_over_seeds([0.84])
    assert found.estimate == 0.84
    assert not found.known
    assert not found.excludes_zero
    assert found.to_json()["ci"] == [None, None]


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_mean_refuses_missing_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_over_seeds(values)


def test_paired_difference_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t(2) = 4.3027, half width 4.3027 / sqrt(3)."""
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert found.estimate == pytest.approx(2)
    assert found.high == pytest.approx(2 + 4.30265 / np.sqrt(3), abs=1e-4)
    with pytest.raises(ValueError, match="not paired"):
        paired_difference([1], [1, 2])


def test_bootstrap_over_items_agrees_with_the_normal_interval() -> None:
    random = np.random.default_rng(3)
    first, second = random.random((3, 2000)) < 0.85, random.random((3, 2000)) < 0.80
    difference = first.mean(axis=0) - second.mean(axis=0)
    half = stats.norm.ppf(0.975) * difference.std() / np.sqrt(2000)
    found = over_items(first, second)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)
    assert found == over_items(first, second), "the same data give the same limits"


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        found = over_items(random.random(400) < 0.8, random.random(400) < 0.7, resamples=400)
        held += found.low <= 0.1 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_items_that_never_differ_have_no_interval() -> None:
    same = np.array([True, False, True])
    assert not over_items(same, same).known


def test_item_differences_average_over_seeds() -> None:
    first = [[True, True, False], [True, False, False]]
    second = [[False, True, False], [False, True, True]]
    assert item_differences(first, second).tolist() == [1.0, -0.5, -0.5]
    with pytest.raises(ValueError, match="not the same items"):
        item_differences([True, False], [True])


def test_a_mean_difference_of_losses_is_the_paired_t_interval_over_items() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.exponential(size=40), rng.exponential(size=40)
    found = mean_difference(first, second)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(first - second).tconfint_mean(), abs=1e-12)
    assert (found.n, found.over) == (40, "items")
    assert not mean_difference([0.5], [0.25]).known
    for other in (second[:39], np.append(second[:39], np.inf)):
        with pytest.raises(ValueError, match="not of the same items, or not finite"):
            mean_difference(first, other)
