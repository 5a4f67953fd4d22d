"""The engine: gives queued runs to warm workers, sees to those that go wrong, and leaves when nobody needs it.

It imports nothing heavy and does no work itself, so that it is small and hard to break.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Literal

from engine.errors import EngineError
from engine.jobs.answers import Requests
from engine.jobs.backends.base import Backend
from engine.jobs.board import ANSWERS, Board
from engine.jobs.crew import Crew
from engine.jobs.fairness import company_of, device_of, fits, next_run
from engine.jobs.options import Options
from engine.jobs.process import own_identity
from engine.jobs.recovery import Recovery
from engine.jobs.runlog import tail
from engine.store.paths import Layout
from engine.store.provenance import code_hash
from engine.store.run_row import RunRow
from engine.store.runs import Runs

TICK_SECONDS = 0.2
CODE_SECONDS = 2.0
Why = Literal["idle", "code", "asked"]
log = logging.getLogger(__name__)


class Supervisor:
    """One home's scheduler; hold its lock before you run it.

    Args:
        home: the store.
        backend: where workers run.
        options: its settings.
    """

    def __init__(self, home: Path, backend: Backend, options: Options) -> None:
        self.leaving = threading.Event()
        self._options = options
        self._backend = backend
        self._layout = Layout(home)
        self._runs = Runs(home)
        self._board = Board(home)
        self._requests = Requests(home)
        self._identity = own_identity()
        self._files = _fingerprint(options.code)
        self._revision = code_hash(options.code)
        self._crew = Crew(self._board, backend, self._revision)
        self._recovery = Recovery(self._runs, backend, options)
        self._busy_at = self._beaten = self._code_seen = time.monotonic()
        self._outdated = False
        self._runs.list(limit=1)  # makes the tables that workers read
        self._board.engine_began(self._identity, self._revision, [])

    def run(self) -> Why:
        """Schedule until there is a reason to leave, which is returned."""
        why: Why | None = None
        while why is None and not self.leaving.wait(TICK_SECONDS):
            try:
                why = self.tick()
            except EngineError as error:
                log.warning("%s", error)  # a full disk, say: wait for better times
                self._crew.excuse()
                self.leaving.wait(1.0)
            except Exception:
                # A mistake in one turn must not end the queue.
                log.exception("the engine made a mistake")
                self.leaving.wait(1.0)
        return why or "asked"

    def tick(self) -> Why | None:
        """One turn; returns why the engine should leave, if it should."""
        slots = self._backend.capacity()
        active = self._runs.list(states=["active"], hidden=True)
        queued = self._runs.list(states=["queued"], hidden=True)
        self._crew.refresh(_names(active))
        # Before anything is written: a worker that hangs while it holds the file would keep all others from it.
        self._crew.end_hung(self._options.hung_seconds)
        self._beat(slots or [])
        for row in active:
            self._recovery.press(row)
        active = [row for row in active if not self._recovery.settle(row)]
        self._notice_new_code()
        waiting = self._requests.waiting()
        if active or queued or waiting:
            self._busy_at = time.monotonic()
        self._serve_questions(waiting)
        if self._outdated:
            return None if active or waiting else "code"
        if slots is not None:
            self._assign(slots, queued, active)
        return "idle" if time.monotonic() - self._busy_at > self._options.idle_seconds else None

    def close(self) -> None:
        """Dismiss idle workers and take the engine's row away; busy workers finish on their own."""
        try:
            self._crew.dismiss(_names(self._runs.list(states=["active"], hidden=True)))
            self._board.engine_left(self._identity)
        except EngineError as error:
            log.warning("%s", error)
        for file in (self._runs, self._board, self._requests):
            file.close()

    def work_is_left(self) -> bool:
        """Whether something was queued while the engine was leaving."""
        return bool(self._runs.list(states=["queued"], hidden=True, limit=1)) or self._requests.waiting() > 0

    def _beat(self, slots: list[str]) -> None:
        now = time.monotonic()
        if now - self._beaten >= 1.0:
            self._beaten = now
            self._board.engine_beats(slots)

    def _notice_new_code(self) -> None:
        """See whether files changed, and only then whether their content did."""
        now = time.monotonic()
        if self._outdated or now - self._code_seen < CODE_SECONDS:
            return
        self._code_seen = now
        files = _fingerprint(self._options.code)
        if files != self._files:
            self._files = files
            self._outdated = code_hash(self._options.code) != self._revision

    def _assign(self, slots: list[str], queued: list[RunRow], active: list[RunRow]) -> None:
        """Give each free slot its next run; keep the preferred slot warm."""
        if slots:
            self._crew.ensure(slots[0])
        queued = self._refuse_impossible(slots, queued)
        turns = self._runs.last_turns() if queued else {}
        taken = {row.slot for row in active}
        for slot in slots:
            if slot in taken:
                continue
            row = next_run(queued, active, turns, slot)
            if row is None:
                continue
            self._crew.ensure(slot)
            worker = self._crew.ready(slot)
            company = company_of(row, queued, active, turns, slot) if worker is not None else []
            if worker is not None and self._runs.claim(row.id, slot, worker.handle, *(other.id for other in company)):
                for taken_up in (row, *company):
                    turns[taken_up.owner] = time.time()
                    queued.remove(taken_up)
                    active.append(taken_up)
            elif self._crew.is_broken(slot):
                self._fail_all(slot, queued)
                return

    def _refuse_impossible(self, slots: list[str], queued: list[RunRow]) -> list[RunRow]:
        possible = []
        for row in queued:
            if any(fits(row, slot) for slot in slots):
                possible.append(row)
                continue
            offered = ", ".join(sorted({device_of(slot) for slot in slots}))
            error = f"The run asks for device {row.device!r}, which this machine does not have."
            self._end_queued(row, error, f"Use one of: {offered}.")
        return possible

    def _fail_all(self, slot: str, queued: list[RunRow]) -> None:
        """No worker can be started: better said than waited for."""
        self._crew.forgive(slot)
        error = f"No worker can be started for {slot}. Its log ends with:\n{self._last_words(slot)}"
        for row in queued:
            if fits(row, slot):
                self._end_queued(row, error, "Mend the cause, then resume the run.")

    def _end_queued(self, row: RunRow, error: str, todo: str) -> None:
        self._runs.move(row.id, "failed", when=["queued"], error=error, todo=todo, finished=time.time())

    def _serve_questions(self, waiting: int) -> None:
        if not waiting:
            return
        # Also of one that is not known to be ready yet: it may have taken a question since it was looked at.
        self._requests.fail_lost(self._crew.living(ANSWERS), "The process that answers was lost.", "Ask again.")
        self._crew.ensure(ANSWERS)
        if self._crew.is_broken(ANSWERS):
            self._crew.forgive(ANSWERS)
            error = f"Nothing can be answered. The log ends with:\n{self._last_words(ANSWERS)}"
            self._requests.fail_lost([], error, "Run `python -m engine doctor`.", queued_too=True)

    def _last_words(self, slot: str) -> str:
        return tail(self._layout.logs / f"{slot.replace(':', '-')}.log", 12)


def _names(active: list[RunRow]) -> set[str]:
    return {row.worker["name"] for row in active if row.worker and "name" in row.worker}


def _fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of all Python files: cheap to compare every few seconds."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        try:
            status = path.stat()
        except OSError:
            continue  # removed in between: the next look sees that
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)
