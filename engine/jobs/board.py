"""The engine's own tables in ``engine.db``: itself, and the workers it has."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.jobs.process import Identity, is_alive
from engine.store.database import Database
from engine.store.paths import Layout

ANSWERS = "answers"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS engine(one INTEGER PRIMARY KEY CHECK(one = 1), pid INTEGER NOT NULL, created REAL NOT NULL,
    started REAL NOT NULL, revision TEXT NOT NULL, slots TEXT NOT NULL, beat REAL NOT NULL);
CREATE TABLE IF NOT EXISTS worker(name TEXT PRIMARY KEY, slot TEXT NOT NULL, pid INTEGER NOT NULL,
    created REAL NOT NULL, revision TEXT NOT NULL, ready INTEGER NOT NULL DEFAULT 0, beat REAL NOT NULL);
"""


@dataclass(frozen=True)
class EngineState:
    """What pages show of the engine; times in seconds since 1970."""

    pid: int
    created: float
    started: float
    revision: str
    slots: list[str]
    beat: float

    @property
    def identity(self) -> Identity:
        """Its process."""
        return Identity(self.pid, self.created)


@dataclass(frozen=True)
class WorkerRow:
    """One worker process: warm when ``ready``."""

    name: str
    slot: str
    pid: int
    created: float
    revision: str
    ready: bool
    beat: float

    @property
    def handle(self) -> dict[str, Any]:
        """How a run's row names it."""
        return {"name": self.name, "pid": self.pid, "created": self.created}


class Board:
    """The engine's and the workers' rows."""

    def __init__(self, home: Path) -> None:
        self._database = Database(Layout(home).engine_db, _SCHEMA)

    def engine(self) -> EngineState | None:
        """The engine that wrote its row last and still runs, or None."""
        rows = self._database.read("SELECT pid, created, started, revision, slots, beat FROM engine")
        if not rows:
            return None
        state = EngineState(**{**dict(rows[0]), "slots": json.loads(rows[0]["slots"])})
        return state if is_alive(state.identity) else None

    def engine_began(self, identity: Identity, revision: str, slots: list[str]) -> None:
        """Write the engine's row."""
        now = time.time()
        self._database.change(
            "INSERT OR REPLACE INTO engine VALUES(1, ?, ?, ?, ?, ?, ?)",
            (identity.pid, identity.created, now, revision, json.dumps(slots), now),
        )

    def engine_beats(self, slots: list[str]) -> None:
        """The engine lives, with these slots."""
        self._database.change("UPDATE engine SET beat = ?, slots = ?", (time.time(), json.dumps(slots)))

    def engine_left(self, identity: Identity) -> None:
        """Remove the engine's row, if it is still its own."""
        self._database.change("DELETE FROM engine WHERE pid = ?", (identity.pid,))

    def workers(self) -> list[WorkerRow]:
        """All workers, dead or alive, oldest first."""
        columns = "name, slot, pid, created, revision, ready, beat"
        rows = self._database.read(f"SELECT {columns} FROM worker ORDER BY created")
        return [WorkerRow(**{**dict(row), "ready": bool(row["ready"])}) for row in rows]

    def add_worker(self, name: str, slot: str, identity: Identity, revision: str) -> None:
        """Note a worker that was started; it notes itself too, in case its starter died meanwhile."""
        self._database.change(
            "INSERT OR IGNORE INTO worker(name, slot, pid, created, revision, beat) VALUES(?, ?, ?, ?, ?, ?)",
            (name, slot, identity.pid, identity.created, revision, time.time()),
        )

    def worker_ready(self, name: str) -> None:
        """The worker is warm and waits for work."""
        self._database.change("UPDATE worker SET ready = 1, beat = ? WHERE name = ?", (time.time(), name))

    def worker_beats(self, name: str) -> None:
        """The worker lives."""
        self._database.change("UPDATE worker SET beat = ? WHERE name = ?", (time.time(), name))

    def remove_worker(self, name: str) -> None:
        """Forget a worker that has left."""
        self._database.change("DELETE FROM worker WHERE name = ?", (name,))

    def assigned(self, name: str) -> list[str]:
        """The runs that a worker was given and has not ended, oldest first; several where they share a pass."""
        rows = self._database.read(
            "SELECT id FROM run WHERE state = 'active' AND json_extract(worker, '$.name') = ? ORDER BY created, id",
            (name,),
        )
        return [row["id"] for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
