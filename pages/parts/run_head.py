"""The top of a run's page: what it is, what can be done with it, and how it stands."""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

from engine import settings
from engine.jobs import client
from engine.jobs.runlog import tail
from engine.store.rights import may_stop
from engine.store.run_row import RunRow
from pages.parts import feed, shell, words
from pages.parts.feed import Snapshot
from pages.parts.progress import phase_line, since, state_badge
from pages.parts.tables import dataset_title, method_title

BLINK_SECONDS = 20.0
"""A run whose training took less is played back when it is first shown."""


def head(row: RunRow, snapshot: Snapshot) -> None:
    """Title, state, and the buttons that its state allows."""
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.title(f"{method_title(row.method)} on {words.plain(dataset_title(row.dataset))}", anchor=False)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            state_badge(row)
            st.caption(f"{since(row)} · seed {row.seed} · {row.id}")
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        _buttons(row)
    if row.error:
        _reason(row)
    for note in snapshot.notes:
        if note.level == "warning":
            st.warning(words.plain(note.text), icon=":material/warning:")
    if row.parent:
        shell.link("run", f"Continues run {row.parent}", run=row.parent)


def _buttons(row: RunRow) -> None:
    link = st.popover("Link", icon=":material/link:", on_change="rerun", key="link")
    if link.open:
        link.caption("This view, to share or to return to. A link made while paused keeps the step.")
        link.code(here(), language=None, wrap_lines=True)
    if st.button("Duplicate", icon=":material/content_copy:", help="Launch a run like this one, changed as you like"):
        shell.go("launch", like=row.id)
    mine = may_stop(row, shell.asker())
    reason = None if mine else "Only whoever started it, or the machine's own user, may do this."
    if not row.is_over and st.button("Stop", icon=":material/stop:", disabled=not mine, help=reason):
        _ask_how(row)
    resumable = row.state in ("stopped", "failed")
    if resumable and st.button("Resume", icon=":material/play_arrow:", type="primary", disabled=not mine, help=reason):
        with shell.told():
            client.resume(settings.home(), row.id, shell.asker())
            feed.forget(row.id)
            st.session_state.pop(f"watch-{row.id}-mode", None)
            st.rerun()


@st.dialog("Stop this run?")
def _ask_how(row: RunRow) -> None:
    st.write("What is recorded so far stays in either case: curves, views and notes.")
    keep = st.button("Stop and keep the checkpoint", icon=":material/save:", type="primary", width="stretch")
    st.caption("It can be resumed later, with the same result as if it had never stopped.")
    discard = st.button("Stop and discard the checkpoint", icon=":material/delete:", width="stretch")
    st.caption("It cannot go on from where it was.")
    if st.button("Keep training", width="stretch"):
        st.rerun()
    if keep or discard:
        with shell.told():
            client.stop(settings.home(), row.id, "keep" if keep else "discard", shell.asker())
            feed.forget(row.id)
            st.rerun()


def _reason(row: RunRow) -> None:
    """Why it ended as it did, and the end of its log."""
    with st.container(border=True):
        st.text(row.error or "")
        if row.todo:
            st.text(row.todo)
        if row.state == "failed":
            with st.expander("The end of its log"):
                st.code(tail(feed.runs().folder(row.id).log, 40), language=None)


def here() -> str:
    """The address of what is shown."""
    return f"{st.context.url}?{urlencode(st.query_params.to_dict())}"


def standing(run_id: str, snapshot: Snapshot) -> None:
    """Phase and progress of a run that is not over."""
    phase_line(feed.row(run_id), snapshot)


def starts(row: RunRow) -> str:
    """The mode in which a run is first shown: a run that was over in a blink is played back."""
    if not row.is_over:
        return "Live"
    seconds = (row.summary or {}).get("training_seconds")
    return "Playing" if seconds is not None and seconds < BLINK_SECONDS else "Paused"


class Picked:
    """The tensor that is shown close up: in the session, and in the address of the page.

    What a component's callback writes into the address does not reach the browser, so it is written
    with the next drawing.
    """

    def __init__(self, run_id: str) -> None:
        self._key = f"tensor-{run_id}"

    def pick(self, name: str) -> None:
        """Remember a tensor that was clicked."""
        st.session_state[self._key] = name

    def name(self) -> str:
        """The tensor to show; empty for none."""
        found: str = st.session_state.setdefault(self._key, st.query_params.get("tensor", ""))
        if found and st.query_params.get("tensor") != found:
            st.query_params["tensor"] = found
        return found
