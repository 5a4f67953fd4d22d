"""Peak memory against what the plan says before, each run in a process of its own.

python -m engine bench memory --models nano-bert,minilm-l6 --methods full,lora,bitfit,id3,pafi,fish --batch-sizes 16,32
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from engine.bench import options, pool
from engine.bench.jobs import add_common, plan_of, recipe_of, write_job, write_report
from engine.devices import cpu_threads


def main(argv: Sequence[str]) -> int:
    """Measure all, print the table and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-memory-"))
    table = []
    print(
        f"{'model':14}{'method':14}{'batch':>6}{'estimated':>12}{'measured':>12}{'off':>8}   held while training, MiB"
    )
    for model in given.models:
        for method in given.methods:
            for size in given.batch_sizes:
                row = _row(given, model, method, size, folder / f"{Path(model).name}-{method}-{size}")
                table.append(row)
                parts = ", ".join(f"{name} {bytes_ / 2**20:.0f}" for name, bytes_ in row["parts"].items())
                print(
                    f"{Path(model).name:14}{method:14}{size:>6}{row['estimated'] / 2**20:>8.0f} MiB"
                    f"{row['measured'] / 2**20:>8.0f} MiB{row['off']:>+8.1%}   {parts}",
                    flush=True,
                )
    off = [abs(row["off"]) for row in table]
    print(f"off by {median(off):.1%} (median), {max(off):.1%} (worst) of {len(off)}")
    write_report(folder, "memory", {"settings": vars(given), "table": table})
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench memory", description=__doc__)
    parser.add_argument("--models", type=options.names, default=["nano-bert", "minilm-l6"])
    parser.add_argument("--methods", type=options.names, default=["full", "lora", "bitfit", "fish", "pafi", "id3"])
    parser.add_argument("--batch-sizes", type=options.counts, default=[8, 32])
    parser.add_argument("--steps", type=options.count, default=30)
    add_common(parser)
    return parser.parse_args(argv)


def _row(given: argparse.Namespace, model: str, method: str, size: int, folder: Path) -> dict[str, Any]:
    """One run of one method, and what its plan said."""
    given = argparse.Namespace(**vars(given) | {"batch_size": size})
    base = recipe_of(given, cpu_threads()).model_copy(update={"model": model})
    plan = plan_of(base, method, 0, None)
    summary = pool.alone(write_job(folder, plan))["summary"]
    measured = summary["peak_memory_bytes"]
    return {
        "model": model,
        "method": method,
        "batch_size": size,
        "estimated": plan.memory_bytes,
        "measured": measured,
        "off": plan.memory_bytes / measured - 1,
        "parts": summary["memory"]["training"],
        "phases": summary["memory"]["phases"],
    }
