"""A Chart as a Plotly figure: for paused and finished views, with hover, zoom and selection."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from pages.parts.figures.chart import Chart, Series

_TOOLS, _EDGES, _ENTRY, _FREE_ENTRIES = 34, 36, 20, 4
"""Pixels: of the toolbar, of edges and axis titles, and of a line of the legend, of which so many lie within them."""


def plotly_figure(chart: Chart) -> go.Figure:
    """The figure of a chart, with the same colours, dashes and markers as the live spec."""
    figure = go.Figure()
    for series in chart.shown:
        if series.kind == "level":
            figure.add_trace(_level(chart, series))
        elif series.kind == "moment":
            figure.add_vline(x=float(series.x[0]), line=_line(series))
        else:
            figure.add_trace(_trace(chart, series))
    count = len(chart.shown)
    height = chart.height + _TOOLS + _EDGES + _ENTRY * max(1, count - _FREE_ENTRIES)
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": _TOOLS, "b": 8},
        # Below the toolbar, which appears at the top edge when the pointer is there; in a narrow column each entry
        # has a line of its own.
        legend={
            "orientation": "h", "x": 0, "yref": "container", "y": 1 - _TOOLS / height, "yanchor": "top",
            "maxheight": _ENTRY * (count + 1),
        },
        hovermode="closest" if _each_point_alone(chart) else "x unified",
        showlegend=count > 1,
    )  # fmt: skip
    figure.update_xaxes(title=chart.x, tickformat=chart.x_format or None, **_axis(chart, "x"))
    figure.update_yaxes(title=chart.y, tickformat=chart.y_format or None, **_axis(chart, "y"))
    if chart.spatial:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    return figure


def _each_point_alone(chart: Chart) -> bool:
    """Whether a point is told by itself, and not with the others at its x."""
    return chart.sized or chart.spatial or all(series.kind == "points" for series in chart.shown)


def _trace(chart: Chart, series: Series) -> go.Scatter:
    value = f"%{{y:{chart.y_format or '.5~g'}}}"
    label = "<b>%{hovertext}</b><br>" if series.labels else ""
    place = "" if chart.whole_x else " at %{x:,.6~g}"  # there the label says it, and points may stand side by side
    interval: dict[str, Any] = {}
    if series.low is not None and series.high is not None:
        interval["error_y"] = {
            "array": series.high - series.y,
            "arrayminus": series.y - series.low,
            "thickness": 2,
            "width": 4,
        }
    return go.Scatter(
        x=series.x,
        y=series.y,
        name=series.name,
        mode=_mode(series),
        line=_line(series) if series.kind == "line" else None,
        marker={
            "color": series.colour,
            "symbol": series.marker or "circle",
            "opacity": 1.0 if chart.named else None,  # points with sizes are else seen through
            "size": np.sqrt(series.sizes) if series.sizes is not None else 10 if series.kind == "points" else 7,
        },
        opacity=0.35 if series.faint else 1.0,
        # Labels come from the engine's own names; Plotly reads a subset of HTML in any text.
        hovertext=[_plain(label) for label in series.labels] or None,
        text=[_plain(name) for name in series.names] or None,
        textposition="top center",
        hovertemplate=f"{label}{value}" + (f"{place}<extra>{_plain(series.name)}</extra>" if label else ""),
        hoverinfo="skip" if series.faint else None,
        **interval,
    )


def _mode(series: Series) -> str:
    drawn = "markers" if series.kind == "points" else "lines+markers" if series.marker else "lines"
    return f"{drawn}+text" if series.names else drawn


def _level(chart: Chart, series: Series) -> go.Scatter:
    """A horizontal guide as a line over the whole width, so that the legend names it."""
    drawn = [other.x for other in chart.shown if other.kind in ("line", "points")]
    ends = chart.x_range or (min(map(min, drawn), default=0), max(map(max, drawn), default=1))
    value = float(series.y[0])
    return go.Scatter(x=ends, y=[value, value], name=series.name, mode="lines", line=_line(series), hoverinfo="skip")


def _line(series: Series) -> dict[str, Any]:
    dash = ",".join(f"{part}px" for part in series.dash) or "solid"
    return {"color": series.colour, "dash": dash, "width": 2}


def _axis(chart: Chart, axis: Literal["x", "y"]) -> dict[str, Any]:
    ends, log = (chart.x_range, chart.log_x) if axis == "x" else (chart.y_range, chart.log_y)
    if not log:
        whole = axis == "x" and chart.whole_x and ends is not None and ends[1] - ends[0] <= 16
        return ({"range": list(ends)} if ends else {}) | ({"dtick": 1} if whole else {})
    fixed = {"range": np.log10(ends).tolist()} if ends else {}
    return {"type": "log", "dtick": _tick(ends or _extent(chart, axis)), **fixed}


def _extent(chart: Chart, axis: Literal["x", "y"]) -> tuple[float, float]:
    """The smallest and largest number that has a place on a logarithmic axis."""
    found = np.concatenate([np.ones(0), *(getattr(series, axis) for series in chart.shown)])
    found = found[np.isfinite(found) & (found > 0)]
    return (float(found.min()), float(found.max())) if len(found) else (1.0, 10.0)


def _tick(ends: tuple[float, float]) -> str | int:
    """Ticks at each 1, 2 and 5 for two powers of ten, else at so many powers that about ten are left."""
    decades = float(np.log10(ends[1] / ends[0]))
    return "D2" if decades <= 2 else max(1, math.ceil(decades / 10))


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
