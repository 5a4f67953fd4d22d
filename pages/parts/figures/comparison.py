"""Several runs in one picture: their curves, and accuracy against what they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pages.parts.figures.chart import Chart, Scalars, Series, level, smoothed
from pages.parts.figures.curves import SMOOTHING
from pages.parts.figures.palette import Theme, colour, style_of


@dataclass(frozen=True)
class Curve:
    """One run's scalars with the name and method it is drawn by."""

    label: str
    method: str
    scalars: Scalars


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
    """One scalar of every run over steps; losses of batches are smoothed, measured accuracies are not."""
    is_accuracy = key.endswith("accuracy")
    series = []
    for curve in curves:
        x, y = curve.scalars.get(key, (np.empty(0), np.empty(0)))
        style = style_of(curve.method, theme)
        values = smoothed(y, SMOOTHING) if key.startswith("train/") else y
        series.append(Series(curve.label, x, values, style.colour, dash=style.dash))
    guide = [] if majority is None or not is_accuracy else [
        level("largest class", majority, colour("guide", theme), (2, 3))
    ]  # fmt: skip
    what = key.replace("/", " ") + (f", smoothed {SMOOTHING:g}" if key.startswith("train/") else "")
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


def pareto_chart(points: Sequence[Point], theme: Theme) -> Chart:
    """Test accuracy against trainable parameters of the method, on a log axis."""
    series = []
    for point in points:
        style = style_of(point.method, theme)
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
        x="parameters trained by the method, head apart (log)",
        y="test accuracy (higher is better)",
        alt=f"Highest: {best.label} at {best.accuracy:.1%} with {best.params:,}." if best else "No finished run.",
        series=tuple(series),
        log_x=True,
        x_format="~s",
        y_format=".1%",
        height=380,
    )
