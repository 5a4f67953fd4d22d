"""Parameter masks: where a selective method puts its entries, how the mask grows, and one matrix close up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pages.parts.figures.chart import Chart, Scalars, Series, level, shown_step
from pages.parts.figures.grid import Cell, Dense, Grid, ceiling, decade, percent
from pages.parts.figures.layers import Row, sections, title_of
from pages.parts.figures.palette import Style, Theme, colour

MAP_ROWS, MAP_COLUMNS = 96, 144
"""Most blocks of a matrix's density map in each direction."""


def mask_grid(layout: Sequence[Row], counts: np.ndarray, layers: int, step: int) -> Grid:
    """Share of each tensor that is selected, layers by roles.

    Args:
        layout: the map's rows, as stored with the run.
        counts: int (R,), selected entries per row.
        layers: number of blocks.
        step: steps done at that moment.
    """
    eligible = np.array([max(1, row["eligible"]) for row in layout])
    share = counts / eligible
    titles = [title_of(row, layers) for row in layout]

    def cell(i: int, row: int, column: int) -> Cell:
        hover = f"{counts[i]:,} of {eligible[i]:,} selected ({percent(share[i])})"
        return Cell(row, column, float(share[i]), percent(share[i]).rstrip("%"), hover, str(i))

    order = np.argsort(-share)
    densest = "; ".join(f"{titles[i]} {percent(share[i])}" for i in order[:3] if counts[i])
    return Grid(
        name="mask",
        title=f"Share of each tensor selected, after step {step:,}",
        alt=f"{counts.sum():,} entries selected. Densest: {densest or 'none yet'}.",
        high=decade(float(share.max(initial=0))),
        unit="of the entries selected (per cent, logarithmic)",
        tick=percent,
        curve="log",
        sections=sections(layout, layers, cell),
        table=lambda: pd.DataFrame(
            {
                "tensor": [row["name"] for row in layout],
                "where": titles,
                "selected": counts,
                "eligible": eligible,
                "share": share,
            }
        ),
    )


def growth_chart(scalars: Scalars, budget: int, steps: int, style: Style, theme: Theme, at: int | None = None) -> Chart:
    """Selected entries against the budget, over steps."""
    nothing = (np.empty(0), np.empty(0))
    x, y = scalars.get("mask/selected", nothing)
    u, v = scalars.get("mask/unmoved", nothing)
    latest = f"{y[-1]:,.0f} of {budget:,} selected by step {x[-1]:,.0f}." if len(y) else "Nothing selected yet."
    dead = f" {v[-1]:,.0f} of them never received a gradient: budget that does nothing." if len(v) and v[-1] else ""
    marks = [] if at is None else [shown_step(at, theme)]
    return Chart(
        name="mask-growth",
        title="Growth of the mask against its budget",
        x="step",
        y="entries selected",
        alt=latest + dead,
        series=(
            level("budget", budget, colour("guide", theme), (4, 4)),
            Series("selected", x, y, style.colour),
            Series("of these without any gradient so far", u, v, colour("alert", theme), dash=(2, 3)),
            *marks,
        ),
        x_range=(0, steps),
        y_range=(0, 1.08 * max(1, budget)),
        y_format="~s",
    )


def matrix_grid(row: Row, layers: int, index: np.ndarray, moved: np.ndarray, until: int) -> Grid:
    """Density of one tensor's mask, in blocks.

    Args:
        row: the tensor's row of the map.
        layers: number of blocks of the model.
        index: int (n,), flat positions of its selected entries.
        moved: int (n,), the step at which each was selected; for the table.
        until: steps done at the moment shown.
    """
    shape = matrix_shape(row["shape"])
    block = block_of(shape)
    counts = block_counts(index, shape, block)
    full = block[0] * block[1]
    name = title_of(row, layers)
    rows, columns = np.divmod(np.asarray(index, dtype=np.int64), shape[1])
    used = len(np.unique(rows)), len(np.unique(columns))
    size = f"{row['shape'][0]:,}" if len(row["shape"]) == 1 else f"{shape[0]:,} x {shape[1]:,}"
    return Grid(
        name="matrix",
        title=f"{name[0].upper()}{name[1:]} ({size}), after step {until:,}",
        alt=f"{len(index):,} entries selected, in {used[0]:,} of {shape[0]:,} rows and {used[1]:,} of {shape[1]:,} "
        f"columns. Each square is {block[0]} x {block[1]} entries.",
        high=ceiling(float(counts.max(initial=0)) / full),
        unit=f"share selected in blocks of {block[0]} x {block[1]}",
        tick=percent,
        curve="linear",
        dense=Dense(counts, block, shape),
        table=lambda: pd.DataFrame({"row": rows, "column": columns, "selected at step": moved}),
    )


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor as a matrix: vectors are folded into rows of a nearly square picture."""
    if len(shape) >= 2:
        return int(shape[0]), int(np.prod(shape[1:]))
    size = int(shape[0]) if shape else 1
    width = max(w for w in range(1, int(size**0.5) + 1) if size % w == 0)
    return width, size // width


def block_of(shape: tuple[int, int]) -> tuple[int, int]:
    """Entries per block, (rows, columns): square blocks, so that the picture has the matrix's shape.

    Very long matrices, such as embeddings, would leave nothing to see; theirs are long as well.
    """
    down, across = -(-shape[0] // MAP_ROWS), -(-shape[1] // MAP_COLUMNS)
    if max(down, across) > 8 * min(down, across):
        return down, across
    return max(down, across), max(down, across)


def block_counts(index: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """Selected entries per block: int64 (ceil(rows / block rows), ceil(columns / block columns))."""
    high, wide = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    rows, columns = np.divmod(np.asarray(index, dtype=np.int64), shape[1])
    flat = (rows // block[0]) * wide + columns // block[1]
    return np.bincount(flat, minlength=high * wide).reshape(high, wide)


def entries_of(
    selection: Mapping[str, np.ndarray], tensor: int, count: int, done: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions and selection steps of one tensor's first `count` entries selected by step `done`, in order.

    With the count and the steps that a frame recorded this is the exact mask of the frame's moment,
    or fewer entries than `count` where the mask has moved on since then.
    """
    mine = np.flatnonzero((selection["tensor"] == tensor) & (selection["step"] <= done))[:count]
    return selection["index"][mine], selection["step"][mine]
