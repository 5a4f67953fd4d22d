"""Where a run is, in words: state, phase, progress, time left."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import streamlit as st

from engine.events import PHASES
from engine.store.run_row import RunRow
from pages.parts import words
from pages.parts.feed import Snapshot

Colour = Literal["red", "orange", "blue", "green", "gray"]
STATE_LOOK: dict[str, tuple[Colour, str]] = {
    "queued": ("orange", ":material/schedule:"),
    "active": ("blue", ":material/play_circle:"),
    "finished": ("green", ":material/check_circle:"),
    "failed": ("red", ":material/error:"),
    "diverged": ("red", ":material/trending_up:"),
    "stopped": ("gray", ":material/stop_circle:"),
}
STEADY_STEPS = 5
"""Steps before which a rate says too little for an estimate."""


def state_badge(row: RunRow) -> None:
    """The run's state, as colour, icon and word."""
    color, icon = STATE_LOOK[row.state]
    word = "stopping" if row.state == "active" and row.stop else row.state
    st.badge(word, color=color, icon=icon)


def phase_line(row: RunRow, snapshot: Snapshot) -> None:
    """The named phases with the present one marked, and its progress."""
    phase = snapshot.phase.phase if row.state == "active" else row.phase
    now = PHASES.index(phase)
    scores = bool(snapshot.scalars) and phase != "scoring"
    names = [name for name in PHASES if name != "scoring" or not scores]
    parts = [
        f"**{name}**" if name == phase else f":gray[{name}]" if PHASES.index(name) > now else name for name in names
    ]
    st.markdown(" › ".join(parts))
    st.progress(_share(row, snapshot), text=progress_text(row, snapshot))


def _share(row: RunRow, snapshot: Snapshot) -> float:
    if row.state == "finished":
        return 1.0
    done, total = snapshot.phase.done, snapshot.phase.total
    return min(1.0, done / total) if total else 0.0


def progress_text(row: RunRow, snapshot: Snapshot) -> str:
    """Progress, speed and time left in one line."""
    if row.state == "queued":
        return "Waiting for a free place in the queue"
    done, total = snapshot.phase.done, snapshot.phase.total
    if row.state != "active":
        return f"{row.state}, after step {row.step:,} of {row.steps:,}"
    if snapshot.phase.phase != "training":
        return f"{snapshot.phase.phase}: {done:,} of {total:,}" if total else snapshot.phase.phase
    rate = steps_per_second(snapshot)
    if rate is None or done < STEADY_STEPS:
        return f"step {done:,} of {total:,} · estimating"
    return f"step {done:,} of {total:,} · {rate:.1f} steps/s · about {words.duration((total - done) / rate)} left"


def steps_per_second(snapshot: Snapshot) -> float | None:
    """The recent rate of training, or None before any was measured."""
    _, seconds = snapshot.scalars.get("step/seconds", (np.empty(0), np.empty(0)))
    recent = seconds[-8:]
    return float(1 / np.mean(recent)) if len(recent) and np.mean(recent) > 0 else None


def since(row: RunRow) -> str:
    """When it began; once it is over, how long it took."""
    if row.is_over and row.started is not None:
        end = row.finished or time.time()
        return f"ended {words.ago(end)} after {words.duration(end - row.started)}"
    begun = time.strftime("%H:%M", time.localtime(row.started or row.created))
    return f"started {begun}" if row.started else f"queued {begun}"
