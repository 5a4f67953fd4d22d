"""What pages, the command line and notebooks ask of the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.jobs.answers import Request, Requests
from engine.jobs.board import Board, EngineState, WorkerRow
from engine.jobs.foreground import settle_lost
from engine.jobs.options import Options
from engine.jobs.process import exit_code
from engine.jobs.runlog import tail
from engine.jobs.serve import start_engine
from engine.spec import RunSpec
from engine.store.paths import Layout
from engine.store.run_row import RunRow, StopHow
from engine.store.runs import Runs

START_SECONDS = 60.0
_starting = threading.Lock()


def engine_state(home: Path) -> EngineState | None:
    """The living engine of a home, or None."""
    board = Board(home)
    try:
        return board.engine()
    finally:
        board.close()


def engine_workers(home: Path) -> list[WorkerRow]:
    """The workers of a home's engine, dead or alive."""
    board = Board(home)
    try:
        return board.workers()
    finally:
        board.close()


def ensure_running(home: Path, options: Options | None = None, wait: float = START_SECONDS) -> EngineState | None:
    """Start the engine unless it runs; of several started at once one stays.

    Args:
        home: the store.
        options: its settings, when it has to be started.
        wait: how long to wait until it has begun, in seconds.

    Returns:
        The engine; None when ``wait`` is 0 and it has yet to begin.

    Raises:
        EngineError: when it does not begin in time, with what it said.
    """
    home = home.absolute()
    # Of many threads that find no engine one starts it.
    with _starting:
        state = engine_state(home)
        if state is not None:
            return state
        started = start_engine(home, options)
        until = time.monotonic() + wait
        while time.monotonic() < until:
            state = engine_state(home)
            if state is not None:
                return state
            code = exit_code(started)
            if code == 0:  # another engine held the home, and may have been about to leave
                time.sleep(0.2)
                started = start_engine(home, options) if engine_state(home) is None else started
            elif code:
                break
            time.sleep(0.05)
    if not wait:
        return None
    words = tail(Layout(home).logs / "engine.log", 12)
    raise EngineError(f"The engine did not start. Its log ends with:\n{words}\n", "Run `python -m engine doctor`.")


def submit(
    home: Path,
    spec: RunSpec | Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    owner: str,
    parent: str | None = None,
    priority: int = 0,
    options: Options | None = None,
) -> str:
    """Queue a run, see that an engine runs, and return the run's id.

    Raises:
        SpecError: when the spec is not valid.
        StoreError: when the store cannot be written.
        EngineError: when the engine does not start; the run stays queued.
    """
    runs = Runs(home)
    try:
        run_id = runs.submit(spec, plan, owner=owner, parent=parent, priority=priority)
    finally:
        runs.close()
    ensure_running(home, options)
    return run_id


def stop(home: Path, run_id: str, how: StopHow, asker: str) -> RunRow:
    """Ask a run to stop, keeping or discarding its checkpoint.

    Raises:
        NotAllowed: when somebody else started it.
        SpecError: when it is over already.
    """
    runs = Runs(home)
    try:
        row = runs.request_stop(run_id, how, asker)
    finally:
        runs.close()
    if row.state == "active":
        ensure_running(home)  # without one nobody would press a run that does not listen
    return row


def resume(home: Path, run_id: str, asker: str) -> RunRow:
    """Queue a stopped or failed run again.

    Raises:
        NotAllowed: when somebody else started it.
        SpecError: when it is neither stopped nor failed.
    """
    settle_lost(home)
    runs = Runs(home)
    try:
        row = runs.resume(run_id, asker)
    finally:
        runs.close()
    ensure_running(home)
    return row


def wait_until_over(home: Path, run_id: str, timeout: float) -> RunRow:
    """Wait for a run to end.

    Raises:
        EngineError: when it has not ended in time.
    """
    runs = Runs(home)
    try:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            row = runs.get(run_id)
            if row.is_over:
                return row
            time.sleep(0.1)
    finally:
        runs.close()
    raise EngineError(f"Run {run_id} is not over after {timeout:.0f} s.", "Wait longer, or stop it.")


def ask(home: Path, kind: str, payload: Mapping[str, Any], options: Options | None = None) -> str:
    """Put a short question to the engine; returns its id, for `answer`."""
    requests = Requests(home)
    try:
        request_id = requests.ask(kind, payload)
    finally:
        requests.close()
    ensure_running(home, options)
    return request_id


def answer(home: Path, request_id: str, wait: float = 0.0) -> Request:
    """A question as it stands, after waiting a while for its answer."""
    requests = Requests(home)
    try:
        until = time.monotonic() + wait
        while True:
            request = requests.get(request_id)
            if request.is_over or time.monotonic() >= until:
                return request
            time.sleep(0.05)
    finally:
        requests.close()
