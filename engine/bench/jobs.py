"""What both sides of a benchmark are given: the same split, batches and head, and the same settings."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import BudgetError, SpecError
from engine.methods.registry import config_of, method_named
from engine.models.architecture import Architecture
from engine.plan import Plan, Setting, make_plan, read_setting
from engine.spec import Budget, MethodChoice, RunSpec, read_spec, with_recipe
from engine.tasks.dataset import Dataset
from engine.tasks.order import batch_order

METHODS = ("full", "linear_probe", "bitfit", "fish", "pafi", "id3", "lora", "adalora", "dora")
UNBUDGETED = ("full", "linear_probe")
"""Methods whose size is not a choice."""


@dataclass(frozen=True)
class Case:
    """One method with one seed.

    Attributes:
        method: its name.
        seed: of the run.
        plan: the resolved plan of our run.
        folder: holds its job files and what comes of them.
    """

    method: str
    seed: int
    plan: Plan
    folder: Path

    @property
    def ours(self) -> Path:
        """The job file of our side."""
        return self.folder / "ours.json"

    @property
    def reference(self) -> Path:
        """The job file of the reference."""
        return self.folder / "reference.json"


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that most benchmarks share: where to compute, whose recipe, and where to write."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32"])
    parser.add_argument("--spec", help="a run spec whose dataset and recipe are used instead of the embedded ones")
    parser.add_argument("--out", help="folder for everything that is written")


def write_report(folder: Path, name: str, report: dict[str, Any]) -> None:
    """Write all that was measured as JSON, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")
    print(f"written to {path}")


def recipe_of(given: argparse.Namespace, threads: int) -> RunSpec:
    """The common recipe of a benchmark from its options: a spec whose method is a placeholder."""
    base = RunSpec(method=MethodChoice(name=given.methods[0])) if given.spec is None else read_spec(given.spec)
    return with_recipe(
        base,
        steps=given.steps,
        batch_size=given.batch_size,
        device=given.device,
        precision=given.precision,
        threads=threads,
    )


def plan_of(base: RunSpec, method: str | MethodChoice, seed: int, budget: int | None, lr: float | None = None) -> Plan:
    """The plan of one method and seed under a common recipe.

    Args:
        base: model, dataset and recipe.
        method: its name, or with settings.
        seed: of the run.
        budget: parameters, for the methods that can choose; None for their own settings.
        lr: learning rate instead of the method's default.
    """
    train = base.train.model_copy(update={"seed": seed, "lr": "auto" if lr is None else lr})
    choice = MethodChoice(name=method) if isinstance(method, str) else method
    wanted = None if budget is None or choice.name in UNBUDGETED else Budget(params=budget)
    return make_plan(base.model_copy(update={"method": choice, "budget": wanted, "train": train}))


def plan_if_possible(base: RunSpec, method: str, budget: int | None) -> Plan | None:
    """The plan of a method at a budget; None, with a word to the reader, where it cannot meet that."""
    try:
        return plan_of(base, method, 0, budget)
    except BudgetError as error:
        print(f"{method} at {budget:,} is left out: {error.what}")
        return None


def write_job(place: Path, plan: Plan) -> Path:
    """The job file of one run of ours, in a folder of its own."""
    place.mkdir(parents=True, exist_ok=True)
    job = {"plan": plan.to_json(), "home": str(place / "home"), "out": str(place / "out.json")}
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return place / "job.json"


def outcome_of(job: Path) -> dict[str, Any] | None:
    """What came of a job: ``folder`` of the run and its ``summary``, None if it diverged; None before it has ended."""
    path = job.with_name("out.json")
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_shared(folder: Path, plan: Plan, seeds: Sequence[int]) -> Setting:
    """Write split, batches, initial heads and scoring orders for all seeds; returns the setting."""
    from safetensors.torch import save_file

    from engine.models.loading import load_classifier

    setting = read_setting(plan.spec)
    train = plan.spec.train
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        _write_split(folder / f"{name}.jsonl", setting.dataset, name)
    count = len(setting.dataset.splits["train"])
    heads = [row.name for row in setting.architecture.head]
    for seed in seeds:
        np.save(folder / f"batches-{seed}.npy", batch_order(count, train.batch_size, train.steps, seed))
        np.save(folder / f"order-{seed}.npy", scoring_order(count, seed))
        model = load_classifier(
            setting.source, setting.dataset.labels, head_seed=seed, init_seed=seed, dropout=train.dropout
        )
        tensors = dict(model.named_parameters())
        save_file({name: tensors[name].detach().clone() for name in heads}, folder / f"head-{seed}.safetensors")
    return setting


def scoring_order(count: int, seed: int) -> np.ndarray:
    """The order in which training examples are scored before training, as `engine.training.run` draws it."""
    return np.random.Generator(np.random.PCG64([seed, 2**20])).permutation(count)


def write_case(case: Case, shared: Path, setting: Setting) -> None:
    """Write the job files of both sides."""
    case.folder.mkdir(parents=True, exist_ok=True)
    ours = {"plan": case.plan.to_json(), "home": str(case.folder / "home"), "out": str(case.folder / "ours.out.json")}
    case.ours.write_text(json.dumps(ours), encoding="utf-8")
    train = case.plan.spec.train
    reference = {
        "method": case.method,
        "model": str(setting.source.folder),
        "data": str(shared),
        "batches": str(shared / f"batches-{case.seed}.npy"),
        "order": str(shared / f"order-{case.seed}.npy"),
        "head": str(shared / f"head-{case.seed}.safetensors"),
        "labels": len(setting.dataset.labels),
        "pairs": setting.dataset.is_pair,
        "lr": train.lr,
        "warmup": train.warmup,
        "clip": train.clip,
        "max_length": train.max_length,
        "device": train.device,
        "precision": train.precision,
        "threads": train.threads,
        "seed": case.seed,
        "settings": reference_settings(case.plan.spec, setting.architecture),
        "out": str(case.folder / "reference.out"),
    }
    case.reference.write_text(json.dumps(reference), encoding="utf-8")


def reference_settings(spec: RunSpec, architecture: Architecture) -> dict[str, Any]:
    """Our resolved settings in the words of peft, or of the reference's dense masks.

    Raises:
        SpecError: for a setting that the reference does not have.
    """
    name = spec.method.name
    config: Any = config_of(spec.method)
    if name in ("lora", "dora"):
        return _low_rank(name, config, architecture)
    if name == "adalora":
        return _adalora(config, architecture, spec.train.steps)
    if name == "fish":
        _only(config, kind="empirical", exclude=())
        return {"count": config.k, "samples": config.samples}
    if name == "pafi":
        _only(config, exclude=())
        return {"count": config.k}
    if name == "id3":
        _only(config, clip_scope="dense", bias_correction="global", exclude=())
        return {"count": config.k, "power": config.p, "exp": config.exp, "eps": config.eps}
    return {}


def _low_rank(name: str, config: Any, architecture: Architecture) -> dict[str, Any]:
    method: Any = method_named(name)
    ranks = method.ranks_of(architecture, config)
    special = {re.escape(module): rank for module, rank in ranks.items() if rank != config.rank}
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(ranks),
        "rank_pattern": special,
        "alpha_pattern": {module: config.alpha * rank / config.rank for module, rank in special.items()},
    }


def _adalora(config: Any, architecture: Architecture, steps: int) -> dict[str, Any]:
    method: Any = method_named("adalora")
    modules = [row.module for row in method.targets_of(architecture, config)]
    schedule = method.schedule_of(architecture, config, steps)
    return {
        "target_r": max(1, schedule.final // len(modules)),
        "total_rank": schedule.final,
        "init_r": schedule.start // len(modules),
        "tinit": schedule.initial,
        "tfinal": schedule.settled,
        "deltaT": schedule.every,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "orth_reg_weight": config.orthogonality,
        "total_step": steps,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": modules,
    }


def _only(config: Any, **values: Any) -> None:
    for key, value in values.items():
        if getattr(config, key) != value:
            raise SpecError(f"The reference has no {key} = {getattr(config, key)!r}.", f"Use {value!r}.")


def _write_split(path: Path, dataset: Dataset, name: Any) -> None:
    split = dataset.splits[name]
    pairs: list[Any] = split.pairs or [None] * len(split)
    rows = zip(split.texts, pairs, split.labels.tolist(), strict=True)
    lines = [json.dumps({"text": text, "pair": pair, "label": label}) for text, pair, label in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
