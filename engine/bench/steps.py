"""Speed of training steps: ours, with all that is recorded, against a plain eager loop; in pairs, one after the other.

Both clocks run from the first step to the last, ours with its frames, losses and commits to disk. Evaluations and
checkpoints, which the plain loop does not make, are left out. With `--loop trainer` the other side is transformers'
`Trainer`, with saving and reporting off.

python -m engine bench steps --models nano-bert,minilm-l6 --methods full,lora --batch-size 16 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engine.bench import options, pool
from engine.bench.calibration import calibrate
from engine.bench.jobs import UNBUDGETED, Case, add_common, plan_of, recipe_of, write_case, write_report, write_shared
from engine.devices import cpu_threads
from engine.errors import SpecError
from engine.models.catalogue import resolve_model
from engine.settings import PROJECT
from engine.store.run_reader import RunReader

PLAIN = PROJECT / "engine" / "bench" / "plain.py"
EARLY = 50
"""Losses of so many steps are compared."""


def main(argv: Sequence[str]) -> int:
    """Time all pairs, print the table and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-steps-"))
    table = []
    print(f"{'model':12}{'method':14}{'ours':>10}{'plain':>10}{'ratio, median of pairs':>28}{'losses apart':>14}")
    for model in given.models:
        for method in given.methods:
            row = _row(given, model, method, folder / f"{Path(model).name}-{method}")
            table.append(row)
            print(
                f"{model:12}{method:14}{row['ours']:>8.2f}/s{row['plain']:>8.2f}/s"
                f"{row['ratio']:>14.2f} [{min(row['ratios']):.2f}, {max(row['ratios']):.2f}]{row['apart']:>14.1e}"
            )
    report = {"settings": vars(given), "table": table, "calibration": calibrate().to_json()}
    write_report(folder, "steps", report)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench steps", description=__doc__)
    parser.add_argument("--models", type=options.names, default=["nano-bert", "minilm-l6"])
    parser.add_argument("--methods", type=options.names, default=["full", "lora"])
    parser.add_argument("--pairs", type=options.count, default=5)
    parser.add_argument("--steps", type=options.count, default=100)
    parser.add_argument("--batch-size", type=options.count, default=16)
    parser.add_argument(
        "--budget", type=options.count_or_none, default=0, help="parameters; 0 for the methods' own settings"
    )
    parser.add_argument("--fused", action="store_true", help="give the plain side the fused AdamW that ours has")
    parser.add_argument("--loop", default="bare", choices=["bare", "logged", "trainer"], help="of the plain side")
    add_common(parser)
    return parser.parse_args(argv)


def trains_plainly(model: str) -> bool:
    """Whether the plain program can train a model."""
    return resolve_model(model).family.kind != "decoder"


def _row(given: argparse.Namespace, model: str, method: str, folder: Path) -> dict[str, Any]:
    """All pairs of one model and method."""
    base = recipe_of(given, cpu_threads()).model_copy(update={"model": model})
    budget = given.budget if given.budget and method not in UNBUDGETED else None
    if not trains_plainly(model):
        raise SpecError(f"The plain program trains encoders; {model} is a decoder.", "Choose nano-bert or minilm-l6.")
    case = Case(method, 0, plan_of(base, method, 0, budget), folder)
    write_case(case, folder / "shared", write_shared(folder / "shared", case.plan, [0]))
    give_loop(case, given.loop, fused=given.fused)
    ours: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []
    for pair in range(given.pairs):
        # Which side comes first changes from pair to pair.
        for side in ("ours", "plain") if pair % 2 else ("plain", "ours"):
            (ours if side == "ours" else plain).append(timed(case, side))
    ratios = [our["speed"] / other["speed"] for our, other in zip(ours, plain, strict=True)]
    early = [np.array(found[0]["losses"][:EARLY]) for found in (ours, plain)]
    return {
        "model": model,
        "method": method,
        "ours": median(found["speed"] for found in ours),
        "plain": median(found["speed"] for found in plain),
        "ratio": median(ratios),
        "ratios": ratios,
        "apart": float(np.abs(early[0] - early[1]).max()),
        "execution": case.plan.spec.train.execution,
        "threads": case.plan.spec.train.threads,
        "lr": case.plan.spec.train.lr,
    }


def give_loop(case: Case, loop: str, *, fused: bool) -> None:
    """Say in its job how the plain side trains."""
    job = json.loads(case.reference.read_text(encoding="utf-8"))
    case.reference.write_text(json.dumps(job | {"loop": loop, "fused": fused}), encoding="utf-8")


def timed(case: Case, side: str) -> dict[str, Any]:
    """Steps per second, and losses, of one side in a process of its own."""
    if side == "plain":
        pool.in_own_process([str(PLAIN), str(case.reference)])
        found: dict[str, Any] = json.loads((case.folder / "reference.out.json").read_text(encoding="utf-8"))
        return found | {"speed": found["steps"] / found["seconds"]}
    answer = pool.alone(case.ours)
    with RunReader(Path(answer["folder"]) / "run.db") as reader:
        _, losses = reader.scalars(["train/loss"], max_points=10**6)["train/loss"]
    return {"speed": case.plan.spec.train.steps / answer["summary"]["loop_seconds"], "losses": losses.tolist()}
