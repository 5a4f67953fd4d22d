"""A recorded run that ships with the lab, watched like a run of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from engine.export.recording import Recording, read_recording
from engine.settings import ASSETS
from engine.store.run_file import Selection
from pages.parts.feed import Frame, Snapshot


def recordings() -> list[Path]:
    """The recordings that ship with the lab."""
    folder = ASSETS / "recorded"
    return sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])


class RecordedRun:
    """One recording."""

    def __init__(self, path: Path) -> None:
        self._recording = _read(str(path))
        self.id = str(self._recording.run["id"])

    @property
    def run(self) -> dict[str, Any]:
        """Id, method, model, dataset and times of the run."""
        return self._recording.run

    @property
    def plan(self) -> dict[str, Any]:
        """Its plan as JSON data."""
        return dict(self._recording.data["plan"])

    def snapshot(self) -> Snapshot:
        """The whole record: nothing in it ever changes."""
        recording = self._recording
        return Snapshot(
            version=recording.version(),
            phase=recording.phase(),
            scalars=recording.scalars(),
            frames={kind: recording.frame_index(kind) for kind in recording.frame_kinds()},
            metas=recording.metas(),
            notes=recording.notes(),
        )

    def frame(self, kind: str, step: int | None = None) -> Frame | None:
        """The newest frame of a kind that is not after a step."""
        return self._recording.frame(kind, step=step)

    def all_frames(self, kind: str) -> list[Frame]:
        """Every frame of a kind, by step."""
        found = [self._recording.frame(kind, version) for version, _ in self._recording.frame_index(kind)]
        return [frame for frame in found if frame is not None]

    def selection(self) -> Selection:
        """Every entry that the method had selected, in order; none when there were too many to record."""
        return self._recording.selection()


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(path: str) -> Recording:
    return read_recording(Path(path))
