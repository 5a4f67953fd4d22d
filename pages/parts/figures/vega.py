"""A Chart as a Vega-Lite spec: for live views, where only the data change and nothing is rebuilt."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from pages.parts.figures.chart import Chart, Kind, Series

Channel = dict[str, Any]
_LABEL, _LETTER, _SYMBOL, _COLUMNS = 260, 7, 40, 6
"""Of a legend: pixels of the longest label, of a letter, of a symbol with its gaps; most columns."""


@functools.lru_cache(maxsize=256)
def vega_spec(chart: Chart) -> dict[str, Any]:
    """The spec of a chart whose data frame is `chart.columns`, passed apart; made once for a chart."""
    layers = [*_lines(chart), *_guides(chart), *_points(chart), *_names(chart)]
    nothing = _layer("line", {"type": "line"}, {"x": _x(chart), "y": _y(chart)})
    return {"layer": layers or [nothing], "height": chart.height, "config": {"view": {"stroke": None}}}


def _lines(chart: Chart) -> list[dict[str, Any]]:
    """Lines, their markers, and unseen points that carry the tooltips."""
    lines = [series for series in chart.shown if series.kind == "line"]
    if not lines:
        return []
    place = {"x": _x(chart), "y": _y(chart)}
    look = {**_colours(chart), **place, "strokeDash": _dashes(chart)}
    # Vega-Lite's lines run from left to right, unless they are told to keep the order of the data.
    order = {"order": {"value": None}} if chart.spatial else {}
    drawn = _layer("line", {"type": "line", "clip": True}, look | order)
    # A shape channel would put its symbols into the legend of the lines, so each marker is a layer.
    markers = [
        _layer(
            "line",
            {"type": "point", "shape": series.marker, "size": 60, "filled": True, "clip": True, "color": series.colour},
            place,
            only=series.name,
        )
        for series in lines
        if series.marker
    ]
    hover = {**place, "tooltip": _tooltip(chart)}
    return [drawn, *markers, _layer("line", {"type": "point", "size": 60, "opacity": 0, "clip": True}, hover)]


def _guides(chart: Chart) -> list[dict[str, Any]]:
    kinds = {series.kind for series in chart.shown}
    look = {**_colours(chart), "strokeDash": _dashes(chart)}
    level = _layer("level", {"type": "rule", "strokeWidth": 1.5}, {**look, "y": _y(chart)})
    moment = _layer("moment", {"type": "rule", "strokeWidth": 1.5}, {**look, "x": _x(chart)})
    return [layer for kind, layer in (("level", level), ("moment", moment)) if kind in kinds]


def _points(chart: Chart) -> list[dict[str, Any]]:
    points = [series for series in chart.shown if series.kind == "points"]
    if not points:
        return []
    place = {"x": _x(chart), "y": _y(chart)}
    shapes = _by_series(chart.shown, [_shape(series) for series in chart.shown]) | _legend(chart)
    look = {**_colours(chart), "shape": shapes, "tooltip": _tooltip(chart)}
    if chart.sized:
        look["size"] = {"field": "size", "type": "quantitative", "scale": None}
    mark = {"type": "point", "size": 80, "filled": True, "clip": True} | ({"opacity": 1} if chart.named else {})
    drawn = _layer("points", mark, {**look, **place})
    if all(series.low is None for series in points):
        return [drawn]
    ends = {"x": _x(chart), "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    return [_layer("points", {"type": "rule", "strokeWidth": 2}, {**_colours(chart), **ends}), drawn]


def _names(chart: Chart) -> list[dict[str, Any]]:
    if not chart.named:
        return []
    look = {**_colours(chart), "text": {"field": "name"}, "x": _x(chart), "y": _y(chart)}
    return [_layer("points", {"type": "text", "dy": -13, "fontSize": 12}, look)]


def _layer(kind: Kind, mark: dict[str, Any], encoding: dict[str, Any], only: str = "") -> dict[str, Any]:
    rows: list[dict[str, Any]] = [{"filter": {"field": "kind", "equal": kind}}]
    if only:
        rows.append({"filter": {"field": "series", "equal": only}})
    return {"transform": rows, "mark": mark, "encoding": encoding}


def _by_series(shown: Sequence[Series], values: list[Any]) -> Channel:
    names = [series.name for series in shown]
    return {"field": "series", "type": "nominal", "scale": {"domain": names, "range": values}}


def _legend(chart: Chart) -> Channel:
    if len(chart.shown) < 2:
        return {"legend": None}
    only_points = all(series.kind == "points" for series in chart.shown)
    symbol: Channel = (
        {"symbolSize": 80} if chart.sized else {} if only_points else {"symbolType": "stroke", "symbolSize": 250}
    )
    longest = max(len(series.name) for series in chart.shown)
    each = min(_LABEL, _LETTER * longest) + _SYMBOL
    # Only the browser knows how wide the picture is: as many columns as fit.
    columns = {"expr": f"max(1, min({_COLUMNS}, floor(width / {each})))"}
    return {"legend": {"title": None, "orient": "top", "columns": columns, "labelLimit": _LABEL, **symbol}}


def _shape(series: Series) -> str:
    """In the legend a line or guide is a stroke."""
    return series.marker or ("circle" if series.kind == "points" else "stroke")


def _colours(chart: Chart) -> dict[str, Channel]:
    # Faint by the colour's alpha: an opacity scale would interpolate between its first and last value.
    colours = [series.colour + ("59" if series.faint else "") for series in chart.shown]
    return {"color": _by_series(chart.shown, colours) | _legend(chart)}


def _dashes(chart: Chart) -> Channel:
    return _by_series(chart.shown, [list(series.dash) or [1, 0] for series in chart.shown]) | _legend(chart)


def _tooltip(chart: Chart) -> list[Channel]:
    found: list[Channel] = [
        {"field": "series", "type": "nominal", "title": "Series"},
        {"field": "x", "type": "quantitative", "title": chart.x, "format": chart.x_format or ",.6~g"},
        {"field": "y", "type": "quantitative", "title": chart.y, "format": chart.y_format or ",.5~g"},
    ]
    if any(series.labels for series in chart.shown):
        found[1 : 2 if chart.whole_x else 1] = [{"field": "label", "type": "nominal", "title": "Which"}]
    return found


def _x(chart: Chart) -> Channel:
    number = chart.x_format or ("~s" if chart.log_x else ",~r")
    axis = {"grid": False, "tickCount": 6, "format": number} | ({"tickMinStep": 1} if chart.whole_x else {})
    return {"field": "x", "type": "quantitative", "title": chart.x, "axis": axis, "scale": _scale(chart, "x")}


def _y(chart: Chart) -> Channel:
    axis = {"format": chart.y_format} if chart.y_format else {}
    return {"field": "y", "type": "quantitative", "title": chart.y, "axis": axis, "scale": _scale(chart, "y")}


def _scale(chart: Chart, axis: str) -> Channel:
    if chart.spatial:
        return _equal_scale(chart, axis)
    ends = chart.x_range if axis == "x" else chart.y_range
    log = chart.log_x if axis == "x" else chart.log_y
    scale: Channel = {"type": "log"} if log else {"zero": False, "nice": ends is None}
    return scale | ({"domain": list(ends)} if ends else {})


def _equal_scale(chart: Chart, axis: str) -> Channel:
    """As many units to a pixel on either axis; only the browser knows how wide the picture is."""
    assert chart.x_range is not None, "a spatial chart has ranges"
    assert chart.y_range is not None, "a spatial chart has ranges"
    (left, right), (low, high) = chart.x_range, chart.y_range
    unit = f"max({right - left} / width, {high - low} / height)"
    middle, size = ((left + right) / 2, "width") if axis == "x" else ((low + high) / 2, "height")
    half = f"{unit} * {size} / 2"
    ends = {"domainMin": {"expr": f"{middle} - {half}"}, "domainMax": {"expr": f"{middle} + {half}"}}
    return {"zero": False, "nice": False, **ends}
