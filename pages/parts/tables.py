"""Tables of runs, the same on every page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import pandas as pd
import streamlit as st

from engine.methods.registry import methods
from engine.store.run_row import RunRow
from engine.tasks.catalogue import datasets
from pages.parts import words

BRIEF = ("Method", "State", "Progress", "Trains", "Test accuracy", "When")
"""The columns of a table with little room."""


def method_title(name: str) -> str:
    """A method's title; its name when it is no longer known."""
    known = methods()
    return known[name].title if name in known else name


def dataset_title(source: str) -> str:
    """A dataset's title; the name of a file."""
    titles = {entry.id: entry.title for entry in datasets()}
    return titles.get(source, PurePath(source).name if "/" in source or "\\" in source else source)


def label_of(row: RunRow) -> str:
    """A run in a few words, distinct by the letters at the end of its id."""
    size, model = words.count(words.params_of(row)["method"]), PurePath(row.model).name
    return f"{method_title(row.method)} · {size} · {model} · seed {row.seed} · {row.id[-4:]}"


def runs_frame(rows: Sequence[RunRow]) -> pd.DataFrame:
    """One line per run."""
    return pd.DataFrame(
        {
            "Method": [method_title(row.method) for row in rows],
            "State": [row.state for row in rows],
            "Progress": [row.step / row.steps if row.steps else 0.0 for row in rows],
            "Trains": [words.params_of(row)["method"] for row in rows],
            "Test accuracy": [(row.summary or {}).get("accuracy", {}).get("test") for row in rows],
            "Seed": [row.seed for row in rows],
            "Dataset": [dataset_title(row.dataset) for row in rows],
            "Model": [PurePath(row.model).name for row in rows],
            "When": [words.ago(row.created) for row in rows],
            "Run": [row.id for row in rows],
        }
    )


def runs_table(
    rows: Sequence[RunRow], *, key: str, several: bool = False, columns: Sequence[str] | None = None
) -> list[str]:
    """A table of runs; the ids of the rows that were ticked, or of the one that was clicked."""
    looks = {
        "Progress": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1, width="small"),
        "Trains": st.column_config.NumberColumn(
            format="localized",
            help="Parameters trained by the method, head apart: as counted at the end, as planned until then",
        ),
        "Test accuracy": st.column_config.NumberColumn(format="percent"),
    }
    event = st.dataframe(
        runs_frame(rows),
        key=key,
        hide_index=True,
        column_config=looks,
        column_order=columns,
        on_select="rerun",
        selection_mode="multi-row" if several else "single-cell",
        alt=f"{len(rows)} runs",
    )
    places = event.selection.rows if several else [row for row, _ in event.selection.cells]
    return [rows[place].id for place in places if place < len(rows)]
