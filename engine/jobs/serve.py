"""`python -m engine serve`: the engine's process, one per home.

python -m engine.jobs.serve --home HOME
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from engine.jobs import process
from engine.jobs.backends.local import LocalBackend, environment, python
from engine.jobs.lock import EngineLock
from engine.jobs.options import Options, read_options
from engine.jobs.process import Identity
from engine.jobs.runlog import start_small
from engine.jobs.supervisor import Supervisor
from engine.store.paths import Layout

log = logging.getLogger(__name__)


def serve(home: Path, options: Options | None = None) -> bool:
    """Be the engine of a home until it is idle, its code has changed, or it is told to leave.

    Busy workers are left to finish.

    Returns:
        False when another engine holds the home; then nothing was done.

    Raises:
        StoreError: when the home cannot hold the lab's files.
    """
    options = options or Options()
    lock = EngineLock(home)
    if not lock.take():
        return False
    try:
        supervisor = Supervisor(home, LocalBackend(home, options), options)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.leaving.set())
        log.info("the engine of %s is here", home)
        why = supervisor.run()
        supervisor.close()
        again = why == "code" or (why == "idle" and supervisor.work_is_left())
        log.info("the engine leaves: %s", why)
    finally:
        lock.release()
    if again:
        start_engine(home, options)
    return True


def start_engine(home: Path, options: Options | None = None) -> Identity:
    """Start an engine as a process of its own; where one holds the home already, the new one leaves at once."""
    path = Layout(home).logs / "engine.log"
    start_small(path)
    words = python("-m", "engine.jobs.serve", "--home", str(home), *(options or Options()).argv())
    return process.start(words, env=environment(home), log=path)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, as told on the command line."""
    home, options = read_options(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if not serve(home, options):
        log.info("another engine holds %s", home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
