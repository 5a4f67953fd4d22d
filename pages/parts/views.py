"""The views of one run, each drawn from a Moment: the same whether it is live, paused or played back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from engine.methods.registry import methods
from pages.parts import making, words
from pages.parts.figures.chart import Chart
from pages.parts.figures.grid import Grid
from pages.parts.making import Scene, Subject, made
from pages.parts.panel import Moment
from pages.parts.picture import draw_chart, draw_grid

__all__ = ["DRAWN", "Subject", "overview", "views_of"]


def views_of(method: str, kinds: set[str]) -> dict[str, str]:
    """Views that a run has, by link name, with their titles: those of its method or with frames."""
    inside = set(methods()[method].views) if method in methods() else set()
    found = {"overview": "Overview", "curves": "Loss and accuracy"}
    for kind, name, title in (
        ("mask", "masks", "Parameter masks"),
        ("plane", "plane", "Decision plane"),
        ("layers", "layers", "Layers that train"),
        ("path", "path", "Path through the layers"),
        ("trials", "trials", "Trials of layers"),
        ("scores", "scores", "Scores of layers or heads"),
        ("importance", "importance", "Importance of layers"),
        ("rank", "ranks", "Rank allocation"),
        ("change", "change", "Magnitude and direction"),
        ("bias", "biases", "Biases"),
    ):
        if kind in inside or kind in kinds:
            found[name] = title
    return found | {"cost": "Cost"}


def _chart(make: Callable[[Scene], Chart], moment: Moment, subject: Subject) -> None:
    draw_chart(made(make, moment, subject), live=moment.live, key=subject.key)


def _grid(make: Callable[[Scene], Grid | None], moment: Moment, subject: Subject, missing: str) -> None:
    grid = made(make, moment, subject)
    if grid is None:
        st.caption(missing)
    else:
        draw_grid(grid, key=subject.key)


def overview(moment: Moment, subject: Subject) -> None:
    """Accuracy and loss beside the most telling view inside."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        _chart(making.accuracy, moment, subject)
        _chart(making.loss, moment, subject)
    with right:
        if "mask" in moment.snapshot.frames:
            _mask(moment, subject)
            _chart(making.growth, moment, subject)
        elif "layers" in moment.snapshot.frames:
            layers(moment, subject)
        elif "rank" in moment.snapshot.frames:
            _rank(moment, subject)
            _chart(making.schedule, moment, subject)
        elif "change" in moment.snapshot.frames:
            _change(moment, subject)
        elif "bias" in moment.snapshot.frames:
            _biases(moment, subject)
        elif moment.snapshot.scalars:
            st.caption("This method changes no weight matrix, so there is nothing to see in one.")
        else:
            st.caption("The view inside the model appears with the first recorded frame.")


def curves(moment: Moment, subject: Subject) -> None:
    """Loss and accuracy, side by side."""
    left, right = st.columns(2, gap="large")
    with left:
        _chart(making.loss, moment, subject)
    with right:
        _chart(making.accuracy, moment, subject)


def masks(moment: Moment, subject: Subject) -> None:
    """Where the selected entries are, one matrix close up, and growth against the budget."""
    _mask(moment, subject)
    left, right = st.columns([3, 2], gap="large")
    with left:
        if subject.picked:
            missing = "Of this moment no mask is recorded entry by entry: it was too large, or has moved on since then."
        else:
            missing = "Click a square above to open that tensor: where in it are the selected entries?"
        _grid(making.matrix, moment, subject, missing)
    with right:
        _chart(making.growth, moment, subject)


def _mask(moment: Moment, subject: Subject) -> None:
    grid = made(making.mask, moment, subject)
    if grid is None:
        st.caption("The mask appears with the first recorded frame.")
        return
    names = [row["name"] for row in moment.snapshot.metas["layout"]]
    selected = str(names.index(subject.picked)) if subject.picked in names else ""
    pick = subject.pick
    draw_grid(
        grid,
        key=subject.key,
        selected=selected,
        on_pick=None if pick is None else lambda place: pick(names[int(place)]),
    )


def plane(moment: Moment, subject: Subject) -> None:
    """Chosen and other weights by value and gradient, with the line that parts them."""
    found = made(making.plane, moment, subject)
    about = moment.snapshot.metas.get("plane")
    if about and not about["sees"]:
        st.info(
            "This run's steps were captured as CUDA graphs, in which nobody can look at a gradient: there is no "
            "picture of them. To see the plane while it trains, launch it again with *Step execution* on *padded*.",
            icon=":material/visibility_off:",
        )
    if found is None:
        if not about and subject.over:
            st.caption("This run recorded no gradients.")
        elif not about or about["sees"]:
            st.caption("The plane appears with the first step that is looked at.")
        return
    chart, note = found
    draw_chart(chart, live=moment.live, key=subject.key)
    if note:
        st.caption(note)
    st.caption(
        "Every point is a bin, its size how many weights are in it, on a logarithmic scale. Values and gradients are "
        "those of the step before its update, gradients before clipping. Looking at them takes time: only as many "
        "steps are looked at as fit into the share of a run that all views together may cost."
    )


def layers(moment: Moment, subject: Subject) -> None:
    """Which layers train, over the steps."""
    _grid(making.turns, moment, subject, "Layers appear with the first recorded step.")


def path(moment: Moment, subject: Subject) -> None:
    """The path of the hidden states through the layers, and how far its corners stand out."""
    awaited = "The path appears when the examples have been looked at, before the first step."
    found = _finding(making.path, moment, subject, awaited)
    if found is None:
        return
    *charts, note = found
    for column, chart in zip(st.columns([3, 2], gap="large"), charts, strict=True):
        with column:
            draw_chart(chart, live=moment.live, key=subject.key)
    st.caption(note)


def trials(moment: Moment, subject: Subject) -> None:
    """The greedy search for layers."""
    awaited = "Trials appear when the last of them is over, before the first step."
    if found := _finding(making.trials, moment, subject, awaited):
        chart, note = found
        draw_chart(chart, live=moment.live, key=subject.key)
        st.caption(note)


def scores(moment: Moment, subject: Subject) -> None:
    """What was measured of each layer or head."""
    about = moment.snapshot.metas.get("findings", {}).get("scores")
    if about and moment.step < about["step"]:
        st.caption(f"Measured after step {about['step']:,}: at this moment nothing is known yet.")
    elif not about and not subject.over:
        st.caption("Scores appear as soon as they have been measured.")
    elif found := _finding(making.scores, moment, subject, ""):
        chart, note = found
        draw_chart(chart, live=moment.live, key=subject.key)
        st.caption(note)


def importance(moment: Moment, subject: Subject) -> None:
    """Importance of each layer, judgement by judgement."""
    if found := _finding(making.importance, moment, subject, "Importance appears with the first step."):
        grid, note = found
        draw_grid(grid, key=subject.key)
        st.caption(note)


def _finding(make: Callable[..., Any], moment: Moment, subject: Subject, awaited: str) -> Any:
    """What is made of a finding; where there is none, why: not yet, or the run is older or did not come that far."""
    found = made(make, moment, subject)
    if found is not None:
        return found
    if subject.over or moment.step:
        st.caption(
            "This run has no record of what its method measured before training: it is older than this view, or ended "
            "before that. Launch it again to see it."
        )
    else:
        st.caption(awaited)
    return None


def ranks(moment: Moment, subject: Subject) -> None:
    """Ranks now, over the run, and against the schedule, with a warning when they never move."""
    found = made(making.ranks, moment, subject)
    if found is None:
        st.caption("Ranks appear with the first recorded frame.")
        return
    timeline, warning = found
    if warning:
        st.warning(warning, icon=":material/warning:")
    left, right = st.columns(2, gap="large")
    with left:
        _rank(moment, subject)
    with right:
        _chart(making.schedule, moment, subject)
    draw_grid(timeline, key=subject.key)


def _rank(moment: Moment, subject: Subject) -> None:
    _grid(making.rank, moment, subject, "Ranks appear with the first recorded frame.")


def change(moment: Moment, subject: Subject) -> None:
    """Change of magnitude against change of direction, per matrix and over the steps."""
    found = made(making.changes, moment, subject)
    if found is None:
        st.caption("Changes appear with the first recorded frame.")
        return
    for column, chart in zip(st.columns(2, gap="large"), found, strict=True):
        with column:
            draw_chart(chart, live=moment.live, key=subject.key)
    _change(moment, subject)


def _change(moment: Moment, subject: Subject) -> None:
    _grid(making.change, moment, subject, "Changes appear with the first recorded frame.")


def biases(moment: Moment, subject: Subject) -> None:
    """Mean change of every bias vector, and what to make of the key biases."""
    _biases(moment, subject)
    architecture = moment.snapshot.metas.get("architecture", {})
    if architecture.get("key_bias_alive") is False:
        st.caption(
            "In this model a key bias adds the same number to all attention scores of a query, and the softmax cancels "
            "it. Its gradient is nothing but rounding, which AdamW may scale up to steps of the usual size: where key "
            "biases move here, no answer changes by it."
        )


def _biases(moment: Moment, subject: Subject) -> None:
    _grid(making.biases, moment, subject, "Changes appear with the first recorded frame.")


def cost(moment: Moment, subject: Subject) -> None:
    """Parameters, optimizer state, memory, time and energy."""
    summary = moment.snapshot.metas.get("summary", {})
    params = summary.get("params", subject.plan["params"])
    with st.grid(5, min_column_width=140):
        st.metric("Trained by the method", words.count(params["method"]), border=True, height="stretch")
        st.metric("Task head, counted apart", words.count(params["head"]), border=True, height="stretch")
        if summary:
            scalars = summary["optimizer_state_scalars"]
            st.metric("Optimizer state, scalars", words.count(scalars), border=True, height="stretch")
            st.metric("Peak memory", words.size(summary["peak_memory_bytes"]), border=True, height="stretch")
            st.metric("Trained result on disk", words.size(summary["bytes_on_disk"]), border=True, height="stretch")
    if summary.get("memory"):
        _memory(summary["memory"])
    if summary.get("latency"):
        _answer_times(summary["latency"])
    if "cost/power_watts" not in moment.snapshot.scalars:
        st.caption("This device reports no power, so no energy is shown.")
    for column, chart in zip(st.columns(2, gap="large") * 2, made(making.costs, moment, subject), strict=False):
        with column:
            draw_chart(chart, live=moment.live, key=subject.key)


def _memory(memory: dict[str, dict[str, int]]) -> None:
    """What held the peak of training, and the peak of each phase."""
    held = ", ".join(f"{name} {words.size(count)}" for name, count in memory["training"].items() if count)
    peaks = ", ".join(f"{name} {words.size(count)}" for name, count in memory["phases"].items())
    st.caption(
        f"Peak memory while training: {held}; activations are what the others leave of the measured peak. "
        f"Peak of each phase: {peaks}."
    )


def _answer_times(latency: dict[str, float]) -> None:
    """How long the finished model takes for one example, beside the base."""
    names = {"base": "The base model answers in", "trained": "This model, as it is", "merged": "Merged into the base"}
    with st.grid(5, min_column_width=140):
        for name, title in names.items():
            if name in latency:
                ratio = latency[name] / latency["base"]
                st.metric(
                    title, f"{latency[name]:.1f} ms", border=True, height="stretch", delta_color="off",
                    delta=f"{ratio:.2f} times the base" if name != "base" else None, delta_arrow="off",
                    help=f"Median of {latency['rounds']} answers to one example of {latency['tokens']} tokens, "
                    "asked in turns.",
                )  # fmt: skip


DRAWN: dict[str, Callable[[Moment, Subject], None]] = {
    "overview": overview, "curves": curves, "masks": masks, "plane": plane, "layers": layers, "path": path,
    "trials": trials, "scores": scores, "importance": importance, "ranks": ranks,
    "change": change, "biases": biases, "cost": cost,
}  # fmt: skip
