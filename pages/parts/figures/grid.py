"""One description of a heat map: labelled sections of cells, or one dense map. Drawn by the heat component."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from pages.parts.figures.palette import Theme, colour, scale


@dataclass(frozen=True)
class Cell:
    """One rectangle.

    Attributes:
        row, column: its place in the section.
        value: what the colour shows; None for a cell that is there but has no value.
        text: short reading drawn inside when there is room.
        hover: full reading, without the labels of row and column, which the component adds.
        id: what a click reports, short because it is sent often; empty for cells that cannot be opened.
    """

    row: int
    column: int
    value: float | None
    text: str
    hover: str
    id: str = ""


@dataclass(frozen=True)
class Section:
    """Cells under common column titles.

    Attributes:
        rows, columns: labels.
        groups: titles above the columns with the number of columns each spans; empty for none.
        cells: in any order; places without a cell stay blank.
        gaps: whether cells are drawn apart; a timeline draws them joined.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    groups: tuple[tuple[str, int], ...] = ()
    gaps: bool = True


@dataclass(frozen=True)
class Dense:
    """A matrix summed over blocks, without labels per cell.

    Attributes:
        counts: int array (rows, columns) of selected entries per block.
        block: entries of the matrix per block, (rows, columns).
        shape: of the whole matrix.
    """

    counts: np.ndarray
    block: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Grid:
    """A heat map.

    Attributes:
        name, title, alt: as for a Chart.
        sections: stacked from top to bottom; or `dense`.
        high: the value at the top of the colour scale.
        unit: title of the colour bar.
        tick: how a number of the colour bar is written.
        curve: ``log`` spans four powers of ten below `high`, for shares; the colour bar's ticks tell the truth.
        marks: where the colour bar has ticks, instead of the usual places.
        table: makes the same numbers as rows; most viewers never ask for them.
    """

    name: str
    title: str
    alt: str
    high: float
    unit: str
    tick: Callable[[float], str]
    table: Callable[[], pd.DataFrame]
    sections: tuple[Section, ...] = ()
    dense: Dense | None = None
    curve: Literal["linear", "log"] = "linear"
    marks: tuple[float, ...] = ()

    def data(self) -> pd.DataFrame:
        """The table for readers."""
        return self.table()

    def payload(self, theme: Theme, selected: str = "") -> dict[str, Any]:
        """What the component draws: small plain lists only."""
        return {**_payload(self, theme), "selected": selected}


def ceiling(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten: a scale's end that seldom moves while values grow."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def decade(value: float) -> float:
    """The next power of ten, at most one: the end of a logarithmic scale of shares."""
    return min(1.0, 10.0 ** math.ceil(math.log10(value) - 1e-9)) if value > 0 else 0.01


def percent(share: float) -> str:
    """A share as a percentage with the digits it needs."""
    value = 100 * share
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if abs(value) < 10 else 0
    return f"{value:.{min(digits, 4)}f}".rstrip("0").rstrip(".") + "%" if digits else f"{value:.0f}%"


@functools.lru_cache(maxsize=256)
def _payload(grid: Grid, theme: Theme) -> dict[str, Any]:
    """The part of a payload that all viewers share."""
    shares = (1e-4, 1e-3, 1e-2, 0.1, 1) if grid.curve == "log" else (0, 0.25, 0.5, 1)
    ticks = grid.marks or [grid.high * share for share in shares]
    return {
        "title": grid.title,
        "alt": grid.alt,
        "sections": [_plain_section(section) for section in grid.sections],
        "dense": _plain_dense(grid.dense) if grid.dense else None,
        "scale": {
            "high": grid.high,
            "curve": grid.curve,
            "unit": grid.unit,
            "ticks": [[value, grid.tick(value)] for value in ticks],
            "colours": list(scale(theme)),
            "empty": colour("empty", theme),
        },
    }


def _plain_section(section: Section) -> dict[str, Any]:
    return {
        "rows": section.rows,
        "columns": section.columns,
        "groups": section.groups,
        "gaps": section.gaps,
        "cells": [[c.row, c.column, _rounded(c.value), c.text, c.hover, c.id] for c in section.cells],
    }


def _plain_dense(dense: Dense) -> dict[str, Any]:
    return {
        "counts": dense.counts.ravel().tolist(),
        "height": int(dense.counts.shape[0]),
        "width": int(dense.counts.shape[1]),
        "block": dense.block,
        "shape": dense.shape,
    }


def _rounded(value: float | None) -> float | None:
    """Digits enough for a colour."""
    return None if value is None else float(f"{value:.4g}")
