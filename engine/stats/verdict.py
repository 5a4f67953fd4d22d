"""Which of several methods can be told apart, in plain sentences.

A claim about methods must survive other seeds and other test items. For two methods with at
least two runs each, both are tested (t over seeds, paired where the seeds are the same; t over
items) and the larger of the two p-values counts. With one run each nothing is known of other
seeds: then McNemar's exact test speaks of these two trained models only, and the sentence says
so. Pairs that were tested together are corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from engine.stats.intervals import Interval, mean_over_seeds, over_items, paired_difference, wilson
from engine.stats.paired import holm, items_t, mcnemar, paired_t, welch_t
from engine.stats.power import seeds_needed, smallest_for_spread, smallest_paired


@dataclass(frozen=True)
class Candidate:
    """One method (or setting) with its runs.

    Attributes:
        name: as shown.
        correct: per seed, bool (n,): which test items were right.
        items: identifies the test items, such as the dataset's hash; candidates that differ in
            it are not compared.
    """

    name: str
    correct: Mapping[int, np.ndarray]
    items: str = ""

    @property
    def accuracies(self) -> list[float]:
        """One accuracy per seed, in the order of the seeds."""
        return [float(np.mean(self.correct[seed])) for seed in sorted(self.correct)]

    @property
    def interval(self) -> Interval:
        """Over seeds with two or more of them, else over the items of the one run."""
        if len(self.correct) > 1:
            return mean_over_seeds(self.accuracies)
        only = next(iter(self.correct.values()))
        return wilson(int(np.sum(only)), len(only))


@dataclass(frozen=True)
class Comparison:
    """Two candidates; the first has the higher mean accuracy.

    Attributes:
        better, worse: their names.
        difference: mean difference with its interval.
        test: which test was made.
        seeds: pairs of runs (0 when the seeds differ); 1 means that only two models were compared.
        p: its p-value; `adjusted`: after Holm's correction.
        distinct: whether they can be told apart.
        smallest: the smallest difference this comparison would probably have shown.
        needed: seeds per method that would probably show the measured difference.
    """

    better: str
    worse: str
    difference: Interval
    test: str
    seeds: int
    p: float
    smallest: float | None
    needed: int | None
    adjusted: float = 1.0
    distinct: bool = False

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        points = f"{100 * self.difference.estimate:.1f} points{_limits(self.difference)}"
        what = "The trained models of " if self.seeds == 1 else ""
        if self.distinct:
            return f"{what}{self.better} and {self.worse} can be told apart: {self.better} is ahead by {points}."
        text = f"{what}{self.better} and {self.worse} cannot be told apart: {points}"
        if self.smallest is not None:
            text += f"; a difference below {100 * self.smallest:.1f} would probably not have shown"
        if self.needed is not None and self.needed > self.seeds:
            text += f"; about {self.needed:,} seeds each would be needed to show this one"
        return text + "."


@dataclass(frozen=True)
class Verdict:
    """All pairs of a comparison, and what can be concluded.

    Attributes:
        sentence: one plain sentence for the whole comparison.
        comparisons: every pair, strongest evidence first.
        caveats: what the sentence does not cover.
    """

    sentence: str
    comparisons: tuple[Comparison, ...]
    caveats: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            {
                "better": c.better,
                "worse": c.worse,
                "difference": c.difference.to_json(),
                "test": c.test,
                "seeds": c.seeds,
                "p": c.p,
                "adjusted": c.adjusted,
                "distinct": c.distinct,
                "sentence": c.sentence,
            }
            for c in self.comparisons
        ]
        return {"sentence": self.sentence, "caveats": list(self.caveats), "comparisons": rows}


def verdict(candidates: Sequence[Candidate], alpha: float = 0.05) -> Verdict:
    """Compare every pair of candidates that were measured on the same items."""
    ready = [c for c in candidates if c.correct]
    pairs = [(a, b) for a, b in combinations(ready, 2) if a.items == b.items]
    compared = [_compare(a, b, alpha) for a, b in pairs]
    adjusted = holm([c.p for c in compared])
    done = [
        Comparison(**{**vars(c), "adjusted": q, "distinct": q < alpha}) for c, q in zip(compared, adjusted, strict=True)
    ]
    done.sort(key=lambda c: c.adjusted)
    return Verdict(_conclude(ready, done), tuple(done), tuple(_caveats(ready, done)))


def _compare(first: Candidate, second: Candidate, alpha: float) -> Comparison:
    """One pair, not yet corrected for the others."""
    if np.mean(first.accuracies) < np.mean(second.accuracies):
        first, second = second, first
    shared = sorted(set(first.correct) & set(second.correct))
    if len(shared) >= 2:
        return _by_seeds(first, second, shared, alpha)
    if min(len(first.correct), len(second.correct)) >= 2:
        return _by_welch(first, second)
    return _by_items(first, second, alpha)


def _by_seeds(first: Candidate, second: Candidate, shared: list[int], alpha: float) -> Comparison:
    one, other = (np.stack([c.correct[seed] for seed in shared]) for c in (first, second))
    over_seeds = paired_t(one.mean(axis=1).tolist(), other.mean(axis=1).tolist())
    difference = paired_difference(one.mean(axis=1).tolist(), other.mean(axis=1).tolist())
    if difference.estimate < 0:  # the shared seeds may order the two differently than all seeds do
        return _by_seeds(second, first, shared, alpha)
    spread = float(np.std(one.mean(axis=1) - other.mean(axis=1), ddof=1))
    return Comparison(
        better=first.name,
        worse=second.name,
        difference=difference,
        test="paired t over seeds, and t over items",
        seeds=len(shared),
        p=max(1.0 if over_seeds is None else over_seeds, items_t(one, other)),
        smallest=smallest_for_spread(spread, len(shared), alpha=alpha) if spread > 0 else None,
        needed=seeds_needed(difference.estimate, spread, alpha=alpha),
    )


def _by_welch(first: Candidate, second: Candidate) -> Comparison:
    one, other = (np.stack(list(c.correct.values())) for c in (first, second))
    over_seeds = welch_t(first.accuracies, second.accuracies)
    return Comparison(
        better=first.name,
        worse=second.name,
        difference=over_items(one, other),
        test="Welch's t over seeds, and t over items",
        seeds=0,
        p=max(1.0 if over_seeds is None else over_seeds, items_t(one, other)),
        smallest=None,
        needed=None,
    )


def _by_items(first: Candidate, second: Candidate, alpha: float) -> Comparison:
    shared = set(first.correct) & set(second.correct)
    seeds = [min(shared)] * 2 if shared else [min(first.correct), min(second.correct)]
    one, other = first.correct[seeds[0]], second.correct[seeds[1]]
    if np.mean(one) < np.mean(other):
        first, second, one, other = second, first, other, one
    found = mcnemar(one, other)
    return Comparison(
        better=first.name,
        worse=second.name,
        difference=over_items(one, other),
        test="McNemar's exact test of one run each",
        seeds=1,
        p=found.p,
        smallest=smallest_paired(len(one), found.discordance, alpha=alpha),
        needed=None,
    )


def _conclude(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> str:
    if len(candidates) < 2:
        return "There is nothing to compare yet: choose at least two methods with finished runs."
    if not comparisons:
        return "Nothing can be compared: these runs were measured on different test items."
    if len(comparisons) == 1:
        return comparisons[0].sentence
    told = [f"{c.better} from {c.worse}" for c in comparisons if c.distinct]
    if not told:
        return f"None of the {len(comparisons)} pairs can be told apart."
    if len(told) == len(comparisons):
        return f"All {len(comparisons)} pairs can be told apart."
    shown = ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")
    return f"{len(told)} of {len(comparisons)} pairs can be told apart ({shown}); the others cannot."


def _caveats(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> list[str]:
    found = []
    if len({c.items for c in candidates}) > 1:
        found.append("Runs on different test items are not compared with each other.")
    if any(c.seeds == 1 for c in comparisons):
        found.append("One run each says which trained model is better, not which method: other seeds may differ.")
    if any(c.seeds == 0 for c in comparisons):
        found.append("Some methods share no seeds, so their runs could not be paired.")
    if len(comparisons) > 1:
        found.append(f"{len(comparisons)} pairs were tested together; their p-values are corrected by Holm's method.")
    return found


def _limits(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    unit = "seeds" if interval.over == "seeds" else "items"
    low, high = 100 * interval.low, 100 * interval.high
    return f" ({interval.level:.0%} interval {low:.1f} to {high:.1f}, over {interval.n:,} {unit})"
