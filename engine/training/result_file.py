"""What a finished run leaves in its ``result`` folder: the trained tensors, and its answers on the test set."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import EngineError, StoreError
from engine.stats.metrics import Outcomes

if TYPE_CHECKING:
    import torch

TRAINED = "trained.safetensors"
TEST = "test.safetensors"
FORMAT = "peftscope-result/1"
HEAD = "head."


@dataclass(frozen=True)
class Result:
    """The trained tensors of a run.

    Attributes:
        tensors: the method's own, as its `result()` names them, on the CPU.
        head: the task head's, by their names in the model.
        metadata: plain data about the run.
    """

    tensors: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def write_result(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
) -> Path:
    """Write trained tensors, whole or not at all, and return the file.

    Raises:
        StoreError: when it cannot be written; an earlier file stays.
        ValueError: for a method's tensor whose name begins like the head's.
    """
    from safetensors.torch import save_file

    taken = [name for name in tensors if name.startswith(HEAD)]
    if taken:
        raise ValueError(f"tensor {taken[0]!r} of the method is named like one of the head")
    named = {**tensors, **{HEAD + name: tensor for name, tensor in head.items()}}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    facts = {"format": FORMAT, "facts": json.dumps(dict(metadata), sort_keys=True)}
    return write_whole(folder / TRAINED, lambda new: save_file(plain, new, facts))


def read_result(folder: Path) -> Result:
    """Read what `write_result` wrote.

    Raises:
        EngineError: when there is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / TRAINED
    if not path.is_file():
        raise EngineError(f"There is no trained result in {folder}.", "Only a finished run has one.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(facts["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise EngineError(f"The trained result {path} is damaged: {error}.", "Train the run again.") from None
    head = {name.removeprefix(HEAD): tensor for name, tensor in stored.items() if name.startswith(HEAD)}
    return Result({name: t for name, t in stored.items() if not name.startswith(HEAD)}, head, metadata)


def read_outcomes(folder: Path, name: str = TEST) -> Outcomes:
    """A finished run's answers on the test set, logits and labels; needs no torch.

    Raises:
        EngineError: when there are none, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from scipy.special import softmax

    path = folder / name
    if not path.is_file():
        raise EngineError(f"There are no test answers in {folder}.", "Only a finished run has them.")
    try:
        stored = load_file(path)
        probabilities = softmax(stored["logits"].astype(np.float64), axis=1).astype(np.float32)
        return Outcomes(stored["labels"].astype(np.int64), probabilities)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise EngineError(f"The test answers {path} are damaged: {error}.", "Train the run again.") from None


def write_whole(path: Path, write: Any) -> Path:
    """Make a file through ``write(temporary path)``, then put it in place in one step.

    Raises:
        StoreError: when the disk is full or refuses; what was there before stays.
    """
    from safetensors import SafetensorError

    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(new)
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreError(f"{path} cannot be written: {reason}.", "Free some disk space, or write elsewhere.") from None
    finally:
        with contextlib.suppress(OSError):  # there is none, or no folder to hold one
            new.unlink()
    return path
