"""How a worker shows that it lives, and how it learns that nobody needs it any more."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from engine.errors import Stopped, StoreError
from engine.jobs.board import Board
from engine.jobs.process import Identity, own_identity
from engine.store.runs import Runs

BEAT_SECONDS = 1.0
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05


class Presence:
    """A worker's row on the board, its beat each second, and its end.

    Args:
        home: the store.
        name: the worker's name, given by whoever started it.
        slot: what it serves.
        revision: hash of the code it was started from.
        identity: how it is found again; by default this process.
    """

    def __init__(self, home: Path, name: str, slot: str, revision: str, identity: Identity | None = None) -> None:
        self.home = home
        self.name = name
        self.board = Board(home)
        self.leaving = threading.Event()
        self.run_ids: Sequence[str] = ()
        self._row = (name, slot, identity or own_identity(), revision)
        self._runs = Runs(home)
        self._engine_seen = time.monotonic()
        self._looked = float("-inf")
        self._ready = False
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="beat", daemon=True)

    def __enter__(self) -> Presence:
        self.board.add_worker(*self._row)
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beats.join()
        # One that never became ready stays on the board, dead, for the engine to count.
        if self._ready:
            with contextlib.suppress(StoreError):
                self.board.remove_worker(self.name)

    def ready(self) -> None:
        """Everything heavy is imported."""
        self.board.worker_ready(self.name)
        self._ready = True

    def wanted(self) -> bool:
        """Whether to wait for more work: until told to leave, or no engine has been alive for a while."""
        now = time.monotonic()
        if now - self._looked > BEAT_SECONDS:
            self._looked = now
            with contextlib.suppress(StoreError):
                if self.board.engine() is not None:
                    self._engine_seen = now
        return not self.leaving.is_set() and now - self._engine_seen < GRACE_SECONDS

    @contextlib.contextmanager
    def carrying(self, run_ids: Sequence[str]) -> Iterator[None]:
        """While runs are carried out, they beat too; at once, because a run without a beat was never begun."""
        self._runs.beat(run_ids)
        self.run_ids = run_ids
        try:
            yield
        finally:
            self.run_ids = ()
            self._engine_seen = time.monotonic()  # nobody looked for it meanwhile

    def obey_signals(self) -> None:
        """Make a request to end polite: a run that was asked to stop ends as stopped, and the worker stays."""
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        asked = [how for run_id in self.run_ids if (how := self._runs.stop_request(run_id)) is not None]
        if asked and len(self.run_ids) == 1:
            raise Stopped(keep=asked[0] == "keep")
        if asked:
            return  # of runs that share a pass, the one that is meant looks for itself
        self.leaving.set()
        if self.run_ids:
            # Not an Exception: the run stays active, and the supervisor has it continued.
            raise SystemExit(128 + number)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            run_ids = self.run_ids
            try:
                self.board.worker_beats(self.name)
                if run_ids:
                    self._runs.beat(run_ids)
            except StoreError:
                continue  # a full disk ends the run itself, with its reason
