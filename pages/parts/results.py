"""What a finished run achieved, what it was, and how to take it away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.export.formats import command_of
from engine.spec import parse_spec
from engine.store.run_row import RunRow
from pages.parts import words
from pages.parts.figures.confusion import confusion_grid
from pages.parts.picture import draw_grid


def summary_metrics(summary: dict[str, Any], curve: dict[str, int] | None) -> None:
    """The numbers that everyone asks for first, each with what it was measured on.

    Args:
        summary: of the run.
        curve: of how many validation examples its curves are; None where it is not on record.
    """
    accuracy = summary["accuracy"]
    ends = accuracy["ci95"]
    with st.grid(5, min_column_width=140):
        st.metric(
            "Test accuracy", words.points(accuracy["test"]), border=True, height="stretch",
            delta=f"95 %: {100 * ends[0]:.1f} to {100 * ends[1]:.1f}", delta_color="off", delta_arrow="off",
            help="Measured once, on the last weights. Below, the interval over test items; other seeds vary more.",
        )  # fmt: skip
        st.metric(
            "Validation accuracy", words.points(accuracy["validation"]), border=True, height="stretch",
            delta=f"at the end, all {curve['of']:,}" if curve else "at the end, on all", delta_color="off",
            delta_arrow="off",
            help="Of the last weights, on the whole validation set. The curve is measured while training on a fixed "
            f"part of it{_of(curve)}, so that its last point may differ. No best point is picked anywhere.",
        )  # fmt: skip
        params = summary["params"]
        st.metric(
            "Trained", words.count(params["method"]), border=True, height="stretch",
            delta=f"+ head {params['head']:,}", delta_color="off", delta_arrow="off",
        )  # fmt: skip
        rate = summary["steps_per_second"]
        st.metric(
            "Time, with loading", words.duration(summary["seconds"]), border=True, height="stretch",
            delta=f"{rate:.1f} steps/s in training" if rate else None, delta_color="off", delta_arrow="off",
            help=_times(summary),
        )  # fmt: skip
        st.metric("Peak memory", words.size(summary["peak_memory_bytes"]), border=True, height="stretch")


def _of(curve: dict[str, int] | None) -> str:
    part = words.part(curve)
    return f", {part} examples" if part else ""


def _times(summary: dict[str, Any]) -> str:
    """What the time of a run is made of."""
    steps = summary["training_seconds"]
    rest = max(0.0, summary["seconds"] - steps)
    return (
        f"The training steps alone took {words.duration(steps)}; steps/s counts these. The other "
        f"{words.duration(rest)} went into loading, scoring, evaluations, frames of the views, and checkpoints. "
        "What stands below the title counts starting the process and timing single answers, too."
    )


def test_results(test: dict[str, Any], key: str) -> None:
    """Confusion matrix and the examples most confidently right and wrong, as plain text."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        draw_grid(confusion_grid(np.array(test["confusion"]), tuple(test["labels"])), key=key)
    with right:
        _examples("Most confidently wrong", [row for row in test["examples"] if not row["right"]])
        _examples("Most confidently right", [row for row in test["examples"] if row["right"]])


def _examples(title: str, rows: list[dict[str, Any]]) -> None:
    st.markdown(f"**{title}**")
    if not rows:
        st.caption("There is none.")
        return
    frame = pd.DataFrame(rows).rename(
        columns={"text": "Text", "pair": "Second text", "label": "Label", "predicted": "Answer", "probability": "Sure"}
    )
    shown = [c for c in ("Text", "Second text", "Label", "Answer", "Sure") if c in frame and frame[c].notna().any()]
    st.dataframe(
        frame[shown],
        hide_index=True,
        height=310,
        row_height=72,
        alt=title,
        column_config={
            "Text": st.column_config.TextColumn(width="large"),
            "Sure": st.column_config.NumberColumn(format="percent", help="Probability of the answer"),
        },
    )


def recipe(row: RunRow) -> None:
    """The spec to copy, and the command that repeats the run."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("**The run's spec, every setting explicit**")
        st.code(parse_spec(row.spec).to_yaml(), language="yaml", height=420)
    with right:
        st.markdown("**The command that repeats it**")
        st.code(command_of(row.id), language="bash", wrap_lines=True)
        st.caption(f"With the spec saved as {row.id}.yaml. On the same machine the numbers are the same.")
