"""Taking a run away: its files, written by the engine on demand, and where it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from engine import settings
from engine.export.formats import Format, default_name, export_run, formats_of
from engine.jobs import client
from engine.spec import parse_spec
from engine.store.run_row import RunRow
from pages.parts import shell
from pages.parts.feed import Snapshot

NEEDS_MODEL = frozenset({"delta", "peft", "merged", "tensors"})
"""Formats that need the model; the engine writes them, the others are written here."""
WAIT_SECONDS = 180.0


def downloads(row: RunRow) -> None:
    """Everything that this run offers to take away."""
    st.markdown("**Take it away**")
    with st.grid("auto", min_column_width=260):
        for item in formats_of(parse_spec(row.spec).method, row.state):
            with st.container(border=True, height="stretch", gap="xsmall"):
                st.markdown(f"**{item.title}**")
                st.caption(item.description)
                st.space("stretch")
                _offer(row, item)


def _offer(row: RunRow, item: Format) -> None:
    name = default_name(row.id, item.name)
    key = f"{row.id}-{item.name}"
    if item.name not in NEEDS_MODEL:
        st.download_button("Download", lambda: _written(row.id, item), name, key=key, on_click="ignore")
        return
    path = st.session_state.get(f"{key}-path")
    if path and Path(path).is_file():
        st.download_button(
            "Download", lambda: Path(path).read_bytes(), name, key=key, on_click="ignore", type="primary"
        )
    elif st.button("Prepare", key=f"{key}-prepare", help="The engine writes the file; then it can be downloaded"):
        with shell.told(), st.spinner("The engine writes the file …"):
            asked = client.ask(settings.home(), "export", {"run": row.id, "format": item.name})
            reply = client.answer(settings.home(), asked, WAIT_SECONDS).value()
            st.session_state[f"{key}-path"] = reply["path"]
            st.rerun()


def _written(run_id: str, item: Format) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = export_run(settings.home(), run_id, item.name, Path(folder) / default_name(run_id, item.name))
        return path.read_bytes()


def provenance(snapshot: Snapshot) -> None:
    """Versions, hashes and hardware that the run was made with."""
    found = snapshot.metas.get("provenance")
    if found:
        with st.expander("Where these numbers come from: versions, hashes, hardware"):
            st.json(found)
