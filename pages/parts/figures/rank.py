"""Rank allocation: the rank of each matrix now, over the run, and against the budget's schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from engine.probes.rank import ever_moved
from pages.parts.figures.chart import Chart, Scalars, Series, shown_step
from pages.parts.figures.grid import Cell, Grid, Section
from pages.parts.figures.layers import Row, sections, title_of
from pages.parts.figures.palette import Style, Theme, colour

COLUMNS = 60
"""Most moments shown in the timeline."""


def rank_grid(matrices: Sequence[Row], frame: Mapping[str, np.ndarray], highest: int, layers: int, step: int) -> Grid:
    """Rank that each matrix was given, layers by roles; `highest` is at the top of the colour scale."""
    titles = [title_of(row, layers) for row in matrices]
    given, active = frame["allocated"], frame["active"]

    def cell(i: int, row: int, column: int) -> Cell:
        hover = f"rank {given[i]}, of which {active[i]} in effect"
        return Cell(row, column, float(given[i]), str(int(given[i])), hover)

    order = np.argsort(-given, kind="stable")
    extremes = f"Highest: {titles[order[0]]} {given[order[0]]}; lowest: {titles[order[-1]]} {given[order[-1]]}."
    return Grid(
        name="rank",
        title=f"Rank of each matrix, after step {step:,}",
        alt=f"{int(given.sum())} ranks over {len(given)} matrices. {extremes}",
        high=float(max(1, highest)),
        marks=(0.0, float(max(1, highest))),
        unit="rank given to the matrix",
        tick=lambda value: f"{value:.0f}",
        sections=sections(matrices, layers, cell),
        table=lambda: pd.DataFrame(
            {"matrix": [row["name"] for row in matrices], "where": titles, "rank": given, "in effect": active}
        ),
    )


def rank_timeline(matrices: Sequence[Row], steps: np.ndarray, given: np.ndarray, layers: int) -> Grid:
    """Rank per matrix over the run.

    Args:
        matrices: M rows.
        steps: (F,), the moments.
        given: int (F, M), the ranks that the matrices were given.
        layers: number of blocks.
    """
    kept = np.unique(np.linspace(0, len(steps) - 1, min(COLUMNS, len(steps))).round().astype(int))
    titles = [title_of(row, layers) for row in matrices]
    shown = given[kept]
    cells = tuple(
        Cell(m, f, float(shown[f, m]), "", f"after step {steps[k]:,}: rank {shown[f, m]}")
        for f, k in enumerate(kept)
        for m in range(len(titles))
    )
    every = max(1, len(kept) // 6)
    labels = tuple(f"{steps[k]:,}" if f % every == 0 else "" for f, k in enumerate(kept))
    changed = int((given != given[0]).any(axis=0).sum())
    return Grid(
        name="rank-timeline",
        title="Rank of each matrix over the steps",
        alt=f"{changed} of {len(titles)} matrices changed their rank so far.",
        high=float(max(1, given.max())),
        marks=(0.0, float(max(1, given.max()))),
        unit="rank given to the matrix",
        tick=lambda value: f"{value:.0f}",
        sections=(Section(tuple(titles), labels, cells, gaps=False),),
        table=lambda: pd.DataFrame(
            {"step": steps[kept], **{row["name"]: shown[:, m] for m, row in enumerate(matrices)}}
        ),
    )


def schedule_chart(scalars: Scalars, steps: int, style: Style, theme: Theme, at: int | None = None) -> Chart:
    """Total rank in effect against the schedule of the budget."""
    nothing = (np.empty(0), np.empty(0))
    x, y = scalars.get("rank/active", nothing)
    begun = x > 0  # before the first step every factor is zero by construction, and so no rank is in effect
    x, y = x[begun], y[begun]
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
            *([] if at is None else [shown_step(at, theme)]),
        ),
        x_range=(0, steps),
    )


def rank_warning(steps: np.ndarray, given: np.ndarray, total_steps: int, finished: bool) -> str:
    """A warning when ranks never move; empty while there is no reason for one.

    Args:
        steps: (F,), the moments of the frames.
        given: int (F, M), the ranks that the matrices were given.
        total_steps: of the run.
        finished: whether the run is over.
    """
    if len(steps) < 2 or ever_moved(list(given)):
        return ""
    if not finished and steps[-1] < 0.5 * total_steps:
        return ""
    when = "in the whole run" if finished else f"in the first {steps[-1]:,} of {total_steps:,} steps"
    return (
        f"The ranks never moved {when}: every matrix kept the rank it began with, so this is LoRA, not AdaLoRA. "
        "Usually the schedule leaves no steps for the budget to shrink: lower its warm-up, or train longer."
    )
