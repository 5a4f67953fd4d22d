"""One checkpoint a run: everything a bit-for-bit resume needs, in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from engine.errors import EngineError, StoreError
from engine.methods.contract import chain
from engine.training.build import Built

FILE = "last.safetensors"
FORMAT = "1"


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back.

    Attributes:
        step: steps that were done.
        state: plain data of the loop and the recorder.
        tensors: everything else, by prefixed name.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save(folder: Path, built: Built, optimizer: torch.optim.Optimizer | None, step: int, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run that has done `step` steps.

    Raises:
        StoreError: when it cannot be written; the earlier checkpoint stays.
    """
    tensors = dict(_random_states())
    for name, parameter in built.dense:
        tensors[f"value/{name}"] = parameter.detach()
        for key, moment in _moments(optimizer, parameter).items():
            tensors[f"{key}/{name}"] = moment
    for level, method in enumerate(chain(built.method)):
        tensors.update({f"method{level}/{key}": tensor for key, tensor in method.state_dict().items()})
    metadata = {"format": FORMAT, "step": str(step), "state": json.dumps(state)}
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / (FILE + ".new")
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, new, metadata)
        new.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        new.unlink(missing_ok=True)
        raise StoreError(
            f"The checkpoint cannot be written: {error}.", "Free some disk space and resume the run."
        ) from None


def read(folder: Path) -> Saved | None:
    """The checkpoint in a folder, or None when there is none.

    Raises:
        EngineError: when the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return Saved(int(metadata["step"]), json.loads(metadata["state"]), tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"The checkpoint {path} is damaged: {error}.", "Start the run again.") from None


def restore(saved: Saved, built: Built, optimizer: torch.optim.Optimizer | None) -> None:
    """Put a checkpoint into freshly built objects."""
    with torch.no_grad():
        for name, parameter in built.dense:
            parameter.copy_(saved.tensors[f"value/{name}"])
            if optimizer is not None and f"exp_avg/{name}" in saved.tensors:
                optimizer.state[parameter] = {
                    key: saved.tensors[f"{key}/{name}"].to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
    for level, method in enumerate(chain(built.method)):
        prefix = f"method{level}/"
        own = {key.removeprefix(prefix): t for key, t in saved.tensors.items() if key.startswith(prefix)}
        if own:
            method.load_state_dict(own)
    torch.set_rng_state(saved.tensors["random/cpu"])
    if "random/cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["random/cuda"])


def drop(folder: Path) -> None:
    """Delete the checkpoint of a run that no longer needs it."""
    shutil.rmtree(folder, ignore_errors=True)


def _random_states() -> dict[str, torch.Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def _moments(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
