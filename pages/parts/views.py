"""The views of one run, each drawn from a Moment: the same whether it is live, paused or played back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from engine.methods.registry import methods
from pages.parts import words
from pages.parts.figures.change import change_grid, path_chart, scatter_chart
from pages.parts.figures.cost import cost_charts
from pages.parts.figures.curves import accuracy_chart, loss_chart
from pages.parts.figures.layers import Row, title_of
from pages.parts.figures.mask import entries_of, growth_chart, mask_grid, matrix_grid
from pages.parts.figures.palette import Style, style_of
from pages.parts.figures.rank import rank_grid, rank_timeline, rank_warning, schedule_chart
from pages.parts.panel import Moment
from pages.parts.picture import draw_chart, draw_grid, theme


@dataclass(frozen=True)
class Subject:
    """What the views know of a run beside its record.

    Attributes:
        key: distinguishes widgets.
        method: its name.
        plan: the plan as JSON data.
        over: whether it has ended.
        picked: name of the tensor whose mask is shown close up; empty for none.
        pick: told the name of a tensor that was clicked.
    """

    key: str
    method: str
    plan: dict[str, Any]
    over: bool
    picked: str = ""
    pick: Callable[[str], None] | None = None

    @property
    def style(self) -> Style:
        """How its method is drawn."""
        return style_of(self.method, theme())


def views_of(method: str, kinds: set[str]) -> dict[str, str]:
    """Views that a run has, by link name, with their titles: those of its method or with frames."""
    inside = set(methods()[method].views) if method in methods() else set()
    found = {"overview": "Overview", "curves": "Loss and accuracy"}
    for kind, name, title in (
        ("mask", "masks", "Parameter masks"),
        ("rank", "ranks", "Rank allocation"),
        ("change", "change", "Magnitude and direction"),
    ):
        if kind in inside or kind in kinds:
            found[name] = title
    return found | {"cost": "Cost"}


def overview(moment: Moment, subject: Subject) -> None:
    """Accuracy and loss beside the most telling view inside."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        _accuracy(moment, subject)
        _loss(moment, subject)
    with right:
        if "mask" in moment.snapshot.frames:
            _mask(moment, subject)
            _growth(moment, subject)
        elif "rank" in moment.snapshot.frames:
            _rank(moment, subject)
            _schedule(moment, subject)
        elif "change" in moment.snapshot.frames:
            _change(moment, subject)
        else:
            st.caption("This method changes no weights inside the model: it has no inside view.")


def curves(moment: Moment, subject: Subject) -> None:
    """Loss and accuracy, side by side."""
    left, right = st.columns(2, gap="large")
    with left:
        _loss(moment, subject)
    with right:
        _accuracy(moment, subject)


def _loss(moment: Moment, subject: Subject) -> None:
    chart = loss_chart(moment.scalars, moment.total, subject.style, theme(), moment.marked)
    draw_chart(chart, live=moment.live, key=subject.key)


def _accuracy(moment: Moment, subject: Subject) -> None:
    baseline = dict(moment.snapshot.metas.get("baseline", {}))
    steps, values = moment.snapshot.scalars.get("validation/accuracy", (np.empty(0), np.empty(0)))
    if len(steps) and steps[0] == 0:
        baseline.setdefault("step0", float(values[0]))
    chart = accuracy_chart(moment.scalars, baseline, moment.total, subject.style, theme(), moment.marked)
    draw_chart(chart, live=moment.live, key=subject.key)


def masks(moment: Moment, subject: Subject) -> None:
    """Where the selected entries are, one matrix close up, and growth against the budget."""
    counts = _mask(moment, subject)
    if counts is None:
        return
    layout: list[Row] = moment.snapshot.metas["layout"]
    left, right = st.columns([3, 2], gap="large")
    with left:
        _matrix(moment, subject, layout, counts)
    with right:
        _growth(moment, subject)


def _growth(moment: Moment, subject: Subject) -> None:
    budget = subject.plan["params"]["method"]
    chart = growth_chart(moment.scalars, budget, moment.total, subject.style, theme(), moment.marked)
    draw_chart(chart, live=moment.live, key=subject.key)


def _mask(moment: Moment, subject: Subject) -> np.ndarray | None:
    frame = moment.record.frame("mask", moment.step)
    layout = moment.snapshot.metas.get("layout")
    if frame is None or not layout:
        st.caption("The mask appears with the first recorded frame.")
        return None
    step, arrays = frame
    counts = arrays["count"]
    grid = mask_grid(layout, counts, _layers(moment), step)
    draw_grid(grid, key=subject.key, selected=subject.picked, on_pick=subject.pick)
    return counts


def _matrix(moment: Moment, subject: Subject, layout: list[Row], counts: np.ndarray) -> None:
    names = [row["name"] for row in layout]
    if subject.picked not in names:
        st.caption("Click a square above to open that tensor: where in it are the selected entries?")
        return
    place = names.index(subject.picked)
    index, steps = entries_of(moment.record.selection(), place, int(counts[place]))
    if len(index) < counts[place]:
        st.caption(f"{title_of(layout[place], _layers(moment))}: this mask was too large to record entry by entry.")
        return
    draw_grid(matrix_grid(layout[place], _layers(moment), index, steps, moment.step), key=subject.key)


def ranks(moment: Moment, subject: Subject) -> None:
    """Ranks now, over the run, and against the schedule, with a warning when they never move."""
    frames = moment.record.all_frames("rank")
    matrices = moment.snapshot.metas.get("rank_matrices")
    if not frames or not matrices:
        st.caption("Ranks appear with the first recorded frame.")
        return
    shown = [(step, arrays) for step, arrays in frames if step <= moment.step] or frames[:1]
    steps = np.array([step for step, _ in shown])
    given = np.stack([arrays["allocated"] for _, arrays in shown])
    warning = rank_warning(steps, given, moment.total, subject.over and moment.newest)
    if warning:
        st.warning(warning, icon=":material/warning:")
    left, right = st.columns(2, gap="large")
    with left:
        _rank(moment, subject)
    with right:
        _schedule(moment, subject)
    draw_grid(rank_timeline(matrices, steps, given, _layers(moment)), key=subject.key)


def _rank(moment: Moment, subject: Subject) -> None:
    frame = moment.record.frame("rank", moment.step)
    first = moment.record.frame("rank", 0)
    matrices = moment.snapshot.metas.get("rank_matrices")
    if frame is None or first is None or not matrices:
        return
    step, arrays = frame
    highest = int(max(first[1]["allocated"].max(), arrays["allocated"].max()))
    draw_grid(rank_grid(matrices, arrays, highest, _layers(moment), step), key=subject.key)


def _schedule(moment: Moment, subject: Subject) -> None:
    chart = schedule_chart(moment.scalars, moment.total, subject.style, theme(), moment.marked)
    draw_chart(chart, live=moment.live, key=subject.key)


def change(moment: Moment, subject: Subject) -> None:
    """Change of magnitude against change of direction, per matrix and over the steps."""
    frames = moment.record.all_frames("change")
    matrices = moment.snapshot.metas.get("matrices")
    if not frames or not matrices:
        st.caption("Changes appear with the first recorded frame.")
        return
    shown = [(step, arrays) for step, arrays in frames if step <= moment.step] or frames[:1]
    step, arrays = shown[-1]
    left, right = st.columns(2, gap="large")
    with left:
        scatter = scatter_chart(matrices, arrays["magnitude"], arrays["direction"], _layers(moment), step, theme())
        draw_chart(scatter, live=moment.live, key=subject.key)
    with right:
        steps = np.array([at for at, _ in shown])
        magnitude = np.stack([values["magnitude"] for _, values in shown])
        direction = np.stack([values["direction"] for _, values in shown])
        path = path_chart(steps, magnitude, direction, moment.total, subject.style)
        draw_chart(path, live=moment.live, key=subject.key)
    _change(moment, subject)


def _change(moment: Moment, subject: Subject) -> None:
    frame = moment.record.frame("change", moment.step)
    matrices = moment.snapshot.metas.get("matrices")
    if frame is None or not matrices:
        return
    step, arrays = frame
    draw_grid(change_grid(matrices, arrays["relative"], "relative", _layers(moment), step), key=subject.key)


def cost(moment: Moment, subject: Subject) -> None:
    """Parameters, optimizer state, memory, time and energy."""
    params = subject.plan["params"]
    summary = moment.snapshot.metas.get("summary", {})
    with st.grid(5, min_column_width=140):
        st.metric("Trained by the method", words.count(params["method"]), border=True, height="stretch")
        st.metric("Task head, counted apart", words.count(params["head"]), border=True, height="stretch")
        if summary:
            scalars = summary["optimizer_state_scalars"]
            st.metric("Optimizer state, scalars", words.count(scalars), border=True, height="stretch")
            st.metric("Peak memory", words.size(summary["peak_memory_bytes"]), border=True, height="stretch")
            st.metric("Trained result on disk", words.size(summary["bytes_on_disk"]), border=True, height="stretch")
    charts = cost_charts(moment.scalars, moment.total, subject.style)
    if "cost/power_watts" not in moment.snapshot.scalars:
        st.caption("This device reports no power, so no energy is shown.")
    for column, chart in zip(st.columns(2, gap="large") * 2, charts, strict=False):
        with column:
            draw_chart(chart, live=moment.live, key=subject.key)


def _layers(moment: Moment) -> int:
    return int(moment.snapshot.metas["architecture"]["layers"])


DRAWN: dict[str, Callable[[Moment, Subject], None]] = {
    "overview": overview, "curves": curves, "masks": masks, "ranks": ranks, "change": change, "cost": cost,
}  # fmt: skip
