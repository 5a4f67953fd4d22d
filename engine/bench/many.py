"""Many runs of one model on one device: in one pass together, one after another, and one after another with plain peft.

All clocks run from the first training step to the last. Ours has its losses, frames and commits to disk within;
evaluations, which the plain loop does not make, are left out of all three. The plain program trains encoders
alone; of a decoder the other two are timed.

python -m engine bench many --runs 40 --steps 700 --batch-size 32 --device cuda --model minilm-l6
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from engine.bench import options
from engine.bench.calibration import calibrate
from engine.bench.jobs import Case, add_common, plan_of, recipe_of, write_case, write_report, write_shared
from engine.bench.steps import give_loop, timed, trains_plainly
from engine.devices import cpu_threads


def main(argv: Sequence[str]) -> int:
    """Time all three ways, print the table and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-many-"))
    together = [_said(_together(given, folder / f"together-{number}")) for number in range(given.repeats)]
    alone = [_said(_alone(given, folder / "alone", seed)) for seed in range(given.sampled)]
    rows = {
        "together": [found["loop_seconds"] for found in together],
        "together, steps only": [found["training_seconds"] for found in together],
        "one after another": [given.runs * found["ours"] for found in alone],
        "plain peft": [given.runs * found["plain"] for found in alone if "plain" in found],
    }
    rows = {name: seconds for name, seconds in rows.items() if seconds}
    *_, slowest = rows
    base = median(rows[slowest])
    print(f"{given.runs} runs of {given.steps} steps; by themselves {given.sampled} of them, times {given.runs}")
    print(f"{'':24}{'seconds, median':>17}{'least':>9}{'most':>9}{f'{slowest} takes':>26}")
    for name, seconds in rows.items():
        middle = median(seconds)
        print(f"{name:24}{middle:>17.1f}{min(seconds):>9.1f}{max(seconds):>9.1f}{base / middle:>25.1f}x")
    report = {"settings": vars(given), "seconds": rows, "together": together, "calibration": calibrate().to_json()}
    write_report(folder, "many", report)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench many", description=__doc__)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--methods", type=options.names, default=["lora"], help="one that packs")
    parser.add_argument("--runs", type=options.count, default=40)
    parser.add_argument("--steps", type=options.count, default=700)
    parser.add_argument("--batch-size", type=options.count, default=32)
    parser.add_argument("--repeats", type=options.count, default=3, help="of all runs together")
    parser.add_argument(
        "--sampled", type=options.count, default=5, help="runs that the other two ways carry out, of the same"
    )
    add_common(parser)
    return parser.parse_args(argv)


def _said(found: dict[str, Any]) -> dict[str, Any]:
    """A measurement as it comes, since all of them take minutes."""
    print({name: round(value, 2) for name, value in found.items() if isinstance(value, float)}, flush=True)
    return found


def _together(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Carry out all runs in one pass; seconds of the one that waits for everybody's records and nobody's answers."""
    from engine.store.runs import Runs
    from engine.training.build import Caches
    from engine.training.run import run_jobs

    base = recipe_of(given, cpu_threads()).model_copy(update={"model": given.model})
    base = base.model_copy(update={"train": base.train.model_copy(update={"execution": "packed"})})
    runs = Runs(folder)
    ids = []
    for seed in range(given.runs):
        plan = plan_of(base, given.methods[0], seed, None)
        ids.append(runs.submit(plan.spec, plan.to_json(), owner="bench", slot="bench", worker={"pid": 0}))
    run_jobs(folder, ids, Caches())
    summaries = [runs.get(run_id).summary or {} for run_id in ids]
    runs.close()
    first = summaries[0]
    accuracy = [found["accuracy"]["test"] for found in summaries]
    return {"loop_seconds": first["loop_seconds"], "training_seconds": first["training_seconds"], "accuracy": accuracy}


def _alone(given: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Seconds of one of the runs by itself, ours and plain, which take turns in being first."""
    base = recipe_of(given, cpu_threads()).model_copy(update={"model": given.model})
    case = Case(given.methods[0], seed, plan_of(base, given.methods[0], seed, None), folder / str(seed))
    write_case(case, folder / "shared", write_shared(folder / "shared", case.plan, [seed]))
    give_loop(case, "bare", fused=False)
    order: tuple[str, ...] = ("ours", "plain") if seed % 2 else ("plain", "ours")
    if not trains_plainly(given.model):
        order = ("ours",)
    return {side: given.steps / timed(case, side)["speed"] for side in order}
