"""Overlap of masks: counted exactly, and set against what masks drawn by lot would share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from engine.errors import SpecError
from engine.stats.overlap import Mask, left_out, overlaps

SIZES = {"a": 1000, "b": 3000}


def mask(label: str, entries: dict[str, list[int]], base: str = "w", **more: Any) -> Mask:
    shapes = more.pop("shapes", {name: (size,) for name, size in SIZES.items()})
    return Mask(label, base, SIZES, shapes, {name: np.array(index) for name, index in entries.items()}, **more)


def drawn(label: str, count: int, rng: np.random.Generator) -> Mask:
    chosen = rng.choice(4000, count, replace=False)
    return mask(label, {"a": [i for i in chosen if i < 1000], "b": [i - 1000 for i in chosen if i >= 1000]})


def test_common_entries_are_counted_tensor_by_tensor() -> None:
    (pair,) = overlaps([mask("x", {"a": [1, 2, 3], "b": [5]}), mask("y", {"a": [3, 4], "b": [5, 6, 7]})])
    assert (pair.counts, pair.common) == ((4, 5), 2)
    assert pair.jaccard == pytest.approx(2 / 7)
    assert pair.expected == pytest.approx(4 * 5 / 4000)


def test_masks_by_lot_share_what_is_expected_of_them() -> None:
    rng = np.random.default_rng(0)
    found = [overlaps([drawn("x", 400, rng), drawn("y", 900, rng)])[0] for _ in range(300)]
    assert np.mean([pair.common for pair in found]) == pytest.approx(
        found[0].expected, abs=4 * found[0].spread / 300**0.5
    )
    assert np.std([pair.common for pair in found]) == pytest.approx(found[0].spread, rel=0.15)
    assert sum("about as many as by lot" in pair.sentence for pair in found) > 290


def test_agreeing_and_avoiding_masks_are_called_so() -> None:
    same = mask("x", {"b": list(range(300))})
    (agree,) = overlaps([same, mask("y", {"b": list(range(100, 400))})])
    (avoid,) = overlaps([mask("u", {"b": list(range(2000))}), mask("v", {"b": list(range(2000, 3000))})])
    assert "times as many as by lot" in agree.sentence
    assert "fewer than by lot (500)" in avoid.sentence
    (itself,) = overlaps([same, same])
    assert itself.jaccard == 1.0


def test_masks_of_different_models_are_refused() -> None:
    first = mask("x", {"a": [1]})
    for other in (mask("y", {"a": [1]}, base="other"), mask("y", {"a": [1]}, shapes={"a": (10, 100)})):
        with pytest.raises(SpecError, match="different tensors"):
            overlaps([first, other])
    with pytest.raises(SpecError, match="different tensors"):
        overlaps([first, mask("y", {}, shapes={"lora_A": (4, 8)})])


def test_pairs_that_do_not_compare_are_left_out() -> None:
    shapes = {"a": (10, 100), "b": (10, 100)}
    both = mask("both", {"a": [1, 2], "b": [3]}, shapes=shapes)
    one, other = (mask(name, {name: [1, 3]}, shapes={name: (10, 100)}) for name in ("a", "b"))
    pairs = overlaps([both, one, other])
    assert [(pair.first, pair.second) for pair in pairs] == [("both", "a"), ("both", "b")]
    assert (
        left_out([both, one, other], pairs)
        == "Left out, as their masks are of different tensors or models: 1 of the pairs."
    )
    assert left_out([both, one], pairs[:1]) is None


def test_within_tensors_only_what_goes_beyond_their_choice_is_left() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        one, two = (rng.choice(1000, 300, replace=False).tolist() for _ in range(2))
        found.append(overlaps([mask("x", {"a": one}), mask("y", {"a": two})])[0])
    assert found[0].within == pytest.approx(90)
    assert np.mean([pair.common for pair in found]) == pytest.approx(90, abs=2)
    assert found[0].expected == pytest.approx(300 * 300 / 4000)


def test_blocks_are_not_judged_by_what_single_entries_would_do() -> None:
    (pair,) = overlaps([mask("x", {"a": [1, 2]}, scattered=False), mask("y", {"a": [1, 2]}, scattered=False)])
    assert pair.spread is None
    assert "on average" in pair.sentence


def test_an_empty_mask_shares_nothing() -> None:
    (pair,) = overlaps([mask("x", {}), mask("y", {"a": [1]})])
    assert (pair.common, pair.jaccard, pair.expected) == (0, 0.0, 0.0)
    assert pair.sentence == "x and y share nothing: one of them is empty."
    assert "share nothing" in pair.sentence


def test_a_few_expected_are_judged_by_exact_chances() -> None:
    """Where a normal curve would misjudge them: none of 7 are fewer than by lot, 3 where half a one is are not more."""
    apart = overlaps([mask("x", {"b": list(range(140))}), mask("y", {"b": list(range(140, 340))})])[0]
    assert apart.expected == 7
    assert apart.p == pytest.approx(2 * hypergeom.cdf(0, 4000, 140, 200))
    assert "fewer than by lot (7)" in apart.sentence
    few = overlaps([mask("x", {"b": list(range(40))}), mask("y", {"b": list(range(40, 340))})])[0]
    assert "about as many as by lot (3); so small a number could not show" in few.sentence
    some = overlaps([mask("x", {"b": list(range(10))}), mask("y", {"b": [0, 1, 2, *range(1000, 1197)]})])[0]
    assert (some.common, some.expected) == (3, 0.5)
    assert some.common > some.expected + 3 * some.spread
    assert some.p == pytest.approx(2 * hypergeom.sf(2, 4000, 10, 200))
    assert "about as many as by lot (0.5)." in some.sentence


def test_agreement_on_tensors_is_told_from_agreement_within_them() -> None:
    rng = np.random.default_rng(2)
    by_lot = [mask(name, {"a": rng.choice(1000, 300, replace=False).tolist()}) for name in "xy"]
    (pair,) = overlaps(by_lot)
    assert "times as many as by lot; about as many as by lot within the tensors they chose (90)" in pair.sentence
    (same,) = overlaps([by_lot[0], by_lot[0]])
    assert "more than by lot within the tensors they chose (90)" in same.sentence
    split = [mask(name, {"a": list(range(start, start + 450)), "b": [1]}) for name, start in (("x", 0), ("y", 370))]
    (avoiding,) = overlaps(split)
    assert (avoiding.common, round(avoiding.expected)) == (81, 51)
    assert "times as many as by lot; fewer than by lot within the tensors they chose (203)" in avoiding.sentence


def test_chances_within_tensors_are_those_of_the_sum() -> None:
    both = {"a": list(range(20)), "b": list(range(60))}
    (pair,) = overlaps([mask("x", both), mask("y", {"a": list(range(19, 69)), "b": list(range(58, 158))})])
    a, b = hypergeom.pmf(np.arange(21), 1000, 20, 50), hypergeom.pmf(np.arange(61), 3000, 60, 100)
    chances = np.convolve(a, b)
    assert pair.common == 3
    assert pair.within_p == pytest.approx(min(1.0, 2 * min(chances[:4].sum(), chances[3:].sum())))


def test_many_pairs_are_corrected_for_their_number() -> None:
    apart = [mask("x", {"b": list(range(140))}), mask("y", {"b": list(range(140, 340))})]
    rng = np.random.default_rng(3)
    alone = overlaps(apart)[0].p
    assert overlaps([*apart, drawn("z", 400, rng), drawn("u", 400, rng)])[0].p == pytest.approx(6 * alone)


def test_masks_with_other_eligible_sizes_compare_by_the_larger() -> None:
    shapes = {"a": (100,)}
    one = Mask("x", "w", {"a": 10}, shapes, {"a": np.arange(10)})
    two = Mask("y", "w", {"a": 100}, shapes, {"a": np.arange(50)})
    for pair in (*overlaps([one, two]), *overlaps([two, one])):
        assert pair.expected == pytest.approx(5)
        assert pair.p == pytest.approx(2 * hypergeom.sf(9, 100, 10, 50), rel=1e-9)


@pytest.mark.timeout(20)
def test_large_masks_of_many_tensors_are_judged_at_once() -> None:
    rng = np.random.default_rng(0)
    names = [str(number) for number in range(100)]
    sizes, shapes = dict.fromkeys(names, 100_000), dict.fromkeys(names, (100_000,))
    masks = [
        Mask(label, "w", sizes, shapes, {name: rng.choice(100_000, 10_000, replace=False) for name in names})
        for label in "abcd"
    ]
    for pair in overlaps(masks):
        z = abs(pair.common - pair.expected) / pair.spread
        assert pair.within_p is not None
        assert (z < 3) == (pair.within_p > 0.01)
