"""Workers as threads of this very process, for tests and notebooks: nothing to start, nothing isolated."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from engine.jobs import process
from engine.jobs.answerer import serve_answers
from engine.jobs.board import ANSWERS
from engine.jobs.options import Options
from engine.jobs.presence import Presence
from engine.jobs.process import Identity
from engine.jobs.worker import serve_runs


class InlineBackend:
    """Implements `Backend`; a thread cannot be ended, only asked to leave once its run is over."""

    def __init__(self, home: Path, options: Options, slots: Sequence[str] = ("cpu:0",)) -> None:
        self._home = home
        self._options = options
        self._slots = list(slots)
        self._numbers = itertools.count(1)
        self._threads: dict[int, tuple[threading.Thread, Presence]] = {}

    def capacity(self) -> list[str]:
        """The given slots."""
        return self._slots

    def launch(self, slot: str, name: str, revision: str) -> Identity:
        """Start a worker's loop in a thread; its identity has a negative number, which no process has."""
        identity = Identity(-next(self._numbers), time.time())
        presence = Presence(self._home, name, slot, revision, identity)
        thread = threading.Thread(target=self._serve, args=(presence, slot), name=name, daemon=True)
        self._threads[identity.pid] = (thread, presence)
        thread.start()
        return identity

    def _serve(self, presence: Presence, slot: str) -> None:
        with presence:
            if slot == ANSWERS:
                serve_answers(presence, self._options.answerer)
            else:
                serve_runs(presence, self._options.runner, own_log=False)

    def alive(self, identity: Identity) -> bool:
        """Whether the thread still runs; processes are looked up as such."""
        if identity.pid > 0:
            return process.is_alive(identity)
        known = self._threads.get(identity.pid)
        return known is not None and known[0].is_alive()

    def stop(self, identity: Identity, *, hard: bool) -> None:
        """Ask the thread to leave."""
        if identity.pid in self._threads:
            self._threads[identity.pid][1].leaving.set()
