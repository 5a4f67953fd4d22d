"""A dataset as the model will see it: real rows, labels, splits, and the exact first batch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.models.catalogue import resolve_model
from engine.models.tokenizer import tokenizer_of
from engine.spec import DatasetChoice, RunSpec
from engine.tasks.catalogue import load_dataset
from engine.tasks.dataset import Dataset
from engine.tasks.preview import Preview, preview
from pages.parts.figures.palette import colour
from pages.parts.picture import theme


def dataset_of(choice: DatasetChoice) -> Dataset:
    """A dataset, shared between sessions.

    Raises:
        EngineError: when it cannot be read.
    """
    return _dataset(choice.model_dump_json())


@st.cache_resource(ttl=600, max_entries=6, show_spinner="Reading the dataset …")
def _dataset(choice: str) -> Dataset:
    return load_dataset(DatasetChoice.model_validate_json(choice))


@st.cache_resource(ttl=600, max_entries=32, show_spinner="Reading the first batch …")
def _preview(spec: str) -> Preview:
    asked = RunSpec.model_validate(json.loads(spec))
    return preview(dataset_of(asked.dataset), tokenizer_of(resolve_model(asked.model)), asked)


def look(spec: RunSpec) -> None:
    """Tabs with real rows, the first batch token by token, and the splits."""
    shown = _preview(json.dumps(spec.canonical()))
    st.subheader("The data, as the model will see them", anchor=False)
    rows, batch, counts = st.tabs(["Real rows", "The first batch, as the model sees it", "Labels and splits"])
    with rows:
        _rows(shown)
    with batch:
        _batch(shown)
    with counts:
        _counts(shown, dataset_of(spec.dataset))


def _rows(shown: Preview) -> None:
    pairs = any(row.pair is not None for row in shown.rows)
    frame = pd.DataFrame(
        [{"Text": row.text, **({"Second text": row.pair} if pairs else {}), "Label": row.label} for row in shown.rows]
    )
    st.dataframe(
        frame, hide_index=True, height=300, alt="Rows of the training split", row_height=72,
        column_config={"Text": st.column_config.TextColumn(width="large")},
    )  # fmt: skip
    st.caption("The examples of the first training step, as text.")


def _batch(shown: Preview) -> None:
    frame = pd.DataFrame(shown.tokens)
    real = shown.batch["attention_mask"].astype(bool)
    cut = f" {shown.truncated} of them were cut to fit." if shown.truncated else ""
    st.dataframe(
        frame.style.apply(_shaded, axis=None, real=real), height=300, alt="Tokens of the first batch",
        column_config={str(place): st.column_config.TextColumn(width="small") for place in frame.columns},
    )  # fmt: skip
    padded = 1 - float(real.mean())
    st.caption(
        f"{len(frame)} examples of {frame.shape[1]} tokens, special tokens included. {padded:.0%} is padding, shaded, "
        f"which the model does not attend to.{cut}"
    )


def _shaded(frame: pd.DataFrame, real: np.ndarray) -> pd.DataFrame:
    """Padding greyed, special tokens in bold."""
    grey, empty = colour("guide", theme()), colour("empty", theme())
    special = frame.map(lambda token: token[:1] in "[<" and token[-1:] in "]>" and len(token) > 2).to_numpy()
    styles = np.where(special, "font-weight: 600;", "")
    styles = np.where(real, styles, f"color: {grey}; background-color: {empty};")
    return pd.DataFrame(styles, index=frame.index, columns=frame.columns)


def _counts(shown: Preview, dataset: Dataset) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        table = pd.DataFrame(shown.counts).rename_axis("Label").reset_index()
        table.insert(1, "Number", range(len(dataset.labels)))
        st.dataframe(table, hide_index=True, alt="Rows per label and split")
        st.caption("“Number” is what the label becomes inside the model.")
    with right:
        _provenance(shown.provenance)


def _provenance(found: dict[str, Any]) -> None:
    plain = {key: value for key, value in found.items() if value not in ("", None, {}, [])}
    rows = [{"What": key.replace("_", " "), "Value": _written(value)} for key, value in plain.items()]
    st.dataframe(rows, hide_index=True, alt="Where the data come from", height=260)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
