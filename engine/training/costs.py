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
    """Peak memory of a run, phase by phase, in bytes.

    On CUDA the allocator's peak beyond what was there before; on the CPU the process's high-water
    mark, reset at the start of each phase where the system allows it (Linux), so that earlier runs
    of a warm worker do not count.

    Attributes:
        before: what the process held when the run began; 0 on CUDA.
        resident: bytes on CUDA that were there before the run's own; known once its model is built.
    """

    def __init__(self, device: str) -> None:
        self.device, self.resident = device, 0
        self.before = psutil.Process().memory_info().rss if device == "cpu" else 0
        self._phase, self._peaks = "loading", dict[str, int]()
        self._reset()

    def begin(self, phase: str) -> None:
        """From now on the peak is that of another phase."""
        self._note()
        self._phase = phase
        self._reset()

    def phases(self) -> dict[str, int]:
        """The peak of each phase so far."""
        self._note()
        return {phase: peak - self.resident for phase, peak in self._peaks.items()}

    def bytes(self) -> int:
        """The peak so far."""
        return max(self.phases().values())

    def _note(self) -> None:
        self._peaks[self._phase] = max(self._peaks.get(self._phase, 0), self._read())

    def _reset(self) -> None:
        if self.device != "cpu":
            torch.cuda.init()  # there are no numbers to reset before
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def _read(self) -> int:
        if self.device != "cpu":
            return int(torch.cuda.max_memory_allocated(self.device))
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
