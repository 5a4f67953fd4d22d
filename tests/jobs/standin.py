"""A real, small runner without torch: counts steps, keeps checkpoints, and misbehaves as its spec asks.

Settings beside the method's name: ``act`` (what it does at step ``at``), ``pause`` (seconds a step).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError, Stopped
from engine.store.control import RowControl
from engine.store.run_file import RunReader, RunWriter
from engine.store.runs import Runs


def run_job(home: Path, run_id: str, caches: dict[str, Any]) -> None:
    """Count to the spec's steps, from the checkpoint if there is one."""
    caches["runs"] = caches.get("runs", 0) + 1
    allow_bytes(resource.RLIM_INFINITY)
    runs = Runs(home)
    row = runs.get(run_id)
    settings = row.spec["method"]
    folder = runs.folder(run_id)
    control = RowControl(runs, run_id, every=0.02)
    checkpoint = folder.checkpoint / "step"
    print("hello from the run", flush=True)
    os.system("echo hello from below python")
    with RunWriter(folder.database, progress=lambda *where: runs.progress(run_id, *where)) as sink:
        sink.phase("loading")
        first = int(checkpoint.read_text()) if checkpoint.exists() else 0
        sink.rewind(first)
        for step in range(first + 1, row.steps + 1):
            sink.phase("training", step, row.steps)
            sink.scalar("count", step, step**2)
            sink.frame("selected", step, {name: np.array([step]) for name in ("tensor", "index", "step")}, keep=True)
            if step == settings.get("at"):
                misbehave(settings["act"], folder.root)
                if settings["act"] == "fill once":
                    fill(sink, folder.root)
            how = control.stop_requested()
            if how == "keep" or step % 10 == 0:
                folder.checkpoint.mkdir(exist_ok=True)
                sink.flush()
                checkpoint.with_suffix(".part").write_text(str(step))
                checkpoint.with_suffix(".part").replace(checkpoint)
            if how is not None:
                raise Stopped(keep=how == "keep")
            time.sleep(settings.get("pause", 0.002))
        summary = {"total": step, "pid": os.getpid(), "runs_of_worker": caches["runs"]}
        sink.meta("summary", summary)
        sink.phase("finished")
    runs.finish(run_id, "finished", summary=summary)


def misbehave(act: str, folder: Path) -> None:
    """Do what is to be survived."""
    marker = folder / "misbehaved"
    if act == "raise":
        raise ValueError("the third wheel fell off")
    if act == "refuse":
        raise EngineError("The data is gone.", "Bring it back.")
    if act == "die":
        print("something terrible", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "die once" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "leave once" and not marker.exists():
        marker.touch()
        os._exit(3)
    if act == "busy":
        while True:
            time.sleep(0.05)
    if act == "deaf":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child").write_text(str(child.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.05)


def fill(sink: RunWriter, folder: Path) -> None:
    """Write until the system allows no more; the second time do nothing."""
    if (folder / "misbehaved").exists():
        return
    (folder / "misbehaved").touch()
    allow_bytes(2_000_000)
    for step in range(1000, 1100):
        sink.frame("large", step, {"zeros": np.zeros(50_000)}, keep=True)
        sink.flush()


def allow_bytes(limit: int) -> None:
    """The largest size of a file that this process may write."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


def answer(home: Path, kind: str, payload: Mapping[str, Any], caches: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was asked, or misbehave."""
    if kind == "raise":
        raise EngineError("That cannot be answered.", "Ask something else.")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    caches["n"] = caches.get("n", 0) + 1
    return {"echo": payload["text"], "pid": os.getpid(), "n": caches["n"]}


def counted(runs: Runs, run_id: str) -> list[int]:
    """The steps that a run recorded, checked to be whole."""
    reader = RunReader(runs.folder(run_id).database)
    steps, values = reader.scalars(max_points=10**6)["count"]
    assert values.tolist() == [step**2 for step in steps]
    assert reader.selection()["step"].tolist() == steps.tolist()
    return list(steps.tolist())
