"""The engine's state, its queue, and the disk it fills."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from engine import settings
from engine.jobs import client
from engine.store.rights import may_stop
from engine.store.run_row import RunRow
from pages.parts import feed, shell, words
from pages.parts.tables import runs_table


def state() -> None:
    """Whether it runs, and its workers."""
    home = settings.home()
    found = client.engine_state(home)
    with st.container(horizontal=True, vertical_alignment="center"):
        if found:
            st.badge("running", color="green", icon=":material/check_circle:")
            st.caption(f"process {found.pid}, since {words.ago(found.started)}; places: {', '.join(found.slots)}")
        else:
            st.badge("asleep", color="gray", icon=":material/bedtime:")
            st.caption("It starts by itself with the next run, and leaves when it has had nothing to do for a while.")
            if st.button("Start it now", icon=":material/play_arrow:"):
                client.ensure_running(home)
                st.rerun()
    workers = client.engine_workers(home) if found else []
    if workers:
        lines = [
            {
                "Worker": worker.name,
                "Place": worker.slot,
                "State": "warm" if worker.ready else "starting",
                "Process": str(worker.pid),
                "Last sign of life": f"{max(0.0, time.time() - worker.beat):.0f} s ago",
            }
            for worker in workers
        ]
        st.dataframe(lines, hide_index=True, alt="Workers")


def queue(rows: Sequence[RunRow]) -> None:
    """Runs that are not over, with the means to stop them."""
    st.subheader("Queue", anchor=False)
    if not rows:
        st.caption("Nothing runs, and nothing waits.")
        return
    chosen = runs_table(rows, key="queue", several=True)
    mine = [row for row in rows if row.id in chosen and may_stop(row, shell.asker())]
    with st.container(horizontal=True):
        if st.button("Open", disabled=len(chosen) != 1, icon=":material/monitoring:"):
            shell.go("run", run=chosen[0])
        keep = st.button("Stop, keep checkpoints", disabled=not mine, icon=":material/stop:")
        discard = st.button("Stop and discard", disabled=not mine, icon=":material/delete:")
    if chosen and len(mine) < len(chosen):
        st.caption("Some of these were started by somebody else: only they, or the machine's own user, may stop them.")
    if keep or discard:
        for row in mine:
            client.stop(settings.home(), row.id, "keep" if keep else "discard", shell.asker())
            feed.forget(row.id)
        st.rerun()


def disk(rows: Sequence[RunRow]) -> None:
    """What runs take on disk, and deleting those that are over."""
    st.subheader("Disk", anchor=False)
    usage = feed.runs().usage()
    st.caption(f"{words.number(len(usage), 'run')} on disk: {words.size(sum(usage.values()))} below {settings.home()}")
    if not rows:
        return
    chosen = runs_table(rows, key="over", several=True)
    mine = [row for row in rows if row.id in chosen and may_stop(row, shell.asker())]
    freed = sum(usage.get(row.id, 0) for row in mine)
    with st.container(horizontal=True):
        if st.button("Open", key="open-over", disabled=len(chosen) != 1, icon=":material/monitoring:"):
            shell.go("run", run=chosen[0])
        label = f"Delete {words.number(len(mine), 'run')} ({words.size(freed)})" if mine else "Delete"
        if st.button(label, disabled=not mine, icon=":material/delete_forever:"):
            _delete(mine)


@st.dialog("Delete these runs for good?")
def _delete(rows: Sequence[RunRow]) -> None:
    st.text("\n".join(row.id for row in rows[:12]) + ("\n…" if len(rows) > 12 else ""))
    st.caption("Their curves, views, checkpoints and trained results are removed from this machine.")
    if st.button("Delete", type="primary", width="stretch"):
        for row in rows:
            feed.runs().delete(row.id)
        st.rerun()
    if st.button("Keep them", width="stretch"):
        st.rerun()
