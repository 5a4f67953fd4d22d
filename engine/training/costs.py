"""What a run costs while it runs: peak memory, and energy where the device reports it."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import psutil
import torch

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


class PeakMemory:
    """Peak memory since it was made, in bytes.

    On CUDA the allocator's peak beyond what was there before; on the CPU the process's high-water
    mark, reset at the start where the system allows it (Linux), so that earlier runs of a warm
    worker do not count.

    Args:
        device: of the run.
        resident: bytes that were there before, of a GPU.
    """

    def __init__(self, device: str, resident: int) -> None:
        self.device, self._resident = device, resident
        if device == "cpu":
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        else:
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int:
        """The peak so far."""
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated(self.device)) - self._resident
        try:
            match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        except OSError:
            match = None
        if match:
            return int(match.group(1)) * 1024
        return int(psutil.Process().memory_info().rss)


class Energy:
    """Energy since it was made, in joules, or None where nothing reports power.

    A GPU's power is sampled and summed over time; a CPU's energy counter is read directly.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.joules: float | None = None
        self.watts: float | None = None
        self._at = time.monotonic()
        self._counter = self._read_counter()

    def sample(self) -> None:
        """Take a reading; call it about once a second or less often."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        if self.device == "cpu":
            self._from_counter(seconds)
        else:
            self._from_power(seconds)

    def _from_power(self, seconds: float) -> None:
        try:
            self.watts = torch.cuda.power_draw(self.device) / 1000
        except (ModuleNotFoundError, RuntimeError, AttributeError):
            return
        self.joules = (self.joules or 0.0) + self.watts * seconds

    def _from_counter(self, seconds: float) -> None:
        counter = self._read_counter()
        if counter is None or self._counter is None or counter < self._counter:
            self._counter = counter  # the counter wrapped round, or there is none
            return
        used = (counter - self._counter) / 1e6
        self._counter = counter
        self.watts = used / seconds if seconds > 0 else None
        self.joules = (self.joules or 0.0) + used

    def _read_counter(self) -> int | None:
        if self.device != "cpu":
            return None
        try:
            return int(RAPL.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
