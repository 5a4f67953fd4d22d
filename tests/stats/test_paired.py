"""Paired tests against statsmodels, SciPy and textbook examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from engine.stats.paired import holm, items_t, mcnemar, paired_t, welch_t


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.repeat([True, True, False, False], [both, first, second, neither])
    other = np.repeat([True, False, True, False], [both, first, second, neither])
    return one, other


@pytest.mark.parametrize("counts", [(101, 121, 59, 33), (30, 9, 2, 4), (5, 1, 0, 0), (800, 61, 40, 165)])
def test_mcnemar_is_statsmodels_exact_mcnemar(counts: tuple[int, int, int, int]) -> None:
    found = mcnemar(*outcomes(*counts))
    both, first, second, neither = counts
    assert (found.both, found.only_first, found.only_second, found.neither) == counts
    expected = statsmodels_mcnemar([[both, first], [second, neither]], exact=True).pvalue
    assert found.p == pytest.approx(expected, rel=1e-12)


def test_mcnemar_by_hand() -> None:
    """Nine against two discordant items: 2 (C(11,0) + C(11,1) + C(11,2)) / 2^11 = 134 / 2048."""
    found = mcnemar(*outcomes(30, 9, 2, 4))
    assert found.p == pytest.approx(134 / 2048)
    assert found.discordance == pytest.approx(11 / 45)


def test_mcnemar_of_equal_answers_finds_nothing() -> None:
    assert mcnemar(*outcomes(10, 0, 0, 5)).p == 1.0


def test_mcnemar_refuses_other_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True, False], [True])


def test_paired_t_of_students_sleep_data() -> None:
    """Student (1908), hours of extra sleep under two drugs: t = 4.0621 with 9 degrees, p = 0.002833."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    other = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert paired_t(one, other) == pytest.approx(0.002833, abs=5e-7)


def test_paired_t_without_spread() -> None:
    assert paired_t([0.5, 0.75], [0.25, 0.5]) == 0.0
    assert paired_t([0.5, 0.75], [0.5, 0.75]) == 1.0
    assert paired_t([0.5], [0.4]) is None


def test_welch_t_is_scipys() -> None:
    one, other = [0.84, 0.85, 0.83], [0.80, 0.83, 0.79, 0.82]
    assert welch_t(one, other) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    assert welch_t([0.8], [0.7, 0.7]) is None
    assert welch_t([0.5, 0.5], [0.25, 0.25]) == 0.0


def test_items_t_is_near_mcnemar_with_one_seed() -> None:
    one, other = outcomes(800, 61, 40, 165)
    assert items_t(one, other) == pytest.approx(mcnemar(one, other).p, abs=0.015)
    assert items_t(one, one) == 1.0


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.04 times 3, 2, 1, and never falling."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_is_statsmodels_holm() -> None:
    p_values = np.random.default_rng(2).random(40) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])
