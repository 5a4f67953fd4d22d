"""What all sessions of this server read: one shared, versioned, read-only copy of the store's runs.

Forty browsers that follow a run cost one look at its version counter every half second and one
read per new version; everything else comes from these caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from engine import settings
from engine.store.run_file import Note, PhaseState, RunReader, Selection
from engine.store.run_row import RunRow
from engine.store.runs import Runs

Scalars = dict[str, tuple[np.ndarray, np.ndarray]]
Frame = tuple[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Snapshot:
    """A run's record at one version; shared between sessions, never changed.

    Attributes:
        version: of the run's file.
        phase: where the run is.
        scalars: thinned series by key, as (steps, values).
        frames: (version, step) of each frame by kind, by step.
        metas: what describes the run.
        notes: sentences for the user, oldest first.
    """

    version: int
    phase: PhaseState
    scalars: Scalars
    frames: dict[str, list[tuple[int, int]]]
    metas: dict[str, Any]
    notes: list[Note]


def runs() -> Runs:
    """The runs of the configured home."""
    return _runs(str(settings.home()))


@st.cache_resource(max_entries=8, show_spinner=False)
def _runs(home: str) -> Runs:
    return Runs(Path(home))


def row(run_id: str) -> RunRow:
    """A run's row, at most half a second old.

    Raises:
        UnknownName: when there is no such run.
    """
    return _row(str(settings.home()), run_id)


@st.cache_resource(ttl=0.5, max_entries=256, show_spinner=False)
def _row(home: str, run_id: str) -> RunRow:
    return _runs(home).get(run_id)


def forget(run_id: str) -> None:
    """Read a run's row anew at once, after something was asked of it here."""
    _row.clear(str(settings.home()), run_id)


def listed() -> list[RunRow]:
    """All runs that are not hidden, newest first, at most half a second old."""
    home = str(settings.home())
    return _listed(home, _runs_version(home))


@st.cache_resource(ttl=0.5, max_entries=8, show_spinner=False)
def _runs_version(home: str) -> int:
    return _runs(home).version()


@st.cache_resource(ttl=60, max_entries=8, show_spinner=False)
def _listed(home: str, version: int) -> list[RunRow]:
    return _runs(home).list()


class StoredRun:
    """The record of one run in the store, read through the shared caches."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._home = str(settings.home())

    def snapshot(self) -> Snapshot:
        """The record at its newest version, at most half a second old."""
        return _snapshot(self._home, self.id, _version(self._home, self.id))

    def frame(self, kind: str, step: int | None = None) -> Frame | None:
        """The newest frame of a kind that is not after a step."""
        index = self.snapshot().frames.get(kind, [])
        before = [version for version, at in index if step is None or at <= step] or [v for v, _ in index[:1]]
        return _frame(self._home, self.id, kind, before[-1]) if before else None

    def all_frames(self, kind: str) -> list[Frame]:
        """Every frame of a kind, by step."""
        index = self.snapshot().frames.get(kind, [])
        found = [_frame(self._home, self.id, kind, version) for version, _ in index]
        return [frame for frame in found if frame is not None]

    def selection(self) -> Selection:
        """Every entry that the method has selected, in order."""
        index = self.snapshot().frames.get("selected", [])
        return _selection(self._home, self.id, index[-1][0] if index else 0)


@st.cache_resource(ttl=600, max_entries=64, show_spinner=False)
def _reader(home: str, run_id: str) -> RunReader:
    return RunReader(_runs(home).folder(run_id).database)


@st.cache_resource(ttl=0.5, max_entries=256, show_spinner=False)
def _version(home: str, run_id: str) -> int:
    return _reader(home, run_id).version()


@st.cache_resource(ttl=30, max_entries=64, show_spinner=False)
def _snapshot(home: str, run_id: str, version: int) -> Snapshot:
    reader = _reader(home, run_id)
    return Snapshot(
        version=version,
        phase=reader.phase(),
        scalars=reader.scalars(),
        frames={kind: reader.frame_index(kind) for kind in reader.frame_kinds()},
        metas=reader.metas(),
        notes=reader.notes(),
    )


@st.cache_resource(ttl=300, max_entries=512, show_spinner=False)
def _frame(home: str, run_id: str, kind: str, version: int) -> Frame | None:
    return _reader(home, run_id).frame(kind, version)


@st.cache_resource(ttl=120, max_entries=16, show_spinner=False)
def _selection(home: str, run_id: str, version: int) -> Selection:
    return _reader(home, run_id).selection()
