"""Workers as processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from engine import settings
from engine.jobs import process
from engine.jobs.board import ANSWERS
from engine.jobs.options import Options
from engine.jobs.process import Identity
from engine.jobs.runlog import start_small
from engine.store.paths import Layout

_PROBE = "from engine.devices import cuda_devices; print(cuda_devices())"
_PROBE_SECONDS = 60


def python(*words: str) -> list[str]:
    """A command that runs this project's Python code from any folder."""
    return [sys.executable, "-P", *words]


def environment(home: Path) -> dict[str, str]:
    """Variables that make a new process find this project and this home."""
    paths = [str(settings.PROJECT), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PEFTSCOPE_HOME": str(home)}
    # Training adapts how its threads wait to what else needs the machine, where it can.
    threads = settings.THREADS if sys.platform == "linux" else settings.QUIET_THREADS
    return {**threads, **found}


class LocalBackend:
    """Implements `Backend` with one process group per worker."""

    def __init__(self, home: Path, options: Options) -> None:
        self._home = home
        self._layout = Layout(home)
        self._options = options
        self._slots: list[str] | None = None
        # Another process asks the driver: one that hangs or crashes there must not take the queue along.
        self._probe = subprocess.Popen(
            python("-c", _PROBE),
            env={**os.environ, **environment(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._probe_until = time.monotonic() + _PROBE_SECONDS

    def capacity(self) -> list[str] | None:
        """One slot per CUDA device, and the configured number on the CPU."""
        if self._slots is None:
            if self._probe.poll() is None:
                if time.monotonic() < self._probe_until:
                    return None
                self._probe.kill()
            out = self._probe.communicate()[0].decode().strip()
            devices = int(out) if out.isdigit() else 0
            self._slots = [f"cuda:{n}" for n in range(devices)] + [f"cpu:{n}" for n in range(self._options.cpu_slots)]
        return self._slots

    def launch(self, slot: str, name: str, revision: str) -> Identity:
        """Start a warm worker, or the process that answers questions."""
        env = environment(self._home)
        module, function, value = "worker", "--runner", self._options.runner
        if slot == ANSWERS:
            module, function, value = "answerer", "--answerer", self._options.answerer
            env |= settings.QUIET_THREADS
        words = ["-m", f"engine.jobs.{module}", "--home", str(self._home), "--name", name, "--slot", slot]
        if not slot.startswith("cuda"):
            env["CUDA_VISIBLE_DEVICES"] = ""
        start_small(self.log(slot))
        return process.start(
            python(*words, "--revision", revision, function, value),
            env=env,
            log=self.log(slot),
            nice=process.NICE,
        )

    def log(self, slot: str) -> Path:
        """What a slot's workers print outside runs."""
        return self._layout.logs / f"{slot.replace(':', '-')}.log"

    def alive(self, identity: Identity) -> bool:
        """Whether the process still runs."""
        return process.is_alive(identity)

    def stop(self, identity: Identity, *, hard: bool) -> None:
        """Signal the whole group."""
        if hard:
            process.kill(identity)
        else:
            process.terminate(identity)
