"""Short questions, such as "what does this run answer to this text": answered while long runs go on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import EngineError, UnknownName
from engine.store.database import Database
from engine.store.paths import Layout

KEEP_SECONDS = 3600.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS request(id TEXT PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued', result TEXT, error TEXT, todo TEXT,
    asked REAL NOT NULL, done REAL, worker TEXT);
CREATE INDEX IF NOT EXISTS request_state ON request(state);
"""
RequestState = Literal["queued", "active", "answered", "failed"]
Answerer = Callable[[Path, str, Mapping[str, Any], Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One question and, once ``state`` is ``answered`` or ``failed``, what came of it."""

    id: str
    kind: str
    payload: dict[str, Any]
    state: RequestState
    result: dict[str, Any] | None
    error: str | None
    todo: str | None

    @property
    def is_over(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self.state in ("answered", "failed")

    def value(self) -> dict[str, Any]:
        """The answer.

        Raises:
            EngineError: when it failed, with the reason.
        """
        if self.state == "failed" or self.result is None:
            raise EngineError(self.error or "There is no answer yet.", self.todo or "")
        return self.result


class Requests:
    """The table of questions."""

    def __init__(self, home: Path) -> None:
        self._database = Database(Layout(home).engine_db, _SCHEMA)

    def ask(self, kind: str, payload: Mapping[str, Any]) -> str:
        """Put a question and return its id; answers are kept for an hour."""
        request_id = uuid.uuid4().hex
        now = time.time()
        with self._database.writing() as connection:
            connection.execute("DELETE FROM request WHERE asked < ?", (now - KEEP_SECONDS,))
            connection.execute(
                "INSERT INTO request(id, kind, payload, asked) VALUES(?, ?, ?, ?)",
                (request_id, kind, json.dumps(payload), now),
            )
        return request_id

    def get(self, request_id: str) -> Request:
        """A question as it stands.

        Raises:
            UnknownName: when it was never asked, or long ago.
        """
        rows = self._database.read(
            "SELECT id, kind, payload, state, result, error, todo FROM request WHERE id = ?", (request_id,)
        )
        if not rows:
            raise UnknownName("request", request_id, [])
        values = dict(rows[0])
        result = json.loads(values["result"]) if values["result"] is not None else None
        return Request(**{**values, "payload": json.loads(values["payload"]), "result": result})

    def waiting(self) -> int:
        """How many have no answer yet."""
        rows = self._database.read("SELECT count(*) AS n FROM request WHERE state IN ('queued', 'active')")
        return int(rows[0]["n"])

    def take(self, worker: str) -> Request | None:
        """The oldest question, now this worker's to answer."""
        rows = self._database.read("SELECT id FROM request WHERE state = 'queued' ORDER BY asked LIMIT 1")
        if not rows:
            return None
        request_id = rows[0]["id"]
        taken = self._database.change(
            "UPDATE request SET state = 'active', worker = ? WHERE id = ? AND state = 'queued'", (worker, request_id)
        )
        return self.get(request_id) if taken else None

    def answer(self, request_id: str, result: Mapping[str, Any]) -> None:
        """Give the answer."""
        self._database.change(
            "UPDATE request SET state = 'answered', result = ?, done = ? WHERE id = ? AND state = 'active'",
            (json.dumps(result), time.time(), request_id),
        )

    def fail(self, request_id: str, error: str, todo: str = "") -> None:
        """Say why there is no answer."""
        self._database.change(
            "UPDATE request SET state = 'failed', error = ?, todo = ?, done = ? WHERE id = ? AND state = 'active'",
            (error, todo, time.time(), request_id),
        )

    def fail_lost(self, living: Collection[str], error: str, todo: str = "", *, queued_too: bool = False) -> None:
        """Fail the questions of answerers that are not among the living, and on demand those nobody can take."""
        marks = ", ".join("?" * len(living))
        gone = f"(state = 'active' AND worker NOT IN ({marks}))" + (" OR state = 'queued'" if queued_too else "")
        self._database.change(
            f"UPDATE request SET state = 'failed', error = ?, todo = ?, done = ? WHERE {gone}",
            (error, todo, time.time(), *living),
        )

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
