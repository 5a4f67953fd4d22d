"""Rank allocation: the rank of each matrix now, over the run, and against the budget's schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.grid import Cell, Grid, Section
from pages.parts.figures.layers import Row, sections, title_of
from pages.parts.figures.mask import Scalars, moment
from pages.parts.figures.palette import Style, Theme, colour

COLUMNS = 60
"""Most moments shown in the timeline."""


def rank_grid(matrices: Sequence[Row], active: np.ndarray, highest: int, layers: int, step: int) -> Grid:
    """Rank in effect per matrix, layers by roles; `highest` is the rank at the top of the scale."""
    titles = [title_of(row, layers) for row in matrices]

    def cell(i: int, row: int, column: int) -> Cell:
        return Cell(row, column, float(active[i]), str(int(active[i])), f"{titles[i]}\nrank {int(active[i])}")

    order = np.argsort(-active, kind="stable")
    extremes = f"Highest: {titles[order[0]]} {active[order[0]]}; lowest: {titles[order[-1]]} {active[order[-1]]}."
    return Grid(
        name="rank",
        title=f"Rank of each matrix, after step {step:,}",
        alt=f"{int(active.sum())} ranks over {len(active)} matrices. {extremes}",
        high=float(max(1, highest)),
        marks=(0.0, float(max(1, highest))),
        unit="rank in effect",
        tick=lambda value: f"{value:.0f}",
        sections=sections(matrices, layers, cell),
        table=pd.DataFrame({"matrix": [row["name"] for row in matrices], "where": titles, "rank": active}),
    )


def rank_timeline(matrices: Sequence[Row], steps: np.ndarray, active: np.ndarray, layers: int) -> Grid:
    """Rank per matrix over the run.

    Args:
        matrices: M rows.
        steps: (F,), the moments.
        active: int (F, M), ranks in effect.
        layers: number of blocks.
    """
    kept = np.unique(np.linspace(0, len(steps) - 1, min(COLUMNS, len(steps))).round().astype(int))
    titles = [title_of(row, layers) for row in matrices]
    shown = active[kept]
    cells = tuple(
        Cell(m, f, float(shown[f, m]), "", f"{titles[m]}\nafter step {steps[k]:,}: rank {shown[f, m]}")
        for f, k in enumerate(kept)
        for m in range(len(titles))
    )
    every = max(1, len(kept) // 6)
    labels = tuple(f"{steps[k]:,}" if f % every == 0 else "" for f, k in enumerate(kept))
    changed = int((active != active[0]).any(axis=0).sum())
    table = pd.DataFrame(shown, columns=[row["name"] for row in matrices])
    table.insert(0, "step", steps[kept])
    return Grid(
        name="rank-timeline",
        title="Rank of each matrix over the steps",
        alt=f"{changed} of {len(titles)} matrices changed their rank so far.",
        high=float(max(1, active.max())),
        marks=(0.0, float(max(1, active.max()))),
        unit="rank in effect",
        tick=lambda value: f"{value:.0f}",
        sections=(Section(tuple(titles), labels, cells, gaps=False),),
        table=table,
    )


def schedule_chart(scalars: Scalars, steps: int, style: Style, theme: Theme, at: int | None = None) -> Chart:
    """Total rank in effect against the schedule of the budget."""
    nothing = (np.empty(0), np.empty(0))
    x, y = scalars.get("rank/active", nothing)
    u, v = scalars.get("rank/budget", nothing)
    latest = f"{y[-1]:,.0f} ranks in effect at step {x[-1]:,.0f}." if len(y) else "No ranks yet."
    return Chart(
        name="rank-schedule",
        title="Total rank against the budget's schedule",
        x="step",
        y="ranks in all matrices together",
        alt=latest + (f" The budget is {v[-1]:,.0f}." if len(v) else ""),
        series=(
            Series("budget", u, v, colour("guide", theme), dash=(4, 4)),
            Series("in effect", x, y, style.colour),
            *([] if at is None else [moment(at, theme)]),
        ),
        x_range=(0, steps),
    )


def rank_warning(steps: np.ndarray, active: np.ndarray, total_steps: int, finished: bool) -> str:
    """A warning when ranks never move; empty while there is no reason for one.

    Args:
        steps: (F,), the moments of the frames.
        active: int (F, M), ranks in effect.
        total_steps: of the run.
        finished: whether the run is over.
    """
    if len(steps) < 2 or (active != active[0]).any():
        return ""
    if not finished and steps[-1] < 0.5 * total_steps:
        return ""
    when = "in the whole run" if finished else f"in the first {steps[-1]:,} of {total_steps:,} steps"
    return (
        f"The ranks never moved {when}: every matrix kept the rank it began with, so this is LoRA, not AdaLoRA. "
        "Usually the schedule leaves no steps for the budget to shrink: lower its warm-up, or train longer."
    )
