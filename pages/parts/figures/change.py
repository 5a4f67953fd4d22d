"""Magnitude and direction: how far each weight matrix has moved from where it began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.grid import Cell, Grid, ceiling, percent
from pages.parts.figures.layers import ROLE_NAMES, Row, sections, title_of
from pages.parts.figures.palette import Style, Theme, colour, scale

LARGE, SMALL = 110.0, 25.0
"""Square pixels of a measured moment: of what is drawn first, and of what may come to lie upon it."""
Measure = Literal["relative", "magnitude", "direction"]
_TITLES = {
    "relative": "Relative change |W − W₀| / |W₀|",
    "magnitude": "Change of magnitude",
    "direction": "Change of direction",
}
_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "circle")


def scatter_chart(
    matrices: Sequence[Row], magnitude: np.ndarray, direction: np.ndarray, layers: int, step: int, theme: Theme
) -> Chart:
    """Change of direction across, change of magnitude up: one point per matrix, its shape and colour the role."""
    colours = scale(theme)
    roles = list(dict.fromkeys(row["role"] for row in matrices))
    series = []
    for place, role in enumerate(roles):
        mine = [i for i, row in enumerate(matrices) if row["role"] == role]
        # Of the sequential scale the middle is legible on both backgrounds.
        tone = colours[2 + round(6 * place / max(1, len(roles) - 1))]
        series.append(
            Series(
                ROLE_NAMES.get(role, role),
                direction[mine],
                magnitude[mine],
                tone,
                "points",
                marker=_MARKERS[place % len(_MARKERS)],
                labels=tuple(title_of(matrices[i], layers) for i in mine),
            )
        )
    return Chart(
        name="magnitude-direction",
        title=f"Magnitude against direction, after step {step:,}",
        x="change of direction (mean of 1 − cos)",
        y="change of magnitude (mean of | |w| − |w₀| |)",
        alt=correlation_sentence(magnitude, direction),
        series=tuple(series),
        x_format=".1~e",
        y_format=".1~e",
        height=360,
    )


def correlation_sentence(magnitude: np.ndarray, direction: np.ndarray) -> str:
    """How magnitude and direction go together over the matrices, as Pearson's r."""
    if len(magnitude) < 3 or np.ptp(magnitude) == 0 or np.ptp(direction) == 0:
        return "Too few matrices have moved to say how magnitude and direction go together."
    r = float(np.corrcoef(magnitude, direction)[0, 1])
    trend = "grow together" if r > 0.3 else "go against each other" if r < -0.3 else "are hardly related"
    return f"Magnitude and direction {trend} over {len(magnitude)} matrices: r = {r:+.2f}."


def change_grid(matrices: Sequence[Row], values: np.ndarray, measure: Measure, layers: int, step: int) -> Grid:
    """One measure of change per matrix, layers by roles."""
    titles = [title_of(row, layers) for row in matrices]
    write = percent if measure == "relative" else short

    def cell(i: int, row: int, column: int) -> Cell:
        text = write(float(values[i]))
        return Cell(row, column, float(values[i]), text, f"{measure} change {text}")

    top = int(np.argmax(values)) if len(values) else 0
    return Grid(
        name=f"change-{measure}",
        title=f"{_TITLES[measure]}, after step {step:,}",
        alt=f"Largest: {titles[top]} {write(float(values[top]))}." if len(values) else "No matrix is measured.",
        high=ceiling(float(values.max(initial=0))),
        unit=f"{measure} change",
        tick=write,
        sections=sections(matrices, layers, cell),
        table=lambda: pd.DataFrame({"matrix": [row["name"] for row in matrices], "where": titles, measure: values}),
    )


def path_chart(
    steps: np.ndarray, magnitude: np.ndarray, direction: np.ndarray, total_steps: int, style: Style, theme: Theme
) -> Chart:
    """How the mean changes grow, each relative to its last value: a point where it was measured, and nothing between.

    Args:
        steps: of the frames, (F,).
        magnitude, direction: float (F, M).
        total_steps: end of the axis.
        style: the method's.
        theme: of the browser.
    """
    m, d = magnitude.mean(axis=1), direction.mean(axis=1)
    other = "square" if style.marker != "square" else "circle"
    return Chart(
        name="change-path",
        title="Mean change, where it was measured",
        x="step",
        y="share of the last value",
        alt=f"Last: magnitude {m[-1]:.3g}, direction {d[-1]:.3g}; measured {len(m):,} times."
        if len(m)
        else "No change measured yet.",
        series=(
            Series(
                f"magnitude (last {m[-1]:.3g})", steps, m / (m[-1] or 1), style.colour, "points",
                marker=style.marker, sizes=np.full(len(m), LARGE),
            ),
            Series(
                f"direction (last {d[-1]:.3g})", steps, d / (d[-1] or 1), colour("baseline", theme), "points",
                marker=other, sizes=np.full(len(m), SMALL),
            ),
        ),
        x_range=(0, total_steps),
        y_format=".0%",
    )  # fmt: skip


def short(value: float) -> str:
    """A small positive number in a few characters."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
