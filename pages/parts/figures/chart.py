"""One description of a line or point chart, drawn live by Vega-Lite and paused by Plotly with the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from pages.parts.figures.palette import Theme, colour

Scalars = dict[str, tuple[np.ndarray, np.ndarray]]
Kind = Literal["line", "points", "level", "moment"]


_COLUMNS = ("series", "kind", "x", "y", "low", "high", "label")
_WORDS = ("series", "kind", "label", "name")


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers that share a name, a colour and a way of drawing.

    Attributes:
        name: as in the legend.
        x, y: one value per point. A ``level`` is a horizontal guide (one `y`), a ``moment`` a
            vertical one (one `x`).
        colour: ``#rrggbb``.
        kind: how it is drawn.
        dash: line pattern in pixels; empty for solid.
        marker: shape of the points, in Vega's names; a line without one is drawn without points.
        faint: drawn in the background, for raw values behind their mean.
        low, high: ends of an interval around each `y`.
        labels: a text per point, shown on hover.
        names: a short text per point, written beside it.
        sizes: of points, in square pixels.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    kind: Kind = "line"
    dash: tuple[int, ...] = ()
    marker: str = ""
    faint: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    sizes: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.atleast_1d(np.asarray(self.x, dtype=float)))
        object.__setattr__(self, "y", np.atleast_1d(np.asarray(self.y, dtype=float)))

    @property
    def present(self) -> bool:
        """Whether there is at least one finite point to draw."""
        shown = self.x if self.kind == "moment" else self.y
        return bool(np.isfinite(shown).any())


def _rows(series: Series) -> dict[str, pa.Array]:
    """A series by column; what a guide does not have is missing."""
    length = max(len(series.x), len(series.y))

    def numbers(values: np.ndarray | None) -> pa.Array:
        return pa.nulls(length, pa.float64()) if values is None else pa.array(values, pa.float64(), from_pandas=True)

    return {
        "series": pa.repeat(series.name, length),
        "kind": pa.repeat(series.kind, length),
        "x": numbers(None if series.kind == "level" else series.x),
        "y": numbers(None if series.kind == "moment" else series.y),
        "low": numbers(series.low),
        "high": numbers(series.high),
        "label": pa.array(series.labels) if series.labels else pa.repeat("", length),
        "size": numbers(series.sizes),
        "name": pa.array(series.names) if series.names else pa.repeat("", length),
    }


def level(name: str, value: float | None, tone: str, dash: tuple[int, ...]) -> Series:
    """A horizontal guide; not drawn when there is no value."""
    height = np.array([np.nan if value is None else value])
    return Series(name, np.empty(0), height, tone, "level", dash=dash)


def shown_step(step: float, theme: Theme) -> Series:
    """A vertical guide at the step that the slider shows."""
    return Series("shown step", np.array([step]), np.empty(0), colour("guide", theme), "moment")


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure with axes.

    Attributes:
        name: stem of exported files and of widget keys.
        title: what it shows.
        x, y: axis titles with units; `y` says which direction is better where there is one.
        series: what is drawn, back to front.
        alt: the takeaway in words, for readers who do not see the picture.
        x_range: fixed ends of the x axis, so that a live chart fills instead of rescaling.
        y_range: fixed ends of the y axis.
        log_x, log_y: logarithmic axes.
        y_format, x_format: number formats of the axes (d3), for example ``"%"``.
        spatial: whether x and y are lengths in one space: both axes then have the same scale, with room for both
            ranges, and lines run from point to point in their order.
        whole_x: whether x has whole numbers only, so that its axis has no ticks between them.
        rows: makes the table for readers, where it holds more than what is drawn.
    """

    name: str
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    alt: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False
    y_format: str = ""
    x_format: str = ""
    height: int = 280
    spatial: bool = False
    whole_x: bool = False
    rows: Callable[[], pd.DataFrame] | None = None

    @cached_property
    def shown(self) -> tuple[Series, ...]:
        """The series that have something to draw."""
        return tuple(series for series in self.series if series.present)

    @cached_property
    def columns(self) -> pa.Table:
        """Every drawn number as rows: series, kind, x, y, low, high, label; size and name where points have them.

        An Arrow table, not a data frame: a live page sends one for each figure and viewer every second,
        and pandas would take ten times as long.
        """
        parts = [_rows(series) for series in self.shown]
        names = (*_COLUMNS, *(["size"] if self.sized else []), *(["name"] if self.named else []))
        empty = {name: pa.array([], pa.string() if name in _WORDS else pa.float64()) for name in names}
        return pa.table({name: pa.concat_arrays([empty[name], *(part[name] for part in parts)]) for name in names})

    @property
    def sized(self) -> bool:
        """Whether points have sizes."""
        return any(series.sizes is not None for series in self.shown)

    @property
    def named(self) -> bool:
        """Whether points have names beside them."""
        return any(series.names for series in self.shown)

    def table(self) -> pd.DataFrame:
        """The same rows as a data frame."""
        return self.columns.to_pandas()

    def data(self) -> pd.DataFrame:
        """The table for readers: its own, or what is drawn with empty columns left out and axes named."""
        if self.rows is not None:
            return self.rows()
        table = self.table().drop(columns=["kind", "size", "name"], errors="ignore")
        used = [c for c in table if c in ("series", "x", "y") or table[c].replace("", np.nan).notna().any()]
        return table[used].rename(columns={"x": self.x, "y": self.y})


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average without the bias of its start (as TensorBoard draws it).

    Args:
        values: the raw series.
        weight: from 0 (no smoothing) to below 1.
    """
    total, norm, result = 0.0, 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result[place] = total / norm
    return result
