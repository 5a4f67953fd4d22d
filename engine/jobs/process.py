"""Processes: the one module that knows how systems differ in starting, finding and ending them.

Linux and macOS have process groups: each worker leads its own, so that whatever it started
ends with it. On Windows the children of a process are found one by one instead, and a
process is always ended at once, because it cannot be asked to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

WINDOWS = sys.platform == "win32"
NICE = 10
# The system's clock may be set while a process lives, which moves its computed time of birth.
_SAME_BIRTH_SECONDS = 2.0
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Identity:
    """A process for good: its number, which is given again one day, and when it was born."""

    pid: int
    created: float


def own_identity() -> Identity:
    """This process."""
    return Identity(os.getpid(), psutil.Process().create_time())


def start(argv: Sequence[str], *, env: Mapping[str, str], log: Path, nice: int = 0) -> Identity:
    """Start a process that outlives this one, in a group of its own, printing into a file.

    Args:
        argv: the command.
        env: variables to add to this process's.
        log: file that gets its output, added at the end.
        nice: how much other processes come first.

    Raises:
        OSError: when it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=not WINDOWS,
            creationflags=_windows_flags(),
        )
    # Kept so that its exit is collected: else it would stay as a zombie.
    _children[child.pid] = child
    process = psutil.Process(child.pid)
    if nice:
        _lower(process, nice)
    return Identity(child.pid, process.create_time())


def _windows_flags() -> int:
    if not WINDOWS:
        return 0
    return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined, no-any-return, unused-ignore]


def _lower(process: psutil.Process, nice: int) -> None:
    with contextlib.suppress(psutil.Error):
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if WINDOWS else max(nice, int(process.nice())))


def is_alive(identity: Identity) -> bool:
    """Whether this very process still runs, or one of its threads does."""
    child = _children.get(identity.pid)
    if child is not None:
        child.poll()
    try:
        process = psutil.Process(identity.pid)
        if not _same(process, identity):
            return False
        # A zombie with threads is still dying: these hold its files, and with them their locks.
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.Error:
        return False


def exit_code(identity: Identity) -> int | None:
    """How a process ended, when this one started it: negative for a signal; None when not known."""
    child = _children.get(identity.pid)
    return child.poll() if child is not None else None


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "it disappeared"
    if code >= 0:
        return f"it left with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"


def terminate(identity: Identity) -> None:
    """Ask a process, and all that it started, to end."""
    _signal(identity, hard=False)


def kill(identity: Identity) -> None:
    """End what is left of a process and all that it started; also when it is dead but its children are not."""
    _signal(identity, hard=True)


def _signal(identity: Identity, *, hard: bool) -> None:
    with contextlib.suppress(psutil.Error, OSError):
        if WINDOWS or not _leads_group(identity):
            for process in _family(identity):
                with contextlib.suppress(psutil.Error):
                    process.kill() if hard else process.terminate()
        else:
            os.killpg(identity.pid, signal.SIGKILL if hard else signal.SIGTERM)


def _leads_group(identity: Identity) -> bool:
    """Whether the group with its number is its own: its number is not reused while one of its group lives."""
    try:
        process = psutil.Process(identity.pid)
    except psutil.NoSuchProcess:
        return identity.created >= psutil.boot_time()  # after a restart the number may be anybody's
    if not _same(process, identity):
        raise psutil.NoSuchProcess(identity.pid)
    return os.getpgid(identity.pid) == identity.pid and identity.pid != os.getpgrp()


def _family(identity: Identity) -> Iterator[psutil.Process]:
    process = psutil.Process(identity.pid)
    if _same(process, identity):
        if WINDOWS:
            yield from process.children(recursive=True)
        yield process


def _same(process: psutil.Process, identity: Identity) -> bool:
    return abs(process.create_time() - identity.created) < _SAME_BIRTH_SECONDS
