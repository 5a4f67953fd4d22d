"""The verdict says no more than the runs allow."""

from __future__ import annotations

import numpy as np

from engine.stats.verdict import Candidate, verdict


def runs(name: str, accuracy: float, seeds: list[int], items: int = 1000, key: str = "test") -> Candidate:
    """Runs whose items are right independently, with exactly this share over all of them."""
    random = np.random.default_rng([sum(map(ord, name)), items])
    correct = {}
    for seed in seeds:
        right = np.arange(items) < round(items * (accuracy + 0.004 * (seed % 2)))
        correct[seed] = random.permutation(right)
    return Candidate(name, correct, key)


def test_a_large_difference_over_seeds_is_told_apart() -> None:
    found = verdict([runs("BitFit", 0.70, [0, 1, 2, 3]), runs("LoRA", 0.84, [0, 1, 2, 3])])
    (pair,) = found.comparisons
    assert pair.distinct
    assert (pair.better, pair.worse, pair.seeds) == ("LoRA", "BitFit", 4)
    assert "LoRA and BitFit can be told apart: LoRA is ahead by 14.0 points" in found.sentence
    assert "over 4 seeds" in found.sentence


def test_a_difference_over_seeds_that_new_items_would_not_keep_is_not_claimed() -> None:
    """Every seed favours the first by the same three items of 300: sure over seeds, nothing over items."""
    base = np.arange(300) < 240
    ahead = base.copy()
    ahead[[240, 241, 242, 0]] = [True, True, True, False]
    seeds = range(4)
    found = verdict([Candidate("a", dict.fromkeys(seeds, ahead)), Candidate("b", dict.fromkeys(seeds, base))])
    assert found.comparisons[0].difference.estimate > 0
    assert not found.comparisons[0].distinct


def test_equal_methods_are_not_told_apart_and_the_need_is_named() -> None:
    found = verdict([runs("LoRA", 0.840, [0, 1, 2]), runs("DoRA", 0.842, [0, 2, 1])])
    (pair,) = found.comparisons
    assert not pair.distinct
    assert "DoRA and LoRA cannot be told apart" in found.sentence
    assert pair.better == "DoRA"


def test_one_run_each_speaks_of_models_not_of_methods() -> None:
    found = verdict([runs("LoRA", 0.84, [0]), runs("BitFit", 0.70, [0])])
    assert found.comparisons[0].test.startswith("McNemar")
    assert found.sentence.startswith("The trained models of LoRA and BitFit can be told apart")
    assert any("which trained model is better" in text for text in found.caveats)


def test_runs_without_common_seeds_are_not_paired() -> None:
    found = verdict([runs("LoRA", 0.84, [0, 1, 2]), runs("BitFit", 0.70, [3, 4, 5])])
    assert found.comparisons[0].seeds == 0
    assert found.comparisons[0].test.startswith("Welch")
    assert any("share no seeds" in text for text in found.caveats)


def test_other_items_are_not_compared() -> None:
    found = verdict([runs("LoRA", 0.84, [0, 1]), runs("BitFit", 0.70, [0, 1], key="imdb")])
    assert found.comparisons == ()
    assert "different test items" in found.sentence


def test_many_pairs_are_corrected_and_counted() -> None:
    names = {"a": 0.84, "b": 0.839, "c": 0.70}
    found = verdict([runs(name, accuracy, [0, 1, 2, 3, 4]) for name, accuracy in names.items()])
    assert len(found.comparisons) == 3
    assert all(pair.adjusted >= pair.p for pair in found.comparisons)
    assert "2 of 3 pairs can be told apart" in found.sentence
    assert any("Holm" in text for text in found.caveats)
    assert found.to_json()["comparisons"][0]["distinct"] is True


def test_nothing_to_compare() -> None:
    assert "nothing to compare" in verdict([runs("LoRA", 0.84, [0])]).sentence
    assert verdict([]).comparisons == ()


def test_a_candidates_interval_is_over_seeds_or_else_over_items() -> None:
    assert runs("a", 0.8, [0]).interval.over == "items"
    assert runs("a", 0.8, [0, 1]).interval.over == "seeds"


def test_no_more_than_one_false_alarm_in_twenty() -> None:
    """Methods that are equal are told apart in at most about 5 % of comparisons."""
    random = np.random.default_rng(7)
    alarms = 0
    for _ in range(100):
        a, b = (Candidate(name, {s: random.random(300) < 0.8 for s in range(3)}) for name in "ab")
        alarms += verdict([a, b]).comparisons[0].distinct
    assert alarms / 100 <= 0.07
