"""Several runs in one picture: their curves, and accuracy against what they train."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pages.parts.figures.chart import Chart, Scalars, Series, level, smoothed
from pages.parts.figures.curves import SMOOTHING
from pages.parts.figures.palette import Theme, colour, styles_together


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
    """Test accuracy against what the method trained, as counted at the end, on a log axis."""
    series = []
    for point, style in zip(points, styles_together([point.method for point in points], theme), strict=True):
        known = point.low is not None and point.high is not None
        series.append(
            Series(
                point.label,
                np.array([point.params]),
                np.array([point.accuracy]),
                style.colour,
                "points",
                marker=style.marker,
                low=np.array([point.low]) if known else None,
                high=np.array([point.high]) if known else None,
                labels=(point.label,),
            )
        )
    best = max(points, key=lambda point: point.accuracy, default=None)
    return Chart(
        name="accuracy-parameters",
        title="Test accuracy against trained parameters",
        x="trained parameters, as counted at the end (log)",
        y="test accuracy (higher is better)",
        alt=f"Highest: {best.label} at {best.accuracy:.1%} with {best.params:,}." if best else "No finished run.",
        series=tuple(series),
        log_x=True,
        x_format="~s",
        y_format=".1%",
        height=380,
    )
