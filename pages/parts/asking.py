"""A text, and what the base model and finished runs make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from engine import settings
from engine.jobs import client
from engine.spec import parse_spec
from engine.store.run_row import RunRow
from engine.tasks.dataset import Dataset
from pages.parts.data_look import dataset_of
from pages.parts.tables import label_of

WAIT_SECONDS = 120.0
LONGEST = 20_000
TYPED, PICKED = "Type a text", "Pick a test example"


@dataclass(frozen=True)
class Question:
    """A text, or a pair, and its label where that is known."""

    text: str
    pair: str | None
    label: str | None


def question(row: RunRow) -> Question | None:
    """What to ask; None while nothing is typed."""
    dataset = dataset_of(parse_spec(row.spec).dataset)
    kind = st.segmented_control("Text", [TYPED, PICKED], default=TYPED, required=True, label_visibility="collapsed")
    return _typed(dataset) if kind == TYPED else _picked(dataset)


def _typed(dataset: Dataset) -> Question | None:
    with st.form("typed", border=False):
        text = st.text_area("Text", key="text", max_chars=LONGEST, height=90)
        pair = st.text_area("Second text", key="pair", max_chars=LONGEST, height=90) if dataset.is_pair else None
        st.form_submit_button("Ask", type="primary", icon=":material/send:")
    return Question(text.strip(), pair.strip() if pair else pair, None) if text.strip() else None


def _picked(dataset: Dataset) -> Question:
    test = dataset.splits["test"]
    place = st.number_input("Example of the test split", 0, len(test) - 1, 0, key="example", width=240)
    st.text(test.texts[place])
    if test.pairs:
        st.text(test.pairs[place])
    return Question(test.texts[place], test.pairs[place] if test.pairs else None, dataset.labels[test.labels[place]])


def answers(rows: Sequence[RunRow], asked: Question) -> None:
    """One column of probabilities per run, after the base model's."""
    payload = {"runs": [row.id for row in rows], "text": asked.text, "pair": asked.pair}
    with st.spinner("The engine answers …"):
        given = client.answer(settings.home(), client.ask(settings.home(), "try", payload), WAIT_SECONDS).value()
    labels = {row.id: label_of(row) for row in rows}
    with st.grid("auto", min_column_width=300):
        for reply in given["answers"]:
            with st.container(border=True, height="stretch"):
                _one(reply, labels.get(reply.get("run") or "", reply["title"]), asked.label)


def _one(reply: dict[str, Any], title: str, truth: str | None) -> None:
    st.markdown(f"**{title}**")
    frame = pd.DataFrame({"Answer": reply["labels"], "Probability": reply["probabilities"]})
    frame = frame.sort_values("Probability", ascending=False)
    best = str(frame["Answer"].iloc[0])
    st.text(best if truth is None else f"{best}, which is {'right' if best == truth else f'wrong: it is {truth}'}")
    st.dataframe(
        frame, hide_index=True, alt=f"Probabilities: {title}",
        column_config={"Probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)},
    )  # fmt: skip
