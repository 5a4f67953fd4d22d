"""The one timer of a page: follows a run live, stands still at a step, or plays its frames back.

`watch` draws the controls and the body in one fragment. Live, the fragment runs once a second;
playing, it walks through the recorded frames; paused, no timer runs at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import streamlit as st

from engine.store.run_file import Selection
from engine.store.run_row import OVER
from pages.parts.feed import Frame, Scalars, Snapshot

Mode = Literal["Live", "Paused", "Playing"]
LIVE_SECONDS = 1.0
PLAY_SECONDS = 0.5
PLAY_FRAMES = 40
"""About how many frames a whole run is played back in."""


class Record(Protocol):
    """What can be watched: a run of the store, or a recording."""

    id: str

    def snapshot(self) -> Snapshot:
        """The record at its newest version."""

    def frame(self, kind: str, step: int | None = None) -> Frame | None:
        """The newest frame of a kind that is not after a step."""

    def all_frames(self, kind: str) -> list[Frame]:
        """Every frame of a kind, by step."""

    def selection(self) -> Selection:
        """Every entry that the method has selected, in order."""


@dataclass(frozen=True)
class Moment:
    """What the body draws.

    Attributes:
        record: the run.
        snapshot: its newest version.
        step: steps done at the moment shown.
        total: steps of the whole run.
        live: whether the picture is about to change, so that nothing may be rebuilt in the browser.
        playing: whether recorded frames are being played back.
        newest: whether nothing newer than the moment shown is recorded.
    """

    record: Record
    snapshot: Snapshot
    step: int
    total: int
    live: bool
    playing: bool
    newest: bool

    @property
    def marked(self) -> int | None:
        """The step to mark in charts over steps; None when they end there anyway."""
        return None if self.newest or self.playing else self.step

    @property
    def scalars(self) -> Scalars:
        """The series, while playing only up to the moment shown."""
        if not self.playing:
            return self.snapshot.scalars
        found = {}
        for key, (steps, values) in self.snapshot.scalars.items():
            end = int(np.searchsorted(steps, self.step, side="right"))
            found[key] = (steps[:end], values[:end])
        return found


class Watch:
    """Mode and position of one record on one page: kept in the session and, while paused, in the address.

    The position is kept apart from the slider. While a timer runs, the browser may report the value
    that the slider had before the last tick; such an echo must not be taken for a hand on the slider.
    """

    def __init__(self, record_id: str, linked: bool) -> None:
        self.mode_key = f"watch-{record_id}-mode"
        self.position_key = f"watch-{record_id}-position"
        self.slider_key = f"watch-{record_id}-slider"
        self.drawn_key = f"watch-{record_id}-drawn"
        self.switch_key = f"watch-{record_id}-switch"
        self.linked = linked

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return st.session_state.get(self.mode_key, "Live")

    @property
    def position(self) -> int | None:
        """The step last shown; None for the newest."""
        return st.session_state.get(self.position_key)

    def begin(self, start: Mode, over: bool) -> None:
        """On the first visit, and when a run ends: as the page says, unless the address names a step."""
        if self.mode_key in st.session_state and not (over and self.mode == "Live"):
            return
        named = st.query_params.get("t", "") if self.linked else ""
        st.session_state[self.mode_key] = "Paused" if named.isdigit() else start
        st.session_state[self.position_key] = int(named or 0) if named.isdigit() or start == "Playing" else None

    def enter(self, mode: Mode) -> None:
        """Change the mode; the address names the step only while paused."""
        st.session_state[self.mode_key] = mode
        if self.linked and mode != "Paused":
            st.query_params.pop("t", None)

    def switched(self) -> None:
        """The switch was set to live or paused."""
        self.enter(st.session_state[self.switch_key])

    def show(self, step: int) -> None:
        """Stand still at a step."""
        st.session_state[self.position_key] = step
        self.enter("Paused")
        if self.linked:
            st.query_params["t"] = str(step)

    def moved(self) -> None:
        """The slider was moved by hand, or echoes what a tick has set."""
        step = st.session_state[self.slider_key]
        if self.mode == "Paused" or step not in st.session_state.get(self.drawn_key, ()):
            self.show(step)

    def play(self, first: int, current: int, last: int) -> None:
        """Play back from here; from the beginning when this is the end."""
        st.session_state[self.position_key] = first if current >= last else current
        self.enter("Playing")

    def draw(self, step: int, total: int, enabled: bool) -> None:
        """The slider at a step."""
        st.session_state[self.position_key] = step
        st.session_state[self.drawn_key] = (*st.session_state.get(self.drawn_key, ())[-3:], step)
        st.session_state[self.slider_key] = min(step, total)
        st.slider(
            "Step", 0, total, key=self.slider_key, on_change=self.moved, label_visibility="collapsed",
            format="step %d", disabled=not enabled, width="stretch",
        )  # fmt: skip


def watch(
    record: Record,
    body: Callable[[Moment], None],
    *,
    total: int,
    state_now: Callable[[], str],
    start: Mode,
    head: Callable[[Snapshot], None] | None = None,
    linked: bool = True,
) -> None:
    """Draw a record's controls and body, and keep them up to date.

    Args:
        record: what is watched.
        body: draws everything below the controls.
        total: steps of the whole run.
        state_now: the run's state; when it changes, the whole page is drawn anew.
        start: the mode of a first visit, and after a run that was followed live has ended.
        head: draws what stands above the controls.
        linked: whether ``t`` in the page's address follows the slider.
    """
    was = state_now()
    over = was in OVER
    state = Watch(record.id, linked)
    state.begin(start, over)
    mode = state.mode
    seconds = {"Live": LIVE_SECONDS, "Paused": None, "Playing": PLAY_SECONDS}[mode]

    def tick() -> None:
        if state.mode != mode or state_now() != was:
            st.rerun()
        snapshot = record.snapshot()
        if head is not None:
            head(snapshot)
        steps = moments(snapshot)
        step = _controls(state, mode, steps, total, over)
        newest = step >= steps[-1]
        body(Moment(record, snapshot, step, total, mode != "Paused", mode == "Playing", newest))
        if mode == "Playing" and newest:
            state.enter("Paused")
            st.rerun()

    st.fragment(tick, run_every=seconds)()


def moments(snapshot: Snapshot) -> list[int]:
    """Steps at which there is a frame or a measured accuracy, and the newest step; at least step 0."""
    found = {step for index in snapshot.frames.values() for _, step in index}
    for key in ("validation/accuracy", "train/loss"):
        steps, _ = snapshot.scalars.get(key, ((), ()))
        found |= {int(step) for step in (steps if key.startswith("validation") else steps[-1:])}
    return sorted(found) or [0]


def _controls(state: Watch, mode: Mode, steps: list[int], total: int, over: bool) -> int:
    """Switch, buttons and slider; returns the step to show.

    Live there is nothing to step through, and each element costs every viewer every second.
    """
    newest = mode == "Live" or state.position is None
    step = steps[-1] if newest else _at_or_before(steps, state.position or 0)
    if mode == "Playing":
        stride = max(1, len(steps) // PLAY_FRAMES)
        step = steps[min(len(steps) - 1, steps.index(step) + stride)]
    with st.container(horizontal=True, vertical_alignment="center"):
        if over or mode == "Playing":
            st.badge("Replay of recorded frames" if mode == "Playing" else "Recorded", color="gray")
        if not over:
            st.session_state[state.switch_key] = "Live" if mode == "Live" else "Paused"
            st.segmented_control(
                "View", ["Live", "Paused"], key=state.switch_key, required=True, label_visibility="collapsed",
                on_change=state.switched,
            )  # fmt: skip
        if mode != "Live":
            _buttons(state, mode, steps, step)
        state.draw(step, max(total, 1), len(steps) > 1)
    return step


def _buttons(state: Watch, mode: Mode, steps: list[int], step: int) -> None:
    place, last = steps.index(step), len(steps) - 1
    playing = mode == "Playing"
    with st.container(horizontal=True, width="content", gap=None):
        st.button(
            "", icon=":material/skip_previous:", key=f"{state.slider_key}-back", help="One recorded frame back",
            on_click=state.show, args=[steps[max(0, place - 1)]], disabled=place == 0, type="tertiary",
        )  # fmt: skip
        st.button(
            "", icon=":material/pause:" if playing else ":material/play_arrow:", key=f"{state.slider_key}-play",
            help="Pause" if playing else "Play the recorded frames", disabled=last == 0, type="tertiary",
            on_click=state.show if playing else state.play, args=[step] if playing else [steps[0], step, steps[-1]],
        )  # fmt: skip
        st.button(
            "", icon=":material/skip_next:", key=f"{state.slider_key}-on", help="One recorded frame on",
            on_click=state.show, args=[steps[min(last, place + 1)]], disabled=place == last, type="tertiary",
        )  # fmt: skip


def _at_or_before(steps: list[int], wanted: int) -> int:
    return max((step for step in steps if step <= wanted), default=steps[0])
