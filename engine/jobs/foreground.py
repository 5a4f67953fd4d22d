"""A run in this very process, without an engine: what ``python -m engine run`` does."""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import Stopped, StoreError
from engine.jobs.process import is_alive, own_identity
from engine.jobs.recovery import identity_of
from engine.jobs.runner import RUNNER, carry_out, load
from engine.spec import RunSpec
from engine.store.run_row import RunRow
from engine.store.runs import Runs

SLOT = "here"
BEAT_SECONDS = 1.0


def run_here(
    home: Path,
    spec: RunSpec | Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    owner: str,
    runner: str = RUNNER,
) -> RunRow:
    """Carry out a run now and return its row once it is over.

    The first Ctrl-C asks it to stop and to keep its checkpoint; the second ends it at once.

    Raises:
        SpecError: when the spec is not valid.
        StoreError: when the store cannot be written.
    """
    runs = Runs(home)
    identity = own_identity()
    handle = {"name": f"{SLOT}-{secrets.token_hex(4)}", "pid": identity.pid, "created": identity.created}
    run_id = runs.submit(spec, plan, owner=owner, slot=SLOT, worker=handle)
    with _beating(runs, run_id), _stopped_by_signal(runs, run_id, owner):
        carry_out(home, run_id, load(runner))
    return runs.get(run_id)


def settle_lost(home: Path) -> None:
    """End the foreground runs whose process is gone without having recorded that, as when the disk was full.

    No engine need be there to notice. While the disk is full still, this is left to the next time.
    """
    with closing(Runs(home)) as runs, suppress(StoreError):
        for row in runs.list(states=["active"], hidden=True):
            identity = identity_of(row.worker)
            if row.slot == SLOT and identity is not None and not is_alive(identity):
                _end_lost(runs, row)


def _end_lost(runs: Runs, row: RunRow) -> None:
    if row.stop is not None:
        runs.finish(row.id, "stopped")
        return
    error = f"The process that carried it out was gone after step {row.step} and could not record why."
    runs.finish(row.id, "failed", error=error, todo="See that the disk has space, then resume the run.")


@contextmanager
def _beating(runs: Runs, run_id: str) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            try:
                runs.beat([run_id])
            except StoreError:
                continue  # a full disk ends the run itself, with its reason

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _stopped_by_signal(runs: Runs, run_id: str, owner: str) -> Iterator[None]:
    """Turn Ctrl-C and a request to end into a stop of the run; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        wish = runs.stop_request(run_id)
        if asked or (number == signal.SIGTERM and wish is not None):
            raise Stopped(keep=wish != "discard")
        asked = True
        # In a thread of its own: this one may be in the middle of writing to the same file.
        threading.Thread(target=runs.request_stop, args=(run_id, "keep", owner), daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
