"""Runs many small jobs at once: a few processes per device, each working through its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.devices import cuda_devices
from engine.errors import RunFailed
from engine.settings import PROJECT, QUIET_THREADS, THREADS

Side = Literal["ours", "reference"]
REFERENCE = PROJECT / "engine" / "bench" / "reference.py"
TAIL = 2000


@dataclass(frozen=True)
class Share:
    """What one process does.

    Attributes:
        side: which program.
        jobs: its job files, in order.
        log: where its output goes.
        gpu: name of the device it sees; None for the CPU.
    """

    side: Side
    jobs: tuple[Path, ...]
    log: Path
    gpu: str | None

    def command(self) -> list[str]:
        """The program and its job files."""
        program = [str(REFERENCE)] if self.side == "reference" else ["-m", "engine.bench.pool"]
        return [sys.executable, *program, *map(str, self.jobs)]

    def environment(self) -> dict[str, str]:
        """This process's, with one device in sight."""
        seen = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, **QUIET_THREADS, **seen, "PYTHONPATH": path}


def shares(side: Side, jobs: Sequence[Path], workers: int, logs: Path) -> list[Share]:
    """Deal the jobs out to at most `workers` processes, and these to the GPUs there are."""
    gpus = _visible_gpus()
    count = max(1, min(workers, len(jobs)))
    dealt = [tuple(jobs[place::count]) for place in range(count)] if jobs else []
    return [
        Share(side, part, logs / f"{side}-{place}.log", gpus[place % len(gpus)] if gpus else None)
        for place, part in enumerate(dealt)
    ]


def _visible_gpus() -> list[str]:
    """The devices this process may use, by the names that `CUDA_VISIBLE_DEVICES` gives them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    every = [name.strip() for name in listed.split(",")] if listed else [str(n) for n in range(cuda_devices())]
    return every[: cuda_devices()]


def carry_out(parts: Sequence[Share], say: Callable[[str], None]) -> None:
    """Run all shares at once and wait for them.

    Raises:
        RunFailed: when one of them fails, with the end of its log; the others are ended.
    """
    started = time.monotonic()
    running = []
    for part in parts:
        part.log.parent.mkdir(parents=True, exist_ok=True)
        with part.log.open("wb") as log:
            process = subprocess.Popen(part.command(), env=part.environment(), stdout=log, stderr=subprocess.STDOUT)
        running.append((part, process))
    try:
        while any(process.poll() is None for _, process in running):
            time.sleep(0.2)
            _check(running)
        _check(running)
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    say(f"{sum(len(part.jobs) for part in parts)} runs in {time.monotonic() - started:.0f} s")


def _check(running: Sequence[tuple[Share, subprocess.Popen[bytes]]]) -> None:
    for part, process in running:
        if process.poll():
            tail = part.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
            raise RunFailed(f"A process of the benchmark ended with status {process.returncode}:\n{tail}", "")


def in_own_process(words: Sequence[str]) -> None:
    """Run a Python program of this project and wait for it.

    Raises:
        RunFailed: when it fails, with the end of what it said.
    """
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, **THREADS, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-TAIL:]}", "")


def alone(job: Path) -> dict[str, Any]:
    """Carry out one job of our side in a process of its own; returns what came of it.

    Raises:
        RunFailed: when it fails, or diverges.
    """
    in_own_process(["-m", "engine.bench.pool", str(job)])
    out = Path(json.loads(job.read_text(encoding="utf-8"))["out"])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if found["summary"] is None:
        raise RunFailed("The run diverged.", "Lower its learning rate.")
    return found


def train(job: Path) -> None:
    """Train one job of our side, in a store of its own; a diverged run has no summary.

    Raises:
        RunFailed: when it ends in any other way.
    """
    given = json.loads(job.read_text(encoding="utf-8"))
    home = Path(given["home"])

    from engine.spec import parse_spec
    from engine.store.runs import Runs
    from engine.training.build import Caches
    from engine.training.run import run_job

    runs = Runs(home)
    spec = parse_spec(given["plan"]["spec"])
    run_id = runs.submit(spec, given["plan"], owner="bench", slot="bench", worker={"pid": os.getpid()})
    state = run_job(home, run_id, _caches.setdefault("kept", Caches()))
    row = runs.get(run_id)
    runs.close()
    if state not in ("finished", "diverged"):
        raise RunFailed(f"Our run of {spec.method.name} ended as {state}: {row.error}", row.todo or "")
    found = {"run": run_id, "folder": str(runs.folder(run_id).root), "summary": row.summary}
    Path(given["out"]).write_text(json.dumps(found), encoding="utf-8")


_caches: dict[str, Any] = {}
"""Base models and datasets, kept from job to job."""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        train(Path(name))
