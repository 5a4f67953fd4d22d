"""Bias vectors: how far each has moved, layers by kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pages.parts.figures.change import short
from pages.parts.figures.grid import Cell, Grid, ceiling
from pages.parts.figures.layers import Row, sections, title_of


def bias_grid(biases: Sequence[Row], means: np.ndarray, layers: int, step: int) -> Grid:
    """Mean size of the change per bias vector.

    Args:
        biases: rows of the map.
        means: float (B,), mean of |b - b0|.
        layers: number of blocks.
        step: the moment.
    """
    titles = [title_of(row, layers) for row in biases]

    def cell(i: int, row: int, column: int) -> Cell:
        text = short(float(means[i]))
        return Cell(row, column, float(means[i]), text, f"mean change {text}")

    top = int(np.argmax(means))
    return Grid(
        name="bias-change",
        title=f"Mean change of biases |b − b₀|, after step {step:,}",
        alt=f"Largest: {titles[top]} {short(float(means[top]))}.",
        high=ceiling(float(means.max(initial=0))),
        unit="mean change",
        tick=short,
        sections=sections(biases, layers, cell),
        table=lambda: pd.DataFrame({"bias": [row["name"] for row in biases], "where": titles, "mean": means}),
    )
