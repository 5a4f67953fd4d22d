"""What looking costs: the share of training time that all probes of a run take together, and what it may be.

python -m engine bench probes --models nano-bert,minilm-l6 --methods full,lora,id3,fish --steps 300
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.bench import options, pool
from engine.bench.jobs import add_common, plan_of, recipe_of, write_job, write_report
from engine.devices import cpu_threads
from engine.probes.schedule import FLOOR_SECONDS, SHARE
from engine.store.run_reader import RunReader


def main(argv: Sequence[str]) -> int:
    """Measure all, print the table and write it as JSON."""
    given = _arguments(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-probes-"))
    table = []
    print(f"{'model':14}{'method':14}{'training':>10}{'probes':>9}{'share':>8}{'allowed':>9}   frames")
    for model in given.models:
        for method in given.methods:
            row = _row(given, model, method, folder / f"{Path(model).name}-{method}")
            table.append(row)
            frames = ", ".join(f"{kind} {count}" for kind, count in row["frames"].items())
            print(
                f"{Path(model).name:14}{method:14}{row['training']:>8.2f} s{row['probes']:>7.2f} s"
                f"{row['probes'] / row['training']:>8.1%}{row['allowed']:>7.2f} s   {frames}",
                flush=True,
            )
    write_report(folder, "probes", {"settings": vars(given), "table": table})
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench probes", description=__doc__)
    parser.add_argument("--models", type=options.names, default=["nano-bert", "minilm-l6"])
    parser.add_argument("--methods", type=options.names, default=["full", "lora", "adalora", "bitfit", "fish", "id3"])
    parser.add_argument("--steps", type=options.count, default=300)
    parser.add_argument("--batch-size", type=options.count, default=16)
    add_common(parser)
    return parser.parse_args(argv)


def _row(given: argparse.Namespace, model: str, method: str, folder: Path) -> dict[str, Any]:
    """One run of one method."""
    base = recipe_of(given, cpu_threads()).model_copy(update={"model": model})
    found = pool.alone(write_job(folder, plan_of(base, method, 0, None)))
    summary = found["summary"]
    with RunReader(Path(found["folder"]) / "run.db") as reader:
        frames = {kind: len(reader.frame_index(kind)) for kind in reader.frame_kinds()}
    return {
        "model": model,
        "method": method,
        "training": summary["training_seconds"],
        "probes": summary["probe_seconds"],
        "allowed": max(FLOOR_SECONDS, SHARE * summary["training_seconds"]),
        "frames": frames,
    }
