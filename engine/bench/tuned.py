"""Accuracy by budget, each method at the learning rate that is best for it there.

The best rate differs tenfold between selection rules, so that a table at one rate misleads. Every method and budget
tries the same grid, judged by validation accuracy on seeds of its own; then the best rate meets the test set. Runs
that an earlier call with the same folder finished are not repeated.

python -m engine bench tuned --methods full,fish,pafi,id3 --budgets 1000,10000 --out results
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.bench import options
from engine.bench.jobs import UNBUDGETED, outcome_of, plan_if_possible, plan_of, recipe_of, write_job, write_report
from engine.bench.pool import carry_out, shares
from engine.devices import cpu_threads, cuda_devices
from engine.export.finished import chain_of
from engine.methods.registry import config_of
from engine.plan import Plan
from engine.spec import MethodChoice, RunSpec, parse_spec
from engine.stats.intervals import mean_over_seeds
from engine.stats.verdict import Candidate, verdict
from engine.training.result_file import read_outcomes

TUNING = (100, 101)
"""Seeds that only choose the learning rate."""
METHODS = ("fish", "pafi", "id3", "random_mask", "magnitude", "gmt", "speft")
VARIANT = "LABEL={name: METHOD, ...}"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


class Cell(NamedTuple):
    """One line of the table: a method or a labelled variant, and its budget in parameters, None for its own size."""

    method: str
    budget: int | None


class Run(NamedTuple):
    """One training run."""

    cell: Cell
    rate: float
    seed: int


def main(argv: Sequence[str]) -> int:
    """Tune, train the seeds, print the table with all rates, and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-tuned-"))
    base = recipe_of(given, max(1, cpu_threads() // given.workers))
    cells = _cells(given, base)
    tried = _trained(
        given, base, folder, [Run(c, rate, seed) for c in cells for rate in given.rates for seed in TUNING]
    )
    curves = {cell: [_validation(cell, rate, tried) for rate in given.rates] for cell in cells}
    best = {cell: given.rates[max(range(len(given.rates)), key=curves[cell].__getitem__)] for cell in cells}
    seeds = range(given.seeds)
    found = _trained(given, base, folder, [Run(cell, best[cell], seed) for cell in cells for seed in seeds])
    table = [_row(cell, given.rates, curves[cell], best[cell], found) for cell in cells]
    print("\n".join(_lines(given.rates, table)))
    verdicts = {}
    for budget in dict.fromkeys(cell.budget for cell in cells if cell.budget is not None):
        rivals = [cell for cell in cells if cell.budget in (budget, None)]
        if len(rivals) > 1:
            result = verdict([_candidate(cell, best[cell], seeds, found) for cell in rivals])
            verdicts[budget] = result.to_json()
            print(f"{budget:,}: {result.sentence}")
    report = {"settings": vars(given), "table": table, "verdicts": verdicts}
    write_report(folder, "tuned", report)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench tuned", description=__doc__)
    parser.add_argument("--methods", type=lambda text: text.split(",") if text else [], default=list(METHODS))
    parser.add_argument("--budgets", type=options.counts, default=[26_112])
    parser.add_argument("--rates", type=options.rates, default=list(RATES))
    parser.add_argument("--seeds", type=options.count, default=5)
    parser.add_argument("--steps", type=options.count, default=700)
    parser.add_argument("--batch-size", type=options.count, default=32)
    parser.add_argument(
        "--variant",
        type=_variant,
        action="append",
        default=[],
        metavar=VARIANT,
        help="a method with settings, at its own size",
    )
    parser.add_argument(
        "--spec", help="a run spec whose model, dataset and recipe are used instead of the embedded ones"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32"])
    parser.add_argument("--workers", type=options.count, default=8 * cuda_devices() or 1)
    parser.add_argument("--out", help="folder for everything that is written")
    return parser.parse_args(argv)


def _variant(text: str) -> tuple[str, MethodChoice]:
    """A label and the method that it stands for.

    Raises:
        ArgumentTypeError: when it is not written as it should be.
        UnknownName: for an unknown method, with those there are.
        SpecError: for settings that the method does not have.
    """
    label, _, settings = text.partition("=")
    try:
        given = yaml.safe_load(settings)
    except (yaml.YAMLError, ValueError, RecursionError):
        given = None
    if not label.strip() or not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not written as {VARIANT}, as in wide={{name: lora, rank: 8}}")
    choice = parse_spec({"method": given}).method
    for method in chain_of(choice):
        config_of(method)
    return label, choice


def _cells(given: argparse.Namespace, base: RunSpec) -> list[Cell]:
    """All pairs of method and budget that can be planned; methods whose size is no choice once."""
    found = []
    for method in given.methods:
        for budget in [None] if method in UNBUDGETED else given.budgets:
            if plan_if_possible(base, method, budget) is not None:
                found.append(Cell(method, budget))
    return [*found, *(Cell(label, None) for label, _ in given.variant)]


def _trained(given: argparse.Namespace, base: RunSpec, folder: Path, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
    """Where each run is, and its summary."""
    jobs = {}
    variants = dict(given.variant)
    for run in runs:
        place = folder / f"{run.cell.method}-{run.cell.budget}-{run.rate:g}-{run.seed}"
        plan: Plan = plan_of(base, variants.get(run.cell.method, run.cell.method), run.seed, run.cell.budget, run.rate)
        jobs[run] = write_job(place, plan)
    waiting = [job for job in jobs.values() if outcome_of(job) is None]
    carry_out(shares("ours", waiting, given.workers, folder / "logs"), print)
    return {run: outcome_of(job) or {} for run, job in jobs.items()}


def _validation(cell: Cell, rate: float, tried: dict[Run, dict[str, Any]]) -> float:
    """Mean validation accuracy; 0 where a run diverged, so that the rate is not chosen."""
    summaries = [tried[Run(cell, rate, seed)]["summary"] for seed in TUNING]
    return 0.0 if None in summaries else sum(s["accuracy"]["validation"] for s in summaries) / len(summaries)


def _row(
    cell: Cell, rates: Sequence[float], curve: Sequence[float], best: float, found: dict[Run, dict[str, Any]]
) -> dict[str, Any]:
    own = [outcome for run, outcome in found.items() if run.cell == cell]
    finished = [outcome["summary"] for outcome in own if outcome["summary"]]
    values = [summary["accuracy"]["test"] for summary in finished]
    return {
        "method": cell.method,
        "budget": cell.budget,
        "params": finished[0]["params"]["method"] if finished else None,
        "validation": dict(zip(rates, curve, strict=True)),
        "rate": best,
        "at_an_end": best in (min(rates), max(rates)),
        "values": values,
        "test": mean_over_seeds(values).to_json() if values else None,
        "diverged": len(own) - len(finished),
    }


def _candidate(cell: Cell, rate: float, seeds: Sequence[int], found: dict[Run, dict[str, Any]]) -> Candidate:
    outcomes = {seed: found[Run(cell, rate, seed)] for seed in seeds}
    results = {seed: Path(one["folder"]) / "result" for seed, one in outcomes.items() if one["summary"]}
    return Candidate(cell.method, {seed: read_outcomes(result).correct for seed, result in results.items()})


def _lines(rates: Sequence[float], table: Sequence[dict[str, Any]]) -> list[str]:
    """Per cent: validation at every rate, then test at the best one, with the 95 % interval over seeds."""
    head = "".join(f"{rate:>8.0e}" for rate in rates)
    lines = [f"{'method':14}{'params':>12}{head}{'best':>9}{'test':>24}"]
    for row in table:
        tried = "".join(f"{100 * value:>8.1f}" if value else f"{'-':>8}" for value in row["validation"].values())
        mark = "*" if row["at_an_end"] else " "
        lines.append(
            f"{row['method']:14}{row['params'] or 0:>12,}{tried}{row['rate']:>8.0e}{mark}{_shown(row['test']):>24}"
        )
    return [*lines, "* the best rate is at an end of the grid"] if any(r["at_an_end"] for r in table) else lines


def _shown(test: dict[str, Any] | None) -> str:
    if test is None:
        return "diverged"
    low, high = test["ci"]
    return f"{100 * test['estimate']:.2f}" + ("" if low is None else f" [{100 * low:.2f}, {100 * high:.2f}]")
