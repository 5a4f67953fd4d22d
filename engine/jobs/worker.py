"""A warm worker: imports everything once, then carries out the runs it is given, one after the other.

    python -m engine.jobs.worker --home HOME --name NAME --slot cpu:0

It outlives the engine that started it until its run is over.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import StoreError
from engine.jobs.presence import POLL_SECONDS, Presence
from engine.jobs.runlog import printing_to
from engine.jobs.runner import RUNNER, Loaded, carry_out, carry_out_together, load
from engine.store.runs import Runs

RETRY_SECONDS = 1.0


def serve_runs(presence: Presence, runner_name: str, *, own_log: bool) -> None:
    """Carry out assigned runs until no longer wanted.

    Args:
        presence: the worker's row.
        runner_name: ``module:function`` that carries out a run.
        own_log: whether all that the process prints goes to the run's log meanwhile.
    """
    runner = load(runner_name)
    presence.ready()
    while presence.wanted():
        run_ids = _assigned(presence)
        if run_ids:
            _carry_out(presence, run_ids, runner, own_log)
        else:
            presence.leaving.wait(POLL_SECONDS)


def _assigned(presence: Presence) -> list[str]:
    try:
        return presence.board.assigned(presence.name)
    except StoreError as error:
        logging.warning("the queue cannot be read: %s", error)
        return []


def _carry_out(presence: Presence, run_ids: list[str], runner: Loaded, own_log: bool) -> None:
    runs = Runs(presence.home)
    log = runs.folder(run_ids[0]).log
    try:
        for run_id in run_ids[1:]:
            runs.folder(run_id).log.write_text(f"In one pass with {run_ids[0]}, whose log has all.\n", encoding="utf-8")
        with printing_to(log) if own_log else contextlib.nullcontext(), presence.carrying(run_ids):
            if len(run_ids) == 1:
                carry_out(presence.home, run_ids[0], runner)
            else:
                carry_out_together(presence.home, run_ids, runner)
    except StoreError as error:
        _record_late(presence, run_ids, error)
    except OSError as error:  # its folder is gone, or not writable
        cause = f"The run's log {log} cannot be written: {error.strerror or error}."
        _record_late(presence, run_ids, StoreError(cause, "Check the disk and the folder's rights, then resume it."))


def _record_late(presence: Presence, run_ids: list[str], error: StoreError) -> None:
    """The runs are over but that could not be written down: try until it can."""
    runs, left = Runs(presence.home), list(run_ids)
    while left and not presence.leaving.wait(RETRY_SECONDS):
        with contextlib.suppress(StoreError):
            runs.finish(left[-1], "failed", error=error.what, todo=error.todo)
            left.pop()


def arguments(argv: Sequence[str] | None, function: str, default: str) -> argparse.Namespace:
    """What a worker is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--slot", required=True)
    parser.add_argument("--revision", default="")
    parser.add_argument(f"--{function}", default=default)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Be a worker."""
    given = arguments(argv, "runner", RUNNER)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with Presence(given.home, given.name, given.slot, given.revision) as presence:
        presence.obey_signals()
        serve_runs(presence, given.runner, own_log=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
