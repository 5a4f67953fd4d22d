"""One command from a clone to a model folder: read, train (or go on), write weights, tokenizer and card."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.errors import StoreError, UnknownName
from engine.models.checksums import file_sha256
from engine.pretraining.card import card_of
from engine.pretraining.loop import Schedule, pretrain
from engine.pretraining.nano_bert import NanoBert
from engine.pretraining.nano_llama import NanoLlama
from engine.store.provenance import collect


@dataclass(frozen=True)
class Recipe:
    """How a nano model is made unless told otherwise."""

    objective: Any
    schedule: Schedule
    tokens: int


RECIPES = {
    "nano-bert": Recipe(NanoBert, Schedule(steps=15_000, lr=1e-3, warmup=1_000, weight_decay=0.01), 16_384),
    "nano-llama": Recipe(NanoLlama, Schedule(steps=8_000, lr=3e-3, warmup=200, weight_decay=0.1), 32_768),
}
Say = Callable[[str], None]


def make(name: str, to: Path, work: Path, *, device: str, seed: int, steps: int | None, say: Say) -> dict[str, Any]:
    """Make a nano model, or go on where an earlier call with the same settings was stopped.

    Args:
        name: of `RECIPES`.
        to: the model's folder, written at the end.
        work: folder for what is kept in between.
        device: where to train.
        seed: of everything random.
        steps: fewer or more than the recipe's.
        say: takes a line about progress.

    Returns:
        What the card says, as plain data.

    Raises:
        UnknownName: for an unknown model.
        DataError: when the texts are missing or not allowed.
        StoreError: when a folder cannot be written; found before anything is trained.
    """
    if name not in RECIPES:
        raise UnknownName("nano model", name, RECIPES)
    recipe = RECIPES[name]
    provenance = collect({}, {}, torch.cuda.get_device_name() if device.startswith("cuda") else "")
    schedule = recipe.schedule if steps is None else Schedule(**(vars(recipe.schedule) | {"steps": steps}))
    settings = {"name": name, "seed": seed, "tokens_per_step": recipe.tokens, **vars(schedule)}
    for folder in (to, work):
        _check_writable(folder)
    objective = recipe.objective(work, device, seed, recipe.tokens, say)
    trained = pretrain(objective, schedule, work / f"checkpoint-{_digest(settings, objective)}.pt", say)
    tensors, config = objective.exported()
    facts = {
        "settings": settings,
        "texts": objective.provenance,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        **trained,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "provenance": provenance,
    }
    _write(to, tensors, config, objective, facts)
    objective.clean_up()
    say(f"written to {to}")
    return facts


def _check_writable(folder: Path) -> None:
    """Make a folder, and a file in it that goes again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{folder} cannot be written: {reason}.", "Name another folder.") from None


def _digest(settings: dict[str, Any], objective: Any) -> str:
    """Names the checkpoint: another recipe, model or text never goes on from it, nor overwrites it."""
    made_of = [settings, objective.config, objective.provenance]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def _write(to: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], objective: Any, facts: Any) -> None:
    halves = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(halves, to / "model.safetensors", {"format": "pt"})
    facts["sha256"] = file_sha256(to / "model.safetensors")
    (to / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    objective.tokenizer.save(str(to / "tokenizer.json"))
    (to / "tokenizer_config.json").write_text(json.dumps(objective.tokenizer_config, indent=2), encoding="utf-8")
    (to / "made.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    (to / "README.md").write_text(card_of(facts), encoding="utf-8")
