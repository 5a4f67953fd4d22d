"""Power against statsmodels, published sample sizes and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_effectsize

from engine.stats.paired import mcnemar
from engine.stats.power import (
    detectable,
    seeds_needed,
    smallest_for_spread,
    smallest_over_seeds,
    smallest_paired,
    smallest_unpaired,
    t_test_power,
)


def test_paired_solves_connors_formula() -> None:
    """Put back into n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 with z 1.959964 and 0.841621."""
    found = smallest_paired(1066, 0.10)
    needed = (1.959964 * np.sqrt(0.1) + 0.841621 * np.sqrt(0.1 - found**2)) ** 2 / found**2
    assert needed == pytest.approx(1066, rel=1e-4)
    assert found == pytest.approx(0.0271, abs=1e-4)


def test_paired_difference_is_found_about_four_times_in_five() -> None:
    """Simulated: with the true difference at the limit, McNemar's exact test finds it a little under 80 %."""
    n, psi = 1066, 0.10
    d = smallest_paired(n, psi)
    random = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        draw = random.random(n)
        one = np.where(draw < (psi + d) / 2, True, np.where(draw < psi, False, True))
        other = np.where(draw < (psi + d) / 2, False, True)
        found += mcnemar(one, other).p < 0.05
    assert 0.68 <= found / 300 <= 0.86


def test_too_few_items_show_nothing() -> None:
    assert smallest_paired(20, 0.05) is None
    assert smallest_paired(1000, 0.0) is None
    assert "no difference at all" in detectable(20, discordance=0.05).sentence


def test_unpaired_by_cohens_table() -> None:
    """h = 0.20 needs 392 per group (Cohen 1988, table 6.4.1, 80 %); so 392 items show sin^2 at that angle."""
    accuracy = 0.5
    expected = np.sin((np.arcsin(np.sqrt(accuracy)) * 2 + 0.20) / 2) ** 2 - accuracy
    assert smallest_unpaired(392, accuracy) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("items", "accuracy"), [(100, 0.5), (1066, 0.84), (25_000, 0.9)])
def test_unpaired_is_statsmodels(items: int, accuracy: float) -> None:
    effect = NormalIndPower().solve_power(nobs1=items, alpha=0.05, power=0.8)
    found = smallest_unpaired(items, accuracy)
    lower = proportion_effectsize(accuracy, accuracy - found)
    upper = proportion_effectsize(accuracy + found, accuracy) if accuracy + found <= 1 else effect
    assert min(abs(lower - effect), abs(upper - effect)) < 1e-4


def test_unpaired_is_larger_than_paired() -> None:
    found = detectable(1066)
    assert found.unpaired > found.paired > 0


@pytest.mark.parametrize(("effect", "n"), [(0.3, 5), (1.0, 5), (2.0, 3), (10.0, 2), (0.1, 1000)])
def test_power_of_t_is_statsmodels(effect: float, n: int) -> None:
    assert t_test_power(effect, n) == pytest.approx(TTestPower().power(effect, n, 0.05), abs=1e-4)


def test_smallest_for_spread_inverts_the_power() -> None:
    found = smallest_for_spread(0.01, 5)
    assert found / 0.01 == pytest.approx(TTestPower().solve_power(nobs=5, alpha=0.05, power=0.8), abs=1e-3)


def test_more_seeds_show_less() -> None:
    found = [smallest_over_seeds(1066, seeds, 0.1) for seeds in (2, 3, 5, 10)]
    assert found == sorted(found, reverse=True)
    assert smallest_over_seeds(1066, 1, 0.1) is None
    assert detectable(1066, seeds=5).paired == found[2]


def test_seeds_needed() -> None:
    """An effect of 0.5 deviations needs 34 pairs (Cohen 1988)."""
    assert seeds_needed(0.01, 0.02) == 34
    assert seeds_needed(0.01, 0.0) == 2
    assert seeds_needed(0.0, 0.02) is None
    assert seeds_needed(1e-7, 0.02) is None


def test_sentence_says_what_was_assumed() -> None:
    sentence = detectable(1066, seeds=5).sentence
    assert "1,066 test items and 5 seeds" in sentence
    assert "80% power" in sentence
    assert detectable(1066).to_json()["sentence"].startswith("With 1,066 test items and one seed")
