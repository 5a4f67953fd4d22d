"""Several runs in one picture: their curves, and accuracy against what they train."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pages.parts.figures.chart import Chart, Scalars, Series, level, smoothed
from pages.parts.figures.curves import SMOOTHING
from pages.parts.figures.palette import Theme, colour, styles_together

_APART, _TOGETHER = 0.03, 0.2
"""How far points of one count stand apart, and all of them at most, as shares of the axis."""


@dataclass(frozen=True)
class Curve:
    """Scalars of one group of runs, the same spec with one or more seeds, and how it is drawn."""

    label: str
    method: str
    seeds: tuple[Scalars, ...]


@dataclass(frozen=True)
class Point:
    """One group of runs: the same spec with one or more seeds."""

    label: str
    method: str
    params: int
    accuracy: float
    low: float | None
    high: float | None


def overlay_chart(curves: Sequence[Curve], key: str, theme: Theme, majority: float | None = None) -> Chart:
    """One scalar of every group over steps, as the mean over its seeds.

    Losses of batches are smoothed. Validation is not: it is marked where it was measured, with the lowest and
    highest seed.
    """
    is_accuracy, batches = key.endswith("accuracy"), key.startswith("train/")
    series = []
    for curve, style in zip(curves, styles_together([curve.method for curve in curves], theme), strict=True):
        x, values = _together(curve.seeds, key)
        if batches:
            values = np.array([smoothed(row, SMOOTHING) for row in values])
        spread = len(values) > 1 and not batches
        series.append(
            Series(
                curve.label if len(values) == 1 else f"{curve.label}, mean of {len(values)} seeds",
                x,
                values.mean(axis=0),
                style.colour,
                dash=style.dash,
                marker="" if batches else style.marker,
                low=values.min(axis=0) if spread else None,
                high=values.max(axis=0) if spread else None,
            )
        )
    guide = [] if majority is None or not is_accuracy else [
        level("largest class", majority, colour("guide", theme), (2, 3))
    ]  # fmt: skip
    what = key.replace("/", " ") + (f", smoothed {SMOOTHING:g}" if batches else "")
    if any(one.low is not None for one in series):
        what += ", with lowest and highest seed"
    return Chart(
        name=f"compare-{key.replace('/', '-')}",
        title=what[0].upper() + what[1:],
        x="step",
        y="share right (higher is better)" if is_accuracy else "nats (lower is better)",
        alt="; ".join(f"{s.name} ends at {s.y[-1]:{'.1%' if is_accuracy else '.3g'}}" for s in series if len(s.y)),
        series=(*guide, *series),
        y_format=".0%" if is_accuracy else "",
        height=340,
    )


def _together(seeds: Sequence[Scalars], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which every seed has a value, float (n,), and these values, float (seeds, n)."""
    found = [scalars.get(key, (np.empty(0), np.empty(0))) for scalars in seeds]
    steps = functools.reduce(np.intersect1d, [x for x, _ in found])
    return steps, np.array([y[np.isin(x, steps)] for x, y in found])


def pareto_chart(points: Sequence[Point], theme: Theme) -> Chart:
    """Test accuracy against what the method trained, as counted at the end, on a log axis.

    Points of one count stand side by side, or their intervals would hide each other.
    """
    series, styles = [], styles_together([point.method for point in points], theme)
    ends = _ends(points)
    for point, place, style in zip(points, _side_by_side(points, ends), styles, strict=True):
        known = point.low is not None and point.high is not None
        series.append(
            Series(
                point.label,
                np.array([place]),
                np.array([point.accuracy]),
                style.colour,
                "points",
                marker=style.marker,
                low=np.array([point.low]) if known else None,
                high=np.array([point.high]) if known else None,
                labels=(f"{point.label}, {point.params:,} trained",),
            )
        )
    beside = len({point.params for point in points}) < len(points)
    best = max(points, key=lambda point: point.accuracy, default=None)
    return Chart(
        name="accuracy-parameters",
        title="Test accuracy against trained parameters",
        x="trained parameters, as counted at the end (log" + ("; equal counts side by side)" if beside else ")"),
        y="test accuracy (higher is better)",
        alt=f"Highest: {best.label} at {best.accuracy:.1%} with {best.params:,}." if best else "No finished run.",
        series=tuple(series),
        x_range=ends,
        log_x=True,
        whole_x=True,
        x_format="~s",
        y_format=".1%",
        height=380,
        rows=lambda: _table(points),
    )


def _ends(points: Sequence[Point]) -> tuple[float, float]:
    """Of a log axis that has room beside all counts; it shows two powers of ten at least."""
    counts = [math.log10(point.params) for point in points if point.params > 0] or [3.0]
    middle, half = (min(counts) + max(counts)) / 2, max(1.0, 0.6 * (max(counts) - min(counts)))
    return 10 ** (middle - half), 10 ** (middle + half)


def _side_by_side(points: Sequence[Point], ends: tuple[float, float]) -> list[float]:
    """Where each point stands on the log axis: its count, or near it where others have the same."""
    counts, decades = [point.params for point in points], math.log10(ends[1] / ends[0])
    places, seen = [], Counter[int]()
    for count in counts:
        same = counts.count(count)
        apart = min(_APART, _TOGETHER / same) * decades
        places.append(count * 10 ** (apart * (seen[count] - (same - 1) / 2)))
        seen[count] += 1
    return places


def _table(points: Sequence[Point]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "series": [point.label for point in points],
            "trained parameters": [point.params for point in points],
            "test accuracy": [point.accuracy for point in points],
            "low": [point.low for point in points],
            "high": [point.high for point in points],
        }
    )
