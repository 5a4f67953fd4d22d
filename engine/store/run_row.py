"""One run's row: its columns, its states, and which state may follow which."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, fields
from typing import Any, Literal

from engine.events import Phase

State = Literal["queued", "active", "finished", "failed", "diverged", "stopped"]
STATES: tuple[State, ...] = ("queued", "active", "finished", "failed", "diverged", "stopped")
OVER: tuple[State, ...] = ("finished", "failed", "diverged", "stopped")
StopHow = Literal["keep", "discard"]

TRANSITIONS: frozenset[tuple[State, State]] = frozenset(
    {
        ("queued", "active"),  # a worker took it
        ("queued", "stopped"),  # stopped before it began
        ("queued", "failed"),  # no slot of this machine can ever take it
        ("active", "queued"),  # its worker was lost for the first time
        ("active", "finished"),
        ("active", "failed"),
        ("active", "diverged"),
        ("active", "stopped"),
        ("stopped", "queued"),  # resumed
        ("failed", "queued"),  # resumed after its cause was mended
    }
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS run(
    id TEXT PRIMARY KEY, spec_hash TEXT NOT NULL, spec TEXT NOT NULL, plan TEXT NOT NULL,
    method TEXT NOT NULL, model TEXT NOT NULL, dataset TEXT NOT NULL,
    seed INTEGER NOT NULL, seeds TEXT NOT NULL, device TEXT NOT NULL, owner TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued', phase TEXT NOT NULL DEFAULT 'queued',
    phase_done INTEGER NOT NULL DEFAULT 0, phase_total INTEGER NOT NULL DEFAULT 0,
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, finished REAL, error TEXT, todo TEXT, summary TEXT,
    parent TEXT, priority INTEGER NOT NULL DEFAULT 0, stop TEXT, stop_asked REAL,
    slot TEXT, worker TEXT, beat REAL, attempts INTEGER NOT NULL DEFAULT 0,
    losses INTEGER NOT NULL DEFAULT 0, hidden INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS run_state ON run(state);
CREATE INDEX IF NOT EXISTS run_hash ON run(spec_hash);
CREATE INDEX IF NOT EXISTS run_created ON run(created);
CREATE TABLE IF NOT EXISTS change(one INTEGER PRIMARY KEY CHECK(one = 1), version INTEGER NOT NULL);
INSERT OR IGNORE INTO change VALUES(1, 0);
CREATE TRIGGER IF NOT EXISTS run_added AFTER INSERT ON run BEGIN UPDATE change SET version = version + 1; END;
CREATE TRIGGER IF NOT EXISTS run_removed AFTER DELETE ON run BEGIN UPDATE change SET version = version + 1; END;
CREATE TRIGGER IF NOT EXISTS run_changed AFTER UPDATE OF state, phase, phase_done, step, error, summary, stop, hidden
    ON run BEGIN UPDATE change SET version = version + 1; END
"""
_JSON = frozenset({"spec", "plan", "seeds", "summary", "worker"})


@dataclass(frozen=True)
class RunRow:
    """What the queue and the tables know about a run; times in seconds since 1970."""

    id: str
    spec_hash: str
    spec: dict[str, Any]
    plan: dict[str, Any]
    method: str
    model: str
    dataset: str
    seed: int
    seeds: list[int]
    device: str
    owner: str
    state: State
    phase: Phase
    phase_done: int
    phase_total: int
    step: int
    steps: int
    created: float
    started: float | None
    finished: float | None
    error: str | None
    todo: str | None
    summary: dict[str, Any] | None
    parent: str | None
    priority: int
    stop: StopHow | None
    stop_asked: float | None
    slot: str | None
    worker: dict[str, Any] | None
    beat: float | None
    attempts: int
    losses: int
    hidden: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen unless it is resumed."""
        return self.state in OVER


COLUMNS = tuple(field.name for field in fields(RunRow))


def read_row(row: sqlite3.Row) -> RunRow:
    """A row of the table as a RunRow."""
    values = {name: _read(name, row[name]) for name in COLUMNS}
    return RunRow(**values)


def _read(name: str, value: Any) -> Any:
    if name in _JSON and value is not None:
        return json.loads(value)
    return bool(value) if name == "hidden" else value
