"""Reading a run's file, also while it is being written, and before there is one."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.events import Level, Phase
from engine.store.database import open_for_reading, storing
from engine.store.packing import unpack

Series = tuple[np.ndarray, np.ndarray]
Selection = dict[str, np.ndarray]


@dataclass(frozen=True)
class Note:
    """A sentence for the user; ``at`` in seconds since 1970."""

    at: float
    level: Level
    text: str
    step: int | None


@dataclass(frozen=True)
class PhaseState:
    """Where the run is: ``done`` of ``total`` within the phase, as of ``at`` (seconds since 1970)."""

    phase: Phase
    done: int
    total: int
    at: float


class RunReader:
    """One run's record, read-only; any number of them, from any thread.

    A file that does not exist yet reads as an empty one. All methods raise StoreError
    when the file is damaged.

    Args:
        path: the run's database.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def version(self) -> int:
        """A number that grows with every commit; 0 when there is no file yet."""
        rows = self._rows("SELECT version FROM state")
        return int(rows[0][0]) if rows else 0

    def phase(self) -> PhaseState:
        """Where the run is."""
        rows = self._rows("SELECT phase, done, total, at FROM state")
        return PhaseState(*rows[0]) if rows else PhaseState("queued", 0, 0, 0.0)

    def keys(self) -> list[str]:
        """The names of all series."""
        return [row[0] for row in self._rows("SELECT key FROM series ORDER BY key")]

    def scalars(self, keys: Iterable[str] | None = None, max_points: int = 500) -> dict[str, Series]:
        """Series as (steps int64, values float64), each thinned to at most ``max_points``.

        A long series is cut into equal stretches of steps, of which the smallest and the
        largest value stay, besides the first and the last point: no spike is lost.
        """
        wanted = None if keys is None else set(keys)
        found = {}
        for number, key in self._rows("SELECT id, key FROM series ORDER BY key"):
            if wanted is None or key in wanted:
                found[key] = self._series(number, max_points)
        return found

    def latest(self) -> dict[str, tuple[int, float]]:
        """The last (step, value) of every series."""
        rows = self._rows(
            "SELECT key, step, value FROM series JOIN scalar ON series = id "
            "AND step = (SELECT max(step) FROM scalar WHERE series = id)"
        )
        return {key: (step, _number(value)) for key, step, value in rows}

    def _series(self, number: int, max_points: int) -> Series:
        extent = "SELECT count(*), min(step), max(step) FROM scalar WHERE series = ?"
        count, first, last = self._rows(extent, (number,))[0]
        if count <= max_points:
            rows = self._rows("SELECT step, value FROM scalar WHERE series = ? ORDER BY step", (number,))
            return _series(rows)
        stretch = -(-(last - first + 1) // max(1, (max_points - 2) // 2))
        points: dict[int, Any] = {}
        # SQLite gives the bare column `step` from the row that holds the minimum or maximum.
        for extreme in ("min", "max"):
            sql = f"SELECT step, {extreme}(value) FROM scalar WHERE series = ? GROUP BY (step - ?) / ?"
            points.update((row[0], row[1]) for row in self._rows(sql, (number, first, stretch)))
        ends = "SELECT step, value FROM scalar WHERE series = ? AND step IN (?, ?)"
        points.update((row[0], row[1]) for row in self._rows(ends, (number, first, last)))
        return _series(sorted(points.items()))

    def frame_kinds(self) -> list[str]:
        """The kinds of which there are frames."""
        return [row[0] for row in self._rows("SELECT DISTINCT kind FROM frame ORDER BY kind")]

    def frame_index(self, kind: str) -> list[tuple[int, int]]:
        """(version, step) of each frame of a kind, by step."""
        rows = self._rows("SELECT version, step FROM frame WHERE kind = ? ORDER BY step", (kind,))
        return [(row[0], row[1]) for row in rows]

    def frame(
        self, kind: str, version: int | None = None, *, step: int | None = None
    ) -> tuple[int, dict[str, np.ndarray]] | None:
        """One frame as (step, arrays): the latest, or the newest not after a version or step.

        Frames are thinned while a run goes on, so that one seen in the index may be gone:
        then its neighbour before it is given, or the first one. None when the kind has no frame.
        """
        column, limit = ("step", step) if version is None else ("version", version)
        rows: Sequence[Any] = []
        if limit is not None:
            newest = f"SELECT step, data FROM frame WHERE kind = ? AND {column} <= ? ORDER BY {column} DESC LIMIT 1"
            rows = self._rows(newest, (kind, limit))
        if not rows:
            order = "ASC" if limit is not None else "DESC"
            rows = self._rows(f"SELECT step, data FROM frame WHERE kind = ? ORDER BY step {order} LIMIT 1", (kind,))
        return (rows[0][0], unpack(rows[0][1])) if rows else None

    def selection(self, until_step: int | None = None) -> Selection:
        """All entries selected until a step, in the order in which they were.

        Returns:
            Three int32 arrays with one element per entry, from the frames of kind ``selected``:
            ``tensor``, the row of the layout; ``index``, flat in that tensor; ``step``, when it was selected.
        """
        rows = self._rows("SELECT data FROM frame WHERE kind = 'selected' ORDER BY step")
        frames = [unpack(row[0]) for row in rows]
        empty = [np.empty(0, np.int32)]
        chosen = {
            name: np.concatenate([frame[name].astype(np.int32) for frame in frames] or empty)
            for name in ("tensor", "index", "step")
        }
        if until_step is None:
            return chosen
        early = chosen["step"] <= until_step
        return {name: column[early] for name, column in chosen.items()}

    def notes(self) -> list[Note]:
        """All notes, oldest first."""
        return [Note(*row) for row in self._rows("SELECT at, level, text, step FROM note ORDER BY id")]

    def meta(self, key: str, default: Any = None) -> Any:
        """One value that describes the run."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def metas(self) -> dict[str, Any]:
        """All values that describe the run."""
        return {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM meta ORDER BY key")}

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, storing(self.path):
            if self._connection is None:
                if not self.path.exists():
                    return []
                self._connection = open_for_reading(self.path)
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                # The writer has made the file but not yet its tables.
                if "no such table" in str(error):
                    return []
                raise


def _number(value: float | None) -> float:
    """SQLite stores NaN as NULL."""
    return float("nan") if value is None else value


def _series(rows: Sequence[tuple[int, Any]]) -> Series:
    steps = np.array([row[0] for row in rows], dtype=np.int64)
    return steps, np.array([_number(row[1]) for row in rows], dtype=np.float64)
