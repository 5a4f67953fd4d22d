"""Which frames stay, and which points of a series are shown: constant size for a run of any length."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

KEPT_FRAMES = 120


@dataclass
class _Kind:
    """Unmarked frames of one kind are numbered as they come; those at multiples of the stride stay."""

    seen: int = 0
    stride: int = 1
    waiting: dict[int, tuple[int | None, bytes]] = field(default_factory=dict)  # step -> (ordinal, blob)

    def superfluous(self, ordinal: int | None) -> bool:
        """Whether a frame goes: it was not marked, is off the stride, and is not the latest."""
        return ordinal is not None and ordinal % self.stride != 0 and ordinal != self.seen - 1


class FrameTimeline:
    """Frames on their way into the file, thinned evenly over the run.

    When a kind is full its stride doubles and every other frame goes; the first and the
    latest always stay, and so does each frame marked ``keep``. Steps already in the file
    are replaced in place, so that the numbering stays even.
    """

    def __init__(self, connection: sqlite3.Connection, kept: int) -> None:
        self._kept = max(kept, 4)
        self._connection = connection
        self.reload(connection)

    def reload(self, connection: sqlite3.Connection) -> None:
        """Read the numbering from the file, as when it is opened."""
        self._kinds: dict[str, _Kind] = {}
        for kind, seen in connection.execute("SELECT kind, coalesce(max(ordinal), -1) + 1 FROM frame GROUP BY kind"):
            self._kinds[kind] = _Kind(seen=seen)
        for kind, stride in connection.execute("SELECT kind, stride FROM stride"):
            self._kinds.setdefault(kind, _Kind()).stride = stride

    def add(self, kind: str, step: int, blob: bytes, keep: bool) -> None:
        """Take one frame; it is in the file after the next `write`."""
        state = self._kinds.setdefault(kind, _Kind())
        ordinal = None if keep else self._ordinal(kind, state, step)
        state.waiting[step] = (ordinal, blob)
        while (state.seen - 1) // state.stride + 1 >= self._kept:
            state.stride *= 2
        state.waiting = {at: item for at, item in state.waiting.items() if not state.superfluous(item[0])}

    def _ordinal(self, kind: str, state: _Kind, step: int) -> int:
        known: int | None = None
        if step in state.waiting:
            known = state.waiting[step][0]
        elif state.seen:
            found = self._connection.execute(
                "SELECT ordinal FROM frame WHERE kind = ? AND step = ?", (kind, step)
            ).fetchone()
            known = found[0] if found else None
        if known is None:
            known = state.seen
            state.seen += 1
        return known

    def write(self, connection: sqlite3.Connection) -> None:
        """Put what waits into the file and drop what has become superfluous; changes nothing here."""
        for kind, state in self._kinds.items():
            if not state.waiting:
                continue
            connection.execute("INSERT OR REPLACE INTO stride VALUES(?, ?)", (kind, state.stride))
            connection.executemany(
                "INSERT OR REPLACE INTO frame(kind, step, ordinal, data) VALUES(?, ?, ?, ?)",
                [(kind, step, ordinal, blob) for step, (ordinal, blob) in sorted(state.waiting.items())],
            )
            connection.execute(
                "DELETE FROM frame WHERE kind = ? AND ordinal % ? != 0 AND ordinal != ?",
                (kind, state.stride, state.seen - 1),
            )

    def written(self) -> None:
        """What waited is durable."""
        for state in self._kinds.values():
            state.waiting.clear()
