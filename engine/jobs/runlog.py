"""Logs: a run's own while it is carried out, and the last lines of one that ended badly."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

TAIL_LINES = 40
_TAIL_BYTES = 16_384
_LARGE_BYTES = 2**20


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Send all that this process prints, below Python too, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            with contextlib.suppress(OSError):  # a full disk must not keep the process's own output redirected
                sys.stdout.flush()
                sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def start_small(path: Path) -> None:
    """Drop a log that has grown large, before somebody adds to it."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LARGE_BYTES:
            path.unlink()
