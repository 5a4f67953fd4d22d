"""A Chart as a Vega-Lite spec: for live views, where only the data change and nothing is rebuilt."""

from __future__ import annotations

from typing import Any

from pages.parts.figures.chart import Chart


def vega_spec(chart: Chart) -> dict[str, Any]:
    """The spec of a chart whose data frame is `chart.table()`, passed apart."""
    shown = chart.shown
    names = [series.name for series in shown]

    def by_series(values: list[Any]) -> dict[str, Any]:
        return {"field": "series", "type": "nominal", "scale": {"domain": names, "range": values}}

    symbol = {} if all(series.kind == "points" for series in shown) else {"symbolType": "stroke", "symbolSize": 250}
    legend = {"legend": {"title": None, "orient": "top", "columns": 2, "labelLimit": 260, **symbol}}
    colours = by_series([series.colour for series in shown]) | legend
    dashes = by_series([list(series.dash) or [1, 0] for series in shown]) | legend
    opacity = by_series([0.35 if series.faint else 1.0 for series in shown]) | legend
    shapes = by_series([series.marker or "circle" for series in shown]) | {"legend": None}
    x = {"field": "x", "type": "quantitative", "title": chart.x, "scale": _scale(chart.x_range, chart.log_x)}
    y = {"field": "y", "type": "quantitative", "title": chart.y, "scale": _scale(chart.y_range, chart.log_y)}
    y["axis"] = {"format": chart.y_format} if chart.y_format else {}
    x["axis"] = {"grid": False, "tickCount": 6, "format": chart.x_format or ("~s" if chart.log_x else ",~r")}
    tooltip = [
        {"field": "series", "type": "nominal", "title": "Series"},
        {"field": "x", "type": "quantitative", "title": chart.x, "format": ",.6~g"},
        {"field": "y", "type": "quantitative", "title": chart.y, "format": chart.y_format or ",.5~g"},
    ]
    if any(series.labels for series in shown):
        tooltip.insert(1, {"field": "label", "type": "nominal", "title": "Which"})
    marked = [series.name for series in shown if series.kind == "line" and series.marker]
    common = {"color": colours, "opacity": opacity}
    layers: list[dict[str, Any]] = [
        _layer("line", {"type": "line", "clip": True}, {**common, "x": x, "y": y, "strokeDash": dashes}),
        _layer("line", {"type": "point", "size": 60, "filled": True, "clip": True}, {
            "color": colours, "x": x, "y": y, "shape": shapes}),
        _layer("line", {"type": "point", "size": 60, "opacity": 0, "clip": True}, {"x": x, "y": y, "tooltip": tooltip}),
        _layer("level", {"type": "rule", "strokeWidth": 1.5}, {
            **common, "y": y, "strokeDash": dashes, "tooltip": [tooltip[0], tooltip[-1]]}),
        _layer("moment", {"type": "rule", "strokeWidth": 1.5}, {**common, "x": x, "strokeDash": dashes}),
        _layer("points", {"type": "rule", "strokeWidth": 2}, {
            **common, "x": x, "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}),
        _layer("points", {"type": "point", "size": 80, "filled": True, "clip": True}, {
            **common, "x": x, "y": y, "shape": shapes, "tooltip": tooltip}),
    ]  # fmt: skip
    layers[1]["transform"].append({"filter": {"field": "series", "oneOf": marked}})
    kinds = {series.kind for series in shown}
    intervals = any(series.low is not None for series in shown)
    kept = [layer for layer in layers if _needed(layer, kinds, intervals)]
    return {"layer": kept or layers[:1], "height": chart.height, "config": {"view": {"stroke": None}}}


def _layer(kind: str, mark: dict[str, Any], encoding: dict[str, Any]) -> dict[str, Any]:
    return {"transform": [{"filter": f"datum.kind == '{kind}'"}], "mark": mark, "encoding": encoding}


def _needed(layer: dict[str, Any], kinds: set[str], intervals: bool) -> bool:
    is_interval = "y2" in layer["encoding"]
    return any(f"'{kind}'" in layer["transform"][0]["filter"] for kind in kinds) and (intervals or not is_interval)


def _scale(ends: tuple[float, float] | None, log: bool) -> dict[str, Any]:
    scale: dict[str, Any] = {"type": "log"} if log else {"zero": False, "nice": ends is None}
    return scale | ({"domain": list(ends)} if ends else {})
