"""Puts figures on a page: live by Vega-Lite, paused by Plotly, heat maps by the canvas component.

Each figure has its title, its takeaway in words, and below it the picture as PNG, its numbers as
CSV, and the same numbers as a table.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from engine.settings import ASSETS
from pages.parts.figures.chart import Chart
from pages.parts.figures.grid import Grid
from pages.parts.figures.palette import Theme
from pages.parts.figures.plotly import plotly_figure
from pages.parts.figures.vega import vega_spec

_HEAT = st.components.v2.component(
    "peftscope_heat",
    html='<div class="heat">\n<canvas role="img" tabindex="0"></canvas><div class="tip"></div>\n</div>',
    css=(ASSETS / "heat.css").read_text(encoding="utf-8"),
    js=(ASSETS / "heat.js").read_text(encoding="utf-8"),
)
_SAVE = st.components.v2.component(
    "peftscope_save",
    html='<button type="button">\nPNG\n</button>',
    css=(ASSETS / "save.css").read_text(encoding="utf-8"),
    js=(ASSETS / "save.js").read_text(encoding="utf-8"),
)


def theme() -> Theme:
    """The theme that this browser shows."""
    return "dark" if st.context.theme.type == "dark" else "light"


def draw_chart(chart: Chart, *, live: bool, key: str) -> None:
    """Draw a chart with its exports.

    Args:
        chart: what to draw.
        live: whether it is about to change: then nothing is rebuilt in the browser at an update, and
            no more is sent than the picture needs.
        key: distinguishes figures of one name on a page.
    """
    place = f"figure-{key}-{chart.name}"
    _title(chart, place)
    if live:
        st.vega_lite_chart(chart.columns, vega_spec(chart), key=place, alt=chart.alt)
    else:
        figure = plotly_figure(chart)
        st.plotly_chart(figure, key=place, alt=chart.alt, config={"displaylogo": False})
        st.caption(chart.alt)


def draw_grid(grid: Grid, *, key: str, selected: str = "", on_pick: Callable[[str], None] | None = None) -> None:
    """Draw a heat map with its exports; `on_pick` is told the id of a cell that is clicked."""
    place = f"figure-{key}-{grid.name}"

    def picked() -> None:
        choice = st.session_state[place].picked
        if on_pick and choice:
            on_pick(choice)

    _title(grid, place)
    _HEAT(key=place, data=grid.payload(theme(), selected), on_picked_change=picked)
    st.caption(grid.alt)


def _title(figure: Chart | Grid, place: str) -> None:
    """The title, which opens the exports.

    One element, and its content only while it is open: a live page draws this every second for every
    viewer, and each element has its price.
    """
    popover = st.popover(
        f"**{figure.title}**", icon=":material/download:", type="tertiary", key=f"{place}-export", on_change="rerun"
    )
    if popover.open:
        with popover:
            _exports(figure, place)


def _exports(figure: Chart | Grid, place: str) -> None:
    """The picture as PNG, its numbers as CSV, and the same numbers as a table."""
    with st.container(horizontal=True, vertical_alignment="center"):
        save = {"target": place, "name": figure.name, "title": figure.title}
        _SAVE(key=f"{place}-png", data=save, width="content")
        st.download_button(
            "CSV",
            data=lambda: figure.data().to_csv(index=False).encode(),
            file_name=f"{figure.name}.csv",
            mime="text/csv",
            key=f"{place}-csv",
            on_click="ignore",
        )
    st.dataframe(figure.data(), hide_index=True, alt=figure.alt, height=320, width=640)
