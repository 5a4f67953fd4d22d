"""Learning rates by validation accuracy: the same grid for every method, several seeds, one recipe.

python -m engine bench tune --methods lora,id3 --rates 2e-4,5e-4,1e-3,2e-3 --seeds 3
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.bench import options
from engine.bench.accuracy import COMMON_BUDGET
from engine.bench.jobs import METHODS, outcome_of, plan_of, recipe_of, write_job, write_report
from engine.bench.pool import carry_out, shares
from engine.devices import cpu_threads, cuda_devices
from engine.stats.intervals import mean_over_seeds


def main(argv: Sequence[str]) -> int:
    """Train the grid, print mean validation accuracies and write them as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-tune-"))
    workers = given.workers or (8 * cuda_devices() or 1)
    jobs = _prepare(given, folder, max(1, cpu_threads() // workers))
    carry_out(shares("ours", list(jobs.values()), workers, folder / "logs"), print)
    table = [_row(given, method, jobs) for method in given.methods]
    for row in table:
        cells = "  ".join(
            f"{rate:.2g}: {_per_cent(mean)}" for rate, mean in zip(given.rates, row["means"], strict=True)
        )
        print(f"{row['method']:13}{cells}   best {row['best']:.2g}")
    write_report(folder, "tune", {"seeds": given.seeds, "table": table})
    return 0


Key = tuple[str, float, int]


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench tune", description=__doc__)
    parser.add_argument("--methods", type=options.names, default=list(METHODS))
    parser.add_argument("--rates", type=options.rates, required=True)
    parser.add_argument(
        "--seeds", type=options.count, default=3, help="seeds 100, 101, ...: none that a comparison uses"
    )
    parser.add_argument("--steps", type=options.count, default=700)
    parser.add_argument("--batch-size", type=options.count, default=32)
    parser.add_argument(
        "--budget",
        type=options.count_or_none,
        default=COMMON_BUDGET,
        help="parameters; 0 for the methods' own settings",
    )
    parser.add_argument(
        "--spec", help="a run spec whose model, dataset and recipe are used instead of the embedded ones"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32"])
    parser.add_argument("--workers", type=options.count_or_none, default=0)
    parser.add_argument("--out")
    return parser.parse_args(argv)


def _prepare(given: argparse.Namespace, folder: Path, threads: int) -> dict[Key, Path]:
    base = recipe_of(given, threads)
    jobs = {}
    for method in given.methods:
        for rate in given.rates:
            for seed in range(100, 100 + given.seeds):
                plan = plan_of(base, method, seed, given.budget or None, rate)
                jobs[method, rate, seed] = write_job(folder / f"{method}-{rate:g}-{seed}", plan)
    return jobs


def _row(given: argparse.Namespace, method: str, jobs: dict[Key, Path]) -> dict[str, Any]:
    means: list[float | None] = []
    for rate in given.rates:
        found = [outcome_of(job) or {} for (name, lr, _), job in jobs.items() if (name, lr) == (method, rate)]
        # A rate so high that no seed finishes has no accuracy; `carry_out` lets diverged runs pass.
        finished = [one["summary"]["accuracy"]["validation"] for one in found if one["summary"]]
        means.append(mean_over_seeds(finished).estimate if len(finished) == len(found) else None)
    best = max(zip(given.rates, means, strict=True), key=lambda pair: -1.0 if pair[1] is None else pair[1])
    return {"method": method, "rates": given.rates, "means": means, "best": best[0]}


def _per_cent(mean: float | None) -> str:
    return "diverged" if mean is None else f"{100 * mean:.2f} %"
