"""From the click to the first live point and to the final accuracy, through the queue: cold engine, then warm.

python -m engine bench start --spec assets/presets/first.yaml --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from engine.bench import options
from engine.bench.calibration import calibrate
from engine.errors import RunFailed, StoreError
from engine.jobs import client
from engine.jobs.process import terminate
from engine.plan import make_plan
from engine.settings import ASSETS
from engine.spec import RunSpec, read_spec
from engine.store.rights import MACHINE
from engine.store.run_file import RunReader
from engine.store.runs import Runs

POLL_SECONDS = 0.02
LONGEST_SECONDS = 1800.0


def main(argv: Sequence[str]) -> int:
    """Time the same spec from a cold engine and from a warm one, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m engine bench start", description=__doc__)
    parser.add_argument("--spec", default=str(ASSETS / "presets" / "first.yaml"))
    parser.add_argument("--repeats", type=options.count, default=3, help="warm runs, each with a seed of its own")
    parser.add_argument("--out")
    given = parser.parse_args(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-start-"))
    home = folder / "home"
    # Plans read the store's folder, too; what other runs measured there must not help this one.
    os.environ["PEFTSCOPE_HOME"] = str(home)
    spec = read_spec(given.spec)
    try:
        cold = timed(home, spec, seed=0)
        print(_line("cold", cold))
        warm = [timed(home, spec, seed=1 + number) for number in range(given.repeats)]
    finally:
        if state := client.engine_state(home):
            terminate(state.identity)
    for each in warm:
        print(_line("warm", each))
    middle = {key: median(each[key] for each in warm) for key in warm[0]}
    print(_line("warm, median", middle))
    report = {"spec": spec.canonical(), "cold": cold, "warm": warm, "calibration": calibrate().to_json()}
    (folder / "start.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"written to {folder / 'start.json'}")
    return 0


def timed(home: Path, spec: RunSpec, seed: int) -> dict[str, float]:
    """Seconds from the request to each moment of a run.

    Returns:
        ``planned``, ``first_point`` (a loss that a page could show) and ``finished``.

    Raises:
        RunFailed: when the run does not finish.
    """
    began = time.perf_counter()
    plan = make_plan(spec.model_copy(update={"train": spec.train.model_copy(update={"seed": seed})}))
    planned = time.perf_counter() - began
    run_id = client.submit(home, plan.spec, plan.to_json(), owner=MACHINE)
    runs, first = Runs(home), None
    while time.perf_counter() - began < LONGEST_SECONDS:
        if first is None and _has_point(runs.folder(run_id).database):
            first = time.perf_counter() - began
        row = runs.get(run_id)
        if row.is_over:
            if row.state != "finished" or first is None:
                raise RunFailed(f"Run {run_id} ended as {row.state}: {row.error}", row.todo or "")
            return {"planned": planned, "first_point": first, "finished": time.perf_counter() - began}
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"Run {run_id} is not over after {LONGEST_SECONDS:.0f} s.", "Make it smaller.")


def _has_point(database: Path) -> bool:
    try:
        with RunReader(database) as reader:
            return "train/loss" in reader.scalars(["train/loss"])
    except StoreError:
        return False  # its file is only being made


def _line(name: str, found: dict[str, Any]) -> str:
    return (
        f"{name:14}planned {found['planned']:6.2f} s   first live point {found['first_point']:6.2f} s   "
        f"final accuracy {found['finished']:6.2f} s"
    )
