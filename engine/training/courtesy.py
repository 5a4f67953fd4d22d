"""Waiting threads: they spin while the machine is idle otherwise, and sleep while others need it.

A thread of OpenMP that waits for its next share of work can spin, which makes a small model's
steps twice as fast on a quiet machine, or sleep, which makes them twice as fast beside a browser.
GNU's library settles this once, when it is loaded, but for one rule: while a process has more
OpenMP threads than the machine has cores, all of them sleep. So a parked thread with a team of
its own, which does nothing, hushes the others for as long as it lives. Nothing that is computed
depends on it. Where another library does the work, or a thread is alone, this changes nothing.
"""

from __future__ import annotations

import threading
import time

import psutil
import torch

OTHERS = 0.3
"""Cores that other processes use when they count as needing the machine."""
LOOK_SECONDS = 0.5
_PARALLEL = 2**17
"""Elements of a sum that is computed by all threads."""


class Courtesy:
    """Looks at the machine now and then, and hushes or frees this process's waiting threads."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._release: threading.Event | None = None
        self._looked = time.monotonic()
        self._used = self._usage()

    @property
    def hushed(self) -> bool:
        """Whether waiting threads sleep."""
        return self._release is not None

    def look(self) -> None:
        """Adapt to what other processes have used since the last look; cheap, and does nothing too often."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        used = self._usage()
        others = (used - self._used) / (now - self._looked)
        self._looked, self._used = now, used
        if others > OTHERS:
            self.hush()
        else:
            self.free()

    def hush(self) -> None:
        """Let waiting threads sleep."""
        if self._release is not None or torch.get_num_threads() == 1:
            return
        self._release, parked = threading.Event(), threading.Event()
        threading.Thread(target=_park, args=(parked, self._release), name="hush", daemon=True).start()
        parked.wait()

    def free(self) -> None:
        """Let waiting threads spin again."""
        if self._release is not None:
            self._release.set()
            self._release = None

    def _usage(self) -> float:
        """Seconds of processor time that all other processes have used."""
        whole = psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        own = self._process.cpu_times()
        return float(sum(whole[:8]) - idle - own.user - own.system)


def _park(parked: threading.Event, release: threading.Event) -> None:
    """Have a team of threads of one's own, and do nothing with it."""
    torch.ones(_PARALLEL).add_(1)
    parked.set()
    release.wait()
