"""What pretraining is worth: full fine-tuning of a model against the same architecture from random weights.

Both get the learning rate that is best for them on validation, with seeds that the comparison does
not use; then both are measured on test, paired by seed. Every seed has random weights of its own.

python -m engine bench pretraining --model nano-bert --seeds 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.bench import options
from engine.bench.jobs import outcome_of, plan_of, recipe_of, write_job
from engine.bench.pool import carry_out, shares
from engine.devices import cpu_threads, cuda_devices
from engine.models.catalogue import resolve_model
from engine.settings import allowed_path
from engine.spec import RunSpec
from engine.stats.intervals import mean_over_seeds, paired_difference

TUNING = (100, 101)
"""Seeds that only choose the learning rate."""
SIDES = ("pretrained", "random")
Key = tuple[str, float, int]


def main(argv: Sequence[str]) -> int:
    """Tune both sides, train the seeds, print and write the paired figures."""
    given = _arguments(argv)
    folder = allowed_path(given.out or tempfile.mkdtemp(prefix="peftscope-pretraining-", dir=Path.cwd()))
    given.methods = ["full"]
    base = recipe_of(given, max(1, cpu_threads() // given.workers))
    tuned = _trained(given, base, folder, dict.fromkeys(SIDES, given.rates), TUNING)
    best = {side: _best(given.rates, side, tuned) for side in SIDES}
    for side in SIDES:
        cells = "  ".join(f"{rate:g}: {_shown(_mean(side, rate, TUNING, tuned, 'validation'))}" for rate in given.rates)
        print(f"{side:11}{cells}   best {best[side]:g}")
    seeds = range(given.seeds)
    found = _trained(given, base, folder, {side: [best[side]] for side in SIDES}, seeds)
    tests = {side: [_accuracy(found[side, best[side], seed], "test") for seed in seeds] for side in SIDES}
    means = {side: mean_over_seeds(values).to_json() for side, values in tests.items()}
    gain = paired_difference(tests["pretrained"], tests["random"]).to_json()
    for side in SIDES:
        print(f"{side:11}{_shown(means[side])}")
    print(f"{'gain':11}{_shown(gain)}")
    report = {"model": given.model, "rates": best, "test": tests, "means": means, "gain": gain, "seeds": given.seeds}
    (folder / "pretraining.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"written to {folder / 'pretraining.json'}")
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine bench pretraining", description=__doc__)
    parser.add_argument("--model", default="nano-bert")
    rates = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3]
    parser.add_argument("--rates", type=options.rates, default=rates)
    parser.add_argument("--seeds", type=options.count, default=5)
    parser.add_argument("--steps", type=options.count, default=700)
    parser.add_argument("--batch-size", type=options.count, default=32)
    parser.add_argument("--spec", help="a run spec whose dataset and recipe are used instead of the embedded ones")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32"])
    parser.add_argument("--workers", type=options.count, default=8 * cuda_devices() or 2)
    parser.add_argument("--out", help="folder for everything that is written, below a readable root")
    return parser.parse_args(argv)


def _trained(
    given: argparse.Namespace, base: RunSpec, folder: Path, rates: dict[str, list[float]], seeds: Sequence[int]
) -> dict[Key, dict[str, Any]]:
    """Summaries of all runs by side, rate and seed."""
    jobs: dict[Key, Path] = {}
    for side, tried in rates.items():
        for seed in seeds:
            model = given.model if side == "pretrained" else str(_random_weights(given.model, folder, seed))
            for rate in tried:
                plan = plan_of(base.model_copy(update={"model": model}), "full", seed, None, rate)
                jobs[side, rate, seed] = write_job(folder / f"{side}-{rate:g}-{seed}", plan)
    carry_out(shares("ours", list(jobs.values()), given.workers, folder / "logs"), print)
    return {key: (outcome_of(job) or {})["summary"] for key, job in jobs.items()}


def _random_weights(model: str, folder: Path, seed: int) -> Path:
    """A folder with the model's configuration and tokenizer, and the library's own initial weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    to = folder / "weights" / f"random-{seed}"
    if not to.exists():
        source = resolve_model(model)
        torch.manual_seed(seed)
        AutoModel.from_config(AutoConfig.from_pretrained(source.folder, local_files_only=True)).save_pretrained(to)
        shutil.copyfile(source.folder / "tokenizer.json", to / "tokenizer.json")
    return to


def _accuracy(summary: dict[str, Any] | None, split: str) -> float:
    """0 for a run that diverged: its rate must not be chosen."""
    return float(summary["accuracy"][split]) if summary else 0.0


def _mean(side: str, rate: float, seeds: Sequence[int], found: dict[Key, Any], split: str) -> dict[str, Any]:
    return mean_over_seeds([_accuracy(found[side, rate, seed], split) for seed in seeds]).to_json()


def _best(rates: Sequence[float], side: str, found: dict[Key, Any]) -> float:
    return max(rates, key=lambda rate: _mean(side, rate, TUNING, found, "validation")["estimate"])


def _shown(interval: dict[str, Any]) -> str:
    low, high = interval["ci"]
    return f"{100 * interval['estimate']:.2f} [{100 * low:.2f}, {100 * high:.2f}] %"
