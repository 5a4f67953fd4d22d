"""The workers of one engine: started when wanted, dropped when dead, replaced when their code is old."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine.jobs.backends.base import Backend
from engine.jobs.board import Board, WorkerRow
from engine.jobs.process import Identity

FAILURES_ALLOWED = 3
WARM_UP_SECONDS = 300.0


@dataclass
class _Seen:
    """A beat, and when by this process's own clock it was first seen; that clock halts while the machine sleeps."""

    beat: float
    at: float


class Crew:
    """Workers by slot.

    Args:
        board: where they are noted.
        backend: where they run.
        revision: of the code that new ones get; idle ones of another are dismissed.
        clock: a monotonic clock.
    """

    def __init__(
        self, board: Board, backend: Backend, revision: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._board = board
        self._backend = backend
        self._revision = revision
        self._clock = clock
        self._workers: list[WorkerRow] = []
        self._beats: dict[str, _Seen] = {}
        self._failures: dict[str, int] = {}

    def refresh(self, busy: Collection[str]) -> None:
        """Look at all workers: forget the dead, dismiss idle ones of old code.

        Args:
            busy: names of workers that have a run.
        """
        living = []
        for row in self._board.workers():
            identity = Identity(row.pid, row.created)
            if not self._backend.alive(identity):
                self._board.remove_worker(row.name)
                # Its row has a later state than what was seen last: it may have been ready in between.
                self._failures[row.slot] = 0 if row.ready else self._failures.get(row.slot, 0) + 1
                continue
            seen = self._beats.get(row.name)
            if seen is None or seen.beat != row.beat:
                self._beats[row.name] = _Seen(row.beat, self._clock())
            if row.ready:
                self._failures[row.slot] = 0
            if row.revision != self._revision and row.name not in busy:
                self._backend.stop(identity, hard=False)
            living.append(row)
        self._workers = living
        self._beats = {row.name: self._beats[row.name] for row in living}

    def silent_seconds(self, name: str) -> float:
        """For how long a worker has not beaten, as seen from here."""
        seen = self._beats.get(name)
        return self._clock() - seen.at if seen is not None else 0.0

    def excuse(self) -> None:
        """Do not hold the silence so far against anybody: nobody's beat could be written down."""
        now = self._clock()
        for seen in self._beats.values():
            seen.at = now

    def ready(self, slot: str) -> WorkerRow | None:
        """The warm worker of a slot, of the present code."""
        return next((row for row in self._of(slot) if row.ready and row.revision == self._revision), None)

    def living(self, slot: str) -> list[str]:
        """Names of a slot's workers, ready or not, of whatever code."""
        return [row.name for row in self._of(slot)]

    def ensure(self, slot: str) -> None:
        """Start a worker on a slot that has none, unless that has failed repeatedly."""
        if self._of(slot) or self.is_broken(slot):
            return
        name = f"{slot}-{secrets.token_hex(4)}"
        identity = self._backend.launch(slot, name, self._revision)
        self._board.add_worker(name, slot, identity, self._revision)
        self._workers.append(WorkerRow(name, slot, identity.pid, identity.created, self._revision, False, time.time()))
        self._beats[name] = _Seen(0.0, self._clock())

    def is_broken(self, slot: str) -> bool:
        """Whether workers of a slot die before they are ready, time after time."""
        return self._failures.get(slot, 0) >= FAILURES_ALLOWED

    def forgive(self, slot: str) -> None:
        """Try again to start workers on a slot."""
        self._failures.pop(slot, None)

    def end_hung(self, hung_seconds: float) -> None:
        """End workers that live but do not beat: stuck in themselves, so that nothing else can be done."""
        for row in self._workers:
            allowed = hung_seconds if row.ready else max(hung_seconds, WARM_UP_SECONDS)
            if self.silent_seconds(row.name) > allowed:
                self._backend.stop(Identity(row.pid, row.created), hard=True)

    def dismiss(self, busy: Collection[str]) -> None:
        """Ask all that have no run to leave."""
        for row in self._workers:
            if row.name not in busy:
                self._backend.stop(Identity(row.pid, row.created), hard=False)

    def _of(self, slot: str) -> list[WorkerRow]:
        return [row for row in self._workers if row.slot == slot]
