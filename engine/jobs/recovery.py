"""What happens to runs that are asked to stop and do not, and to runs whose worker is gone."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from engine.errors import StoreError
from engine.events import Level
from engine.jobs import process
from engine.jobs.backends.base import Backend
from engine.jobs.options import Options
from engine.jobs.process import Identity
from engine.jobs.runlog import tail
from engine.store.run_file import RunWriter
from engine.store.run_row import RunRow
from engine.store.runs import Runs

LOG_LINES = 12
ATTEMPTS_WITHOUT_A_BEAT = 5
"""A run whose worker leaves this often before it begins is lost like any other."""
log = logging.getLogger(__name__)


def identity_of(worker: dict[str, Any] | None) -> Identity | None:
    """The process named in a run's row; None where none is, or not by number and birth."""
    return Identity(worker["pid"], worker["created"]) if worker and {"pid", "created"} <= worker.keys() else None


class Recovery:
    """Stops with growing force, and what to do about lost runs."""

    def __init__(self, runs: Runs, backend: Backend, options: Options) -> None:
        self._runs = runs
        self._backend = backend
        self._options = options
        self._asked: dict[tuple[str, float], float] = {}

    def press(self, row: RunRow) -> None:
        """Go on stopping a run that was asked to: by signal after a while, by force in the end."""
        identity = identity_of(row.worker)
        if row.stop_asked is None or identity is None:
            return
        asked = (row.id, row.stop_asked)
        if asked not in self._asked:
            if time.time() - row.stop_asked > self._options.term_seconds:
                self._asked[asked] = time.monotonic()
                self._backend.stop(identity, hard=False)
        # Counted from the signal by a clock that nobody sets: the machine may have slept since the request.
        elif time.monotonic() - self._asked[asked] > self._options.kill_seconds - self._options.term_seconds:
            log.info("run %s does not stop: ending its processes", row.id)
            self._backend.stop(identity, hard=True)

    def settle(self, row: RunRow) -> bool:
        """Deal with an active run whose worker is gone; whether it was."""
        identity = identity_of(row.worker)
        if (identity is None and row.worker) or (identity is not None and self._backend.alive(identity)):
            return False  # it lives, or is carried out by somebody who did not say how to find them
        if identity is not None:
            self._backend.stop(identity, hard=True)  # what the worker started may have outlived it
        row = self._runs.get(row.id)
        if row.state != "active":
            return True  # it ended, and recorded that, just now
        how = process.how_it_ended(process.exit_code(identity)) if identity else "it disappeared"
        log.warning("run %s: its worker is gone, %s", row.id, how)
        if row.stop is not None:
            self._stop(row)
        elif row.beat is None and row.attempts < ATTEMPTS_WITHOUT_A_BEAT:
            self._runs.requeue(row.id, lost=False)  # the worker left before it had begun
        elif row.losses == 0:
            self._continue(row, how)
        else:
            self._give_up(row, how)
        return True

    def _stop(self, row: RunRow) -> None:
        if row.stop == "discard":
            self._runs.discard_checkpoint(row.id)
        self._note(row, "warning", "The run did not stop when asked, so its process was ended.")
        self._runs.finish(row.id, "stopped")

    def _continue(self, row: RunRow, how: str) -> None:
        where = "from its last checkpoint" if self._runs.folder(row.id).checkpoint.exists() else "from its beginning"
        self._note(row, "warning", f"The run lost its worker at step {row.step} ({how}). It goes on {where}, once.")
        self._runs.requeue(row.id)

    def _give_up(self, row: RunRow, how: str) -> None:
        lines = tail(self._runs.folder(row.id).log, LOG_LINES)
        error = f"The run lost its worker twice, the second time at step {row.step}: {how}."
        shown = f"{error}\n{lines}" if lines else error
        todo = "Make it smaller if memory ran out; resume it to try again."
        self._note(row, "error", f"{error} {todo}")
        self._runs.finish(row.id, "failed", error=shown, todo=todo)

    def _note(self, row: RunRow, level: Level, text: str) -> None:
        # The row says the same; a note that cannot be written must not keep the run from going on.
        with contextlib.suppress(StoreError), RunWriter(self._runs.folder(row.id).database) as writer:
            writer.note(level, text, row.step)
