"""A run as a result of peft's public method comparison (the JSON of `method_comparison` in its repository).

Written so that its tables read our runs beside theirs. Their loader needs a whole number in
each memory field; what was not measured is 0 there and named in ``meta_info.peftscope.not_measured``.
"""

from __future__ import annotations

import datetime
from typing import Any

from engine.export.finished import Finished
from engine.spec import RunSpec

PEFT_TYPES = {"lora": "LORA", "dora": "LORA", "adalora": "ADALORA"}
"""Names by peft of the methods that it has; others go by their own, in capitals."""


def peft_result(finished: Finished) -> dict[str, Any]:
    """The three blocks of a result.

    Raises:
        EngineError: when the run has not finished.
    """
    finished.check_finished()
    provenance = finished.reader.meta("provenance", {})
    return {
        "run_info": _run_info(finished),
        "train_info": _train_info(finished, provenance),
        "meta_info": _meta_info(finished, provenance),
    }


def _run_info(finished: Finished) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(finished.row.created, datetime.UTC)
    return {
        "created_at": created.isoformat(timespec="seconds"),
        "total_time": finished.summary["seconds"],
        "experiment_name": f"{finished.spec.method.name}/{finished.row.spec_hash}-seed{finished.row.seed}",
        "peft_branch": "",
        "peft_worktree_is_dirty": False,
        "train_config": _train_config(finished.spec),
        "peft_config": peft_config(finished.spec),
        "error_msg": "",
    }


def _train_config(spec: RunSpec) -> dict[str, Any]:
    train = spec.train
    return {
        "model_id": spec.model,
        "dtype": "float32",
        "max_seq_length": train.max_length,
        "batch_size": train.batch_size,
        "max_steps": train.steps,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": train.lr, "weight_decay": train.weight_decay},
        "lr_scheduler": "linear",
        "warmup_ratio": train.warmup,
        "grad_norm_clip": train.clip,
        "seed": train.seed,
        "dataset": spec.dataset.source,
        "precision": train.precision,
    }


def peft_config(spec: RunSpec) -> dict[str, Any] | None:
    """The method's settings under peft's key for them; None for full fine-tuning, as theirs."""
    if spec.method.name == "full":
        return None
    config: dict[str, Any] = {"peft_type": PEFT_TYPES.get(spec.method.name, spec.method.name.upper())}
    settings = dict(spec.method.settings)
    if spec.method.name in PEFT_TYPES:
        config |= {"r": settings.pop("rank"), "lora_alpha": settings.pop("alpha"), "task_type": "SEQ_CLS"}
        config["use_dora"] = spec.method.name == "dora"
    if spec.method.on:
        config["on"] = spec.method.on.model_dump(mode="json")
    return config | settings


def _train_info(finished: Finished, provenance: dict[str, Any]) -> dict[str, Any]:
    summary = finished.summary
    on_gpu = finished.spec.train.device != "cpu"
    return {
        "accelerator_memory_reserved_avg": 0,
        "accelerator_memory_max": int(summary["peak_memory_bytes"]) if on_gpu else 0,
        "accelerator_memory_reserved_99th": 0,
        "train_time": summary["training_seconds"],
        "file_size": summary["bytes_on_disk"],
        "num_trainable_params": summary["params"]["total"],
        "num_total_params": finished.row.plan["params"]["model"] + summary["params"]["head"],
        "status": "success",
        "metrics": _metrics(finished),
    }


def _metrics(finished: Finished) -> list[dict[str, Any]]:
    """One line per point of the validation curve, and the test measurement last."""
    series = finished.reader.scalars(["train/loss", "validation/accuracy", "validation/loss"], max_points=10**9)
    losses = dict(zip(*(column.tolist() for column in series["train/loss"]), strict=True))
    batch, steps = finished.spec.train.batch_size, finished.spec.train.steps
    lines = [
        {
            "step": step,
            "valid accuracy": accuracy,
            "train loss": losses.get(step),
            "train samples": step * batch,
        }
        for step, accuracy in zip(*(column.tolist() for column in series["validation/accuracy"]), strict=True)
    ]
    last = {
        "step": steps,
        "valid accuracy": finished.summary["accuracy"]["validation"],
        "test accuracy": finished.summary["accuracy"]["test"],
        "train loss": losses.get(steps),
        "train samples": steps * batch,
        "train total tokens": finished.summary["tokens"],
    }
    return [*lines, last]


def _meta_info(finished: Finished, provenance: dict[str, Any]) -> dict[str, Any]:
    packages, hardware = provenance.get("packages", {}), provenance.get("hardware", {})
    wanted = ("transformers", "datasets", "peft", "torch", "bitsandbytes")
    versions: dict[str, Any] = {f"{name}-version": packages.get(name) for name in wanted}
    hashes = {f"{name}-commit-hash": None for name in wanted}
    missing = ["accelerator_memory_reserved_avg", "accelerator_memory_reserved_99th"]
    if finished.spec.train.device == "cpu":
        missing.append("accelerator_memory_max")
    return {
        "model_info": {"sha": provenance.get("weights", {}).get("sha256"), "created_at": None},
        "dataset_info": {finished.spec.dataset.source: {"sha": provenance.get("data", {}).get("sha256")}},
        "package_info": versions | hashes,
        "system_info": {
            "system": provenance.get("platform"),
            "processor": hardware.get("cpu"),
            "accelerator": hardware.get("device"),
        },
        "pytorch_info": None,
        "peftscope": {
            "spec_hash": finished.row.spec_hash,
            "ci95": finished.summary["accuracy"]["ci95"],
            "not_measured": missing,
            "code": provenance.get("code"),
        },
    }
