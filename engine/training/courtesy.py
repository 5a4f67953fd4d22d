"""Waiting threads: they spin while the machine has room, and sleep while others need it.

A thread of OpenMP that waits for its next share of work can spin, which makes a small model's
steps twice as fast on a quiet machine, or sleep, which makes them twice as fast beside a browser.
GNU's library settles this once, when it is loaded, but for one rule: while a process has more
OpenMP threads than the logical processors it may use, all of them sleep. So parked threads with
teams of their own, which do nothing, hush the others for as long as they live. Nothing that is
computed depends on it. Where another library does the work (macOS, Windows) workers are started
with threads that always sleep, and this changes nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

import psutil
import torch

OTHERS = 0.3
"""Processors that others may use beyond those this process leaves them, before they count as needing more."""
LOOK_SECONDS = 0.5
_PARALLEL = 2**18
"""Elements of a sum that is computed by all threads."""


class Courtesy:
    """Looks at the machine now and then, and hushes or frees this process's waiting threads.

    Use it as a context manager: at its end the threads are free again.
    """

    def __init__(self) -> None:
        self._processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._release: threading.Event | None = None
        self._looked = time.monotonic()
        self._used = self._usage()

    def __enter__(self) -> Courtesy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.free()

    @property
    def hushed(self) -> bool:
        """Whether waiting threads sleep."""
        return self._release is not None

    def look(self) -> None:
        """Adapt to what other processes have used since the last look; cheap, and does nothing too often."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        before, self._used = self._used, self._usage()
        seconds, self._looked = now - self._looked, now
        if before is None or self._used is None:
            return
        left = max(0, self._processors - torch.get_num_threads())
        if (self._used - before) / seconds > left + OTHERS:
            self.hush()
        else:
            self.free()

    def hush(self) -> None:
        """Let waiting threads sleep."""
        threads = torch.get_num_threads()
        if self._release is not None or threads == 1 or sys.platform != "linux":
            return
        # Each parked thread adds a team of its own but for itself; together they must be more than the processors.
        teams = (self._processors - threads) // (threads - 1) + 1
        self._release, parked = threading.Event(), threading.Barrier(teams + 1)
        for _ in range(teams):
            threading.Thread(target=_park, args=(parked, self._release), name="hush", daemon=True).start()
        parked.wait()

    def free(self) -> None:
        """Let waiting threads spin again."""
        if self._release is not None:
            self._release.set()
            self._release = None

    @staticmethod
    def _usage() -> float | None:
        """Seconds of processor time that all other processes have used; None where the system does not tell."""
        try:
            whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
        except (psutil.Error, OSError):
            return None
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        return float(sum(whole[:8]) - idle - own.user - own.system)


def _park(parked: threading.Barrier, release: threading.Event) -> None:
    """Have a team of threads of one's own, and do nothing with it."""
    try:
        torch.ones(_PARALLEL).add_(1)
    finally:
        parked.wait()
    release.wait()
