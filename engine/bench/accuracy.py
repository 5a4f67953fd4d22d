"""Our methods against the frozen reference, paired by seed: same split, batches, heads and settings.

python -m engine bench accuracy --methods lora,dora --seeds 5 --out results
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench import options
from engine.bench.calibration import calibrate
from engine.bench.jobs import METHODS, Case, plan_of, recipe_of, write_case, write_report, write_shared
from engine.bench.pool import carry_out, shares
from engine.devices import cpu_threads, cuda_devices
from engine.errors import Diverged
from engine.stats.intervals import mean_over_seeds, paired_difference
from engine.stats.metrics import Outcomes
from engine.stats.paired import mcnemar
from engine.stats.verdict import Candidate, verdict
from engine.training.result_file import read_outcomes, read_result

MASKED = ("fish", "pafi", "id3")
COMMON_BUDGET = 26_112


def main(argv: Sequence[str]) -> int:
    """Train both sides, print the paired table and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-bench-"))
    workers = given.workers or (8 * cuda_devices() or 1)
    cases, setting = prepare(given, folder, workers)
    both = []
    if given.side in ("both", "ours"):
        both += shares("ours", [case.ours for case in cases], workers, folder / "logs")
    if given.side in ("both", "reference"):
        both += shares("reference", [case.reference for case in cases], workers, folder / "logs")
    carry_out(both, print)
    table = [row_of(name, [case for case in cases if case.method == name], given.side) for name in given.methods]
    print("\n".join(_lines(table)))
    report: dict[str, Any] = {"recipe": given.recipe, "items": setting, "table": table}
    if given.side != "reference" and len(given.methods) > 1:
        found = verdict([_candidate(name, cases) for name in given.methods])
        print(found.sentence)
        report["verdict"] = found.to_json()
    if given.calibrate:
        report["calibration"] = calibrate().to_json()
    write_report(folder, "accuracy", report)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench accuracy", description=__doc__)
    parser.add_argument("--methods", type=options.names, default=list(METHODS))
    parser.add_argument("--seeds", type=options.count, default=5, help="seeds 0, 1, ... of this many runs")
    parser.add_argument("--steps", type=options.count, default=700)
    parser.add_argument("--batch-size", type=options.count, default=32)
    parser.add_argument(
        "--budget",
        type=options.count_or_none,
        default=COMMON_BUDGET,
        help="parameters; 0 for the methods' own settings",
    )
    parser.add_argument("--lr", action="append", default=[], metavar="METHOD=VALUE")
    parser.add_argument(
        "--spec", help="a run spec whose model, dataset and recipe are used instead of the embedded ones"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32"])
    parser.add_argument(
        "--workers", type=options.count_or_none, default=0, help="processes per side; 8 per GPU by default"
    )
    parser.add_argument("--side", default="both", choices=["both", "ours", "reference"])
    parser.add_argument("--calibrate", action="store_true", help="time a fixed workload too")
    parser.add_argument("--out", help="folder for everything that is written")
    return parser.parse_args(argv)


def prepare(given: argparse.Namespace, folder: Path, workers: int) -> tuple[list[Case], dict[str, Any]]:
    """Plan every case and write what both sides are given."""
    rates = {name: float(value) for name, _, value in (item.partition("=") for item in given.lr)}
    seeds = range(given.seeds)
    base = recipe_of(given, max(1, cpu_threads() // workers))
    cases = [
        Case(name, seed, plan_of(base, name, seed, given.budget or None, rates.get(name)), folder / f"{name}-{seed}")
        for name in given.methods
        for seed in seeds
    ]
    setting = write_shared(folder / "shared", cases[0].plan, seeds)
    for case in cases:
        write_case(case, folder / "shared", setting)
    given.recipe = cases[0].plan.spec.train.model_dump(mode="json", exclude={"lr", "seed", "seeds"})
    return cases, {"test": len(setting.dataset.splits["test"]), "sha256": setting.dataset.sha256}


def row_of(name: str, cases: Sequence[Case], side: str) -> dict[str, Any]:
    """One line of the table."""
    row: dict[str, Any] = {
        "method": name,
        "lr": cases[0].plan.spec.train.lr,
        "params": cases[0].plan.params.method,
        "seeds": [case.seed for case in cases],
    }
    if side in ("both", "ours"):
        row["ours"] = _side([_ours(case).accuracy for case in cases])
        row["steps_per_second"] = [_summary(case)["steps_per_second"] for case in cases]
        row["peak_memory_bytes"] = max(_summary(case)["peak_memory_bytes"] for case in cases)
        row["optimizer_state_scalars"] = _summary(cases[0])["optimizer_state_scalars"]
    if side in ("both", "reference"):
        facts = [json.loads((case.folder / "reference.out.json").read_text(encoding="utf-8")) for case in cases]
        row["reference"] = _side([fact["accuracy"] for fact in facts])
        if name == "linear_probe":
            row["sklearn"] = _side([fact["sklearn_accuracy"] for fact in facts])
    if side == "both":
        row |= _paired(name, cases, row)
    return row


def _paired(name: str, cases: Sequence[Case], row: dict[str, Any]) -> dict[str, Any]:
    tests = [mcnemar(_ours(case).correct, _reference(case).correct) for case in cases]
    found: dict[str, Any] = {
        "difference": paired_difference(row["ours"]["values"], row["reference"]["values"]).to_json(),
        "discordance": float(np.mean([test.discordance for test in tests])),
    }
    if "sklearn" in row:
        found["sklearn_difference"] = paired_difference(row["ours"]["values"], row["sklearn"]["values"]).to_json()
    if name in MASKED:
        found["masks"] = [compare_masks(case) for case in cases]
    return found


def compare_masks(case: Case) -> dict[str, Any]:
    """Whether both sides chose the same entries, and how far their weights are apart.

    Returns:
        ``ours`` and ``reference``, entries of each; ``common``, entries of both; ``largest``, the
        largest difference of a weight that both trained, head included.
    """
    from safetensors.numpy import load_file

    result = read_result(Path(_found(case)["folder"]) / "result")
    mine = {name.removeprefix("0/"): tensor.numpy() for name, tensor in result.tensors.items()}
    mine |= {f"head.{name}": tensor.numpy() for name, tensor in result.head.items()}
    other = load_file(case.folder / "reference.out.safetensors")
    largest = max(float(np.abs(mine[name] - other[name]).max()) for name in mine if name.startswith("head."))
    common = counts = 0
    for name in (key.removesuffix(".index") for key in mine if key.endswith(".index")):
        counts += len(mine[f"{name}.index"])
        if f"{name}.index" in other:
            both, here, there = np.intersect1d(mine[f"{name}.index"], other[f"{name}.index"], return_indices=True)
            common += len(both)
            apart = np.abs(mine[f"{name}.value"][here] - other[f"{name}.value"][there])
            largest = max(largest, float(apart.max(initial=0.0)))
    theirs = sum(len(array) for key, array in other.items() if key.endswith(".index"))
    return {"ours": counts, "reference": theirs, "common": common, "largest": largest}


def _side(values: list[float]) -> dict[str, Any]:
    return {"values": values, **mean_over_seeds(values).to_json()}


def _found(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case.folder / "ours.out.json").read_text(encoding="utf-8"))
    return found


def _summary(case: Case) -> dict[str, Any]:
    summary: dict[str, Any] | None = _found(case)["summary"]
    if summary is None:
        raise Diverged(f"{case.method} with seed {case.seed} diverged.", "Lower its learning rate with --lr.")
    return summary


def _ours(case: Case) -> Outcomes:
    return read_outcomes(Path(_found(case)["folder"]) / "result")


def _reference(case: Case) -> Outcomes:
    return read_outcomes(case.folder, "reference.out.safetensors")


def _candidate(name: str, cases: Sequence[Case]) -> Candidate:
    return Candidate(name, {case.seed: _ours(case).correct for case in cases if case.method == name})


def _lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The table as text: per cent, means with 95 % intervals over seeds."""
    lines = [f"{'method':13}{'lr':>9}{'params':>12}{'ours':>21}{'reference':>21}{'difference':>24}"]
    for row in table:
        cells = [f"{row['method']:13}{row['lr']:>9.2g}{row['params']:>12,}"]
        cells += [f"{_shown(row[key]) if key in row else '':>21}" for key in ("ours", "reference")]
        cells.append(f"{_shown(row['difference'], signed=True) if 'difference' in row else '':>24}")
        lines.append("".join(cells))
        for mask in row.get("masks", []):
            lines.append(
                f"{'':13}masks: {mask['common']:,} common of {mask['ours']:,} and {mask['reference']:,}, "
                f"weights at most {mask['largest']:.1e} apart"
            )
        if "sklearn" in row:
            lines.append(f"{'':13}scikit-learn on the same features: {_shown(row['sklearn'])}")
    return lines


def _shown(interval: dict[str, Any], signed: bool = False) -> str:
    low, high = interval["ci"]
    mean = f"{100 * interval['estimate']:{'+' if signed else ''}.2f}"
    return mean if low is None else f"{mean} [{100 * low:.2f}, {100 * high:.2f}]"
