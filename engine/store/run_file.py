"""A run's own SQLite file: one writer that keeps events, and any number of readers.

The writer gathers events in memory and commits them together, at most a second after
the oldest of them: a kill loses at most that second, and a commit that fails (disk full)
keeps its events for the next try. Each commit raises one counter, so that a reader knows
with a single row whether anything is new.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout

from engine.errors import StoreError
from engine.events import Level, Phase
from engine.store.database import open_for_writing, storing, transaction
from engine.store.packing import pack
from engine.store.run_reader import Note, PhaseState, RunReader, Selection
from engine.store.thinning import KEPT_FRAMES, FrameTimeline

__all__ = ["Note", "PhaseState", "RunReader", "RunWriter", "Selection"]

COMMIT_SECONDS = 0.5
SCHEMA = """
CREATE TABLE IF NOT EXISTS state(one INTEGER PRIMARY KEY CHECK(one = 1), version INTEGER NOT NULL,
    phase TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL, at REAL NOT NULL);
INSERT OR IGNORE INTO state VALUES(1, 0, 'queued', 0, 0, 0);
CREATE TABLE IF NOT EXISTS series(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS scalar(series INTEGER NOT NULL, step INTEGER NOT NULL, value REAL,
    PRIMARY KEY(series, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS frame(version INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, step INTEGER NOT NULL,
    ordinal INTEGER, data BLOB NOT NULL, UNIQUE(kind, step));
CREATE TABLE IF NOT EXISTS stride(kind TEXT PRIMARY KEY, stride INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS note(id INTEGER PRIMARY KEY, at REAL NOT NULL, level TEXT NOT NULL, text TEXT NOT NULL,
    step INTEGER);
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
Progress = Callable[[Phase, int, int], None]


class RunWriter:
    """The one writer of a run's file; implements `engine.events.Sink`.

    Safe to call from several threads. A failed background commit is raised by the next call.

    Args:
        path: the run's database; made when missing, continued when there.
        progress: called after a commit with the latest done and total of each phase that was reported.
        commit_seconds: how long an event may wait for others before all are committed.
        kept_frames: how many unmarked frames of a kind stay.

    Raises:
        StoreError: when the file cannot be written, or somebody else is writing it.
    """

    def __init__(
        self,
        path: Path,
        progress: Progress | None = None,
        commit_seconds: float = COMMIT_SECONDS,
        kept_frames: int = KEPT_FRAMES,
    ) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._only = self._claim()
        try:
            self._connection = open_for_writing(self.path, SCHEMA)
        except BaseException:
            self._only.release()
            raise
        self._progress = progress
        self._every = commit_seconds
        self._timeline = FrameTimeline(self._connection, kept_frames)
        self._series: dict[str, int] = dict(self._connection.execute("SELECT key, id FROM series"))
        self._phase: tuple[Phase, int, int] = self._connection.execute(
            "SELECT phase, done, total FROM state"
        ).fetchone()
        self._untold: dict[Phase, tuple[int, int]] = {}
        self._scalars: dict[tuple[str, int], float] = {}
        self._metas: dict[str, str] = {}
        self._notes: list[tuple[float, str, str, int | None]] = []
        self._since: float | None = None
        self._error: StoreError | None = None
        self._closed = threading.Event()
        # Calls alone cannot keep the promise of a second: a slow step is silent for longer.
        self._timer = threading.Thread(target=self._commit_in_time, name="run-writer", daemon=True)
        self._timer.start()

    def _claim(self) -> FileLock:
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name("run.lock"), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise StoreError(
                    f"Another process is writing {self.path}.", "Wait until it has ended, or stop it."
                ) from None
        return lock

    def scalar(self, key: str, step: int, value: float) -> None:
        """One number of a series; a second value for the same step replaces the first."""
        with self._lock:
            self._scalars[key, int(step)] = float(value)
            self._added()

    def frame(self, kind: str, step: int, arrays: Mapping[str, np.ndarray], keep: bool = False) -> None:
        """One picture's data; a second one of the same kind and step replaces the first."""
        blob = pack(arrays)
        with self._lock:
            self._timeline.add(kind, int(step), blob, keep)
            self._added()

    def note(self, level: Level, text: str, step: int | None = None) -> None:
        """A sentence for the user, committed at once."""
        with self._lock:
            self._notes.append((time.time(), level, text, step))
            self._added()
            self.flush()

    def meta(self, key: str, value: object) -> None:
        """One JSON value that describes the run, replacing an earlier one."""
        text = json.dumps(value, allow_nan=True)
        with self._lock:
            self._metas[key] = text
            self._added()

    def phase(self, phase: Phase, done: int = 0, total: int = 0) -> None:
        """Where the run is; a new phase is committed at once, counting within it with the rest."""
        with self._lock:
            new = phase != self._phase[0]
            self._phase = (phase, int(done), int(total))
            self._untold[phase] = (int(done), int(total))
            self._added()
            if new:
                self.flush()

    def rewind(self, step: int) -> None:
        """Forget scalars and frames after a step: a run resumed from there records them again.

        Notes stay, and so does what describes the run.

        Raises:
            StoreError: when the file cannot be written.
        """
        with self._lock:
            self.flush()
            with storing(self.path), transaction(self._connection) as connection:
                connection.execute("DELETE FROM scalar WHERE step > ?", (step,))
                connection.execute("DELETE FROM frame WHERE step > ?", (step,))
                connection.execute("UPDATE state SET version = version + 1")
            self._timeline.reload(self._connection)

    def flush(self) -> None:
        """Make everything so far durable.

        Raises:
            StoreError: when it cannot be written; the events stay, and the next call tries again.
        """
        with self._lock:
            self._error = None
            if self._since is None:
                return
            with storing(self.path), transaction(self._connection) as connection:
                self._write(connection)
            if any(key not in self._series for key, _ in self._scalars):
                self._series = dict(self._connection.execute("SELECT key, id FROM series"))
            self._scalars.clear()
            self._metas.clear()
            self._notes.clear()
            self._timeline.written()
            self._since = None
            # The end of a phase is told even when the next began before the commit.
            untold, self._untold = self._untold, {}
            try:
                for phase, counts in untold.items():
                    if self._progress is not None:
                        self._progress(phase, *counts)
            except StoreError:
                # The record itself is safe; where it is told of is busy or full, and is told at the next commit.
                self._untold = untold | self._untold

    def close(self) -> None:
        """Flush and let go of the file, leaving it as a single one where no reader is in the way.

        Raises:
            StoreError: when the last events cannot be written; the file is let go all the same.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._timer.join()
        try:
            self.flush()
        finally:
            with self._lock:
                self._to_single_file()
                self._connection.close()
                self._only.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except StoreError:
            if error is None:  # never hide why the run really ended
                raise

    def _added(self) -> None:
        """Note that something waits, and commit when the oldest has waited long enough."""
        if self._closed.is_set():
            raise StoreError(f"{self.path} was closed already.")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since >= self._every:
            self.flush()

    def _commit_in_time(self) -> None:
        while not self._closed.wait(self._every / 2):
            with self._lock:
                if self._since is None or time.monotonic() - self._since < self._every:
                    continue
                try:
                    self.flush()
                except StoreError as error:
                    self._error = error

    def _write(self, connection: sqlite3.Connection) -> None:
        rows = [(self._series_id(connection, key), step, value) for (key, step), value in self._scalars.items()]
        connection.executemany("INSERT OR REPLACE INTO scalar VALUES(?, ?, ?)", rows)
        self._timeline.write(connection)
        connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", self._metas.items())
        connection.executemany("INSERT INTO note(at, level, text, step) VALUES(?, ?, ?, ?)", self._notes)
        connection.execute(
            "UPDATE state SET version = version + 1, phase = ?, done = ?, total = ?, at = ?",
            (*self._phase, time.time()),
        )

    def _series_id(self, connection: sqlite3.Connection, key: str) -> int:
        if key not in self._series:
            # Remembered only after the commit: until then it may still be rolled back.
            connection.execute("INSERT OR IGNORE INTO series(key) VALUES(?)", (key,))
            found = connection.execute("SELECT id FROM series WHERE key = ?", (key,)).fetchone()
            return int(found[0])
        return self._series[key]

    def _to_single_file(self) -> None:
        try:
            self._connection.execute("PRAGMA busy_timeout=0")
            self._connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            pass  # a reader has it open: it stays in WAL mode, which is as good
