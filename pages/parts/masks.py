"""What masks say after a run: how far several agree, and what one is worth at its earlier sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd
import streamlit as st

from engine import settings
from engine.jobs import client
from engine.methods.registry import methods
from engine.probes.recorded import mask_of
from engine.stats.overlap import Mask, Overlap, left_out, overlaps
from engine.store.run_row import RunRow
from pages.parts import feed
from pages.parts.figures.ages import ages_chart
from pages.parts.figures.budgets import budgets_chart
from pages.parts.picture import draw_chart, theme
from pages.parts.tables import label_of
from pages.parts.words import with_interval

MOST = 12
"""Masks compared at a time: 66 pairs."""
WAIT_SECONDS = 300.0


def overlap_section(rows: Sequence[RunRow]) -> None:
    """Which weights runs have in common, where two or more of them selected single weights of one model."""
    found = [mask for row in rows if (mask := _mask(row)) is not None]
    shown = found[:MOST]
    if not any(first.compares_with(second) for first, second in combinations(shown, 2)):
        return
    pairs = overlaps(shown)
    st.subheader("Did they choose the same weights?", anchor=False)
    st.caption(
        "Entries that two runs both train, beside the number that two masks of these sizes drawn by lot would have in "
        "common. Only a difference from that number says that two rules agree, or avoid each other; a difference from "
        "the number within tensors, that they agree on more than which tensors matter."
    )
    st.dataframe(
        _table(pairs), hide_index=True, alt=f"Overlap of {len(shown)} masks, pair by pair",
        column_config={
            "Common": st.column_config.NumberColumn(format="localized"),
            "By lot": st.column_config.NumberColumn(format="%.1f", help="Expected of masks drawn by lot"),
            "± by lot": st.column_config.NumberColumn(
                format="%.1f", help="Its standard deviation; none where whole blocks were chosen"
            ),
            "Within tensors": st.column_config.NumberColumn(
                format="%.1f", help="Expected by lot when each tensor keeps as many entries as it has"
            ),
            "Of the smaller": st.column_config.NumberColumn(format="percent"),
            "Jaccard": st.column_config.NumberColumn(format="%.4f", help="Common over all that are in either"),
        },
    )  # fmt: skip
    with st.expander("In words, by exact chances at a level of 1 %, corrected for the number of pairs"):
        st.text("\n".join(pair.sentence for pair in pairs))
    if missing := left_out(shown, pairs):
        st.caption(missing)
    if len(found) > MOST:
        st.caption(f"The first {MOST} of {len(found)} masks.")


def _mask(row: RunRow) -> Mask | None:
    run = feed.StoredRun(row.id)
    snapshot = run.snapshot()
    counts = snapshot.scalars.get("mask/selected")
    if counts is None:
        return None
    return mask_of(label_of(row), row.method, snapshot.metas, run.selection(), float(counts[1][-1]))


def _table(pairs: Sequence[Overlap]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "First": pair.first,
                "Second": pair.second,
                "Common": pair.common,
                "By lot": pair.expected,
                "± by lot": pair.spread,
                "Within tensors": pair.within,
                "Of the smaller": pair.common / max(1, min(pair.counts)),
                "Jaccard": pair.jaccard,
            }
            for pair in pairs
        ]
    )


def grown_section(row: RunRow) -> None:
    """What a mask that grew is worth at its earlier sizes, and how far its weights moved; measured when asked for."""
    st.subheader("One run, many budgets", anchor=False)
    st.caption(
        "This mask grew step by step, so that it holds smaller ones. Each is measured again on the test set: the "
        "weights selected up to a step keep the values they ended with, all later ones go back to what they were."
    )
    if found := _measured("budgets", row, "Measure ten sizes", ":material/stacked_line_chart:"):
        _budgets(found)
    st.subheader("Early and late weights", anchor=False)
    st.caption("A weight selected late has few steps left, at falling learning rates. How far did each get?")
    if found := _measured("ages", row, "Measure how far they moved", ":material/schedule:"):
        _ages(found)


def _measured(kind: str, row: RunRow, label: str, icon: str) -> dict[str, Any] | None:
    """What the engine found when it was asked, in this browser."""
    measured = st.session_state.setdefault(kind, {})
    if st.button(label, icon=icon, key=f"{kind}-{row.id}"):
        with st.spinner("The engine measures …"):
            asked = client.ask(settings.home(), kind, {"run": row.id})
            measured[row.id] = client.answer(settings.home(), asked, WAIT_SECONDS).value()
    found: dict[str, Any] | None = measured.get(row.id)
    return found


def _budgets(found: dict[str, Any]) -> None:
    draw_chart(budgets_chart(found, theme()), live=False, key="budgets")
    rows = [
        {
            "Weights": entry["params"],
            "Selected until step": entry["step"],
            "Right": f"{entry['correct']} of {entry['total']}",
            "Test accuracy (95 % interval)": with_interval(entry["accuracy"], entry["ci95"]),
        }
        for entry in found["rows"]
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, alt="Test accuracy by size of the mask",
        column_config={"Weights": st.column_config.NumberColumn(format="localized")},
    )  # fmt: skip
    st.caption(f"The task head, {found['head']:,} scalars, is the trained one throughout.")


def _ages(found: dict[str, Any]) -> None:
    draw_chart(ages_chart(found, theme()), live=False, key="ages")
    rows = [
        {
            "First step": entry["first"] + 1,
            "Last step": entry["last"] + 1,
            "Weights": entry["count"],
            "Median change": entry["quartiles"][1],
            "Lower quartile": entry["quartiles"][0],
            "Upper quartile": entry["quartiles"][2],
            "Unmoved": entry["unmoved"],
        }
        for entry in found["rows"]
    ]
    small = st.column_config.NumberColumn(format="%.2e")
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, alt="Change of weights by step of selection",
        column_config=dict.fromkeys(("Median change", "Lower quartile", "Upper quartile"), small),
    )  # fmt: skip


def grew(row: RunRow, record: feed.StoredRun) -> bool:
    """Whether a run selected its weights at more than one step, and for good."""
    if not getattr(methods().get(row.method), "grows", True):
        return False
    steps = record.selection()["step"]
    return bool(len(steps)) and steps.min() != steps.max()
