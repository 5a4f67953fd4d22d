"""A decoder asked in context: measured by the engine on demand, or as recorded with the lab."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from engine import settings
from engine.jobs import client
from engine.prompting.tasks import TASKS
from pages.parts.figures.shots import shots_chart
from pages.parts.picture import draw_chart, theme
from pages.parts.words import with_interval

RECORDED = settings.ASSETS / "reference" / "in-context.json"
SHOTS = (0, 1, 2, 4, 8)
WAIT_SECONDS = 300.0


@st.cache_data(max_entries=4, show_spinner=False)
def _recorded(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    return found


def recorded(model: str, task: str) -> dict[str, Any] | None:
    """What was measured when the lab was made, if it was."""
    return _recorded(str(RECORDED)).get(model, {}).get(task)


def measure(model: str, task: str) -> dict[str, Any]:
    """Let the engine ask the model now.

    Raises:
        EngineError: for a model that cannot be asked.
    """
    payload = {"model": model, "task": task, "shots": SHOTS}
    asked = client.ask(settings.home(), "prompt", payload)
    return client.answer(settings.home(), asked, WAIT_SECONDS).value()


def show(found: dict[str, Any]) -> None:
    """The picture, the numbers, and some questions word by word."""
    draw_chart(shots_chart(found, TASKS[found["task"]].title, theme()), live=False, key="in-context")
    _numbers(found)
    _examples(found["examples"])
    with st.expander("Where these numbers come from"):
        st.json(found["provenance"])


def _numbers(found: dict[str, Any]) -> None:
    fresh = any(0 < row["fresh_total"] < row["total"] for row in found["rows"])
    rows = [
        {
            "Shots": row["shots"],
            "Right": f"{row['correct']} of {row['total']}",
            "Accuracy (95 % interval)": with_interval(row["accuracy"], row["ci95"]),
            **({"Of those never seen": f"{row['fresh_correct']} of {row['fresh_total']}"} if fresh else {}),
        }
        for row in found["rows"]
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Right answers by number of shots")
    if cut := max(row["cut"] for row in found["rows"]):
        st.caption(f"{cut} prompts were too long for the model; they count as wrong.")


def _examples(examples: list[dict[str, Any]]) -> None:
    st.subheader("What it was asked, and what it said", anchor=False)
    most = max(int(count) for count in examples[0]["answers"])
    place = st.segmented_control(
        "Question", range(len(examples)), default=0, required=True, key="in-context-example",
        format_func=lambda number: f"{number + 1}", label_visibility="collapsed",
    )  # fmt: skip
    example = examples[place or 0]
    left, right = st.columns(2, gap="large")
    left.code(example["prompt"], language=None, wrap_lines=True)
    left.caption(f"The prompt with {most} shots. The model continues it; right would be: {example['answer']}")
    answers = [
        {"Shots": int(count), "It said": answer, "Right": answer == example["answer"]}
        for count, answer in example["answers"].items()
    ]
    right.dataframe(pd.DataFrame(answers), hide_index=True, alt="The model's answers to this question")
