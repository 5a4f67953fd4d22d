"""The sparse delta file: a fine-tuned model as the few weights that differ from the base.

A safetensors file with, per changed tensor, ``<name>.index`` (int32, flat position),
``<name>.value`` (in the weight's own precision) and ``<name>.step`` (int32, the step at which
it was selected), with the task head dense as ``head.<name>``, and with text metadata: format
version, K, method, eligibility, spec hash and the sha256 of the base weights. Values replace
weights, so that applying a delta gives the trained model bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from engine.errors import DataError, ModelError, StoreError

FORMAT = "1"
REQUIRED = ("format", "k", "method", "eligibility", "spec_hash", "base_sha256")
_PARTS = ("index", "value", "step")


@dataclass(frozen=True)
class Entries:
    """Changed entries of one tensor: index int32 (n,) ascending, value (n,), step int32 (n,)."""

    index: torch.Tensor
    value: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class Delta:
    """A sparse change of a model.

    Attributes:
        entries: changed entries by tensor name.
        head: dense tensors of the task head by name.
        metadata: text, with at least the keys of `REQUIRED`.
    """

    entries: dict[str, Entries]
    head: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @property
    def count(self) -> int:
        """Changed entries, head apart."""
        return sum(len(entries.index) for entries in self.entries.values())


@dataclass
class Applied:
    """What `apply_delta` has overwritten; `revert` puts it back."""

    _undo: list[tuple[nn.Parameter, torch.Tensor | None, torch.Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def revert(self) -> None:
        """Restore the weights as they were, bit for bit."""
        while self._undo:
            parameter, index, value = self._undo.pop()
            if index is None:
                parameter.copy_(value)
            else:
                parameter.view(-1).index_copy_(0, index, value)


def delta_of(result: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> Delta:
    """A delta from a method's `result`: sparse triples, or whole tensors, which become all their entries.

    Args:
        result: as `Method.result` gives it.
        head: tensors of the task head by name.
        metadata: see `REQUIRED`; ``format`` and ``k`` are filled in here.
    """
    sparse = {name.removesuffix(".index") for name in result if name.endswith(".index")}
    entries = {name: Entries(*(result[f"{name}.{part}"] for part in _PARTS)) for name in sorted(sparse)}
    for name, tensor in result.items():
        stem, _, part = name.rpartition(".")
        if part not in _PARTS or stem not in sparse:
            index = torch.arange(tensor.numel(), dtype=torch.int32)
            entries[name] = Entries(index, tensor.detach().cpu().reshape(-1), torch.zeros_like(index))
    whole = Delta(entries, {name: tensor.detach().cpu() for name, tensor in head.items()}, {})
    return Delta(whole.entries, whole.head, {**metadata, "format": FORMAT, "k": str(whole.count)})


def write_delta(path: str | Path, delta: Delta) -> None:
    """Write a delta file, whole or not at all.

    Raises:
        DataError: when a required line of metadata is missing.
        StoreError: when the file cannot be written.
    """
    missing = [key for key in REQUIRED if key not in delta.metadata]
    if missing:
        raise DataError(f"A delta file needs the metadata {', '.join(missing)}.", "Give them.")
    tensors = {f"head.{name}": tensor.contiguous() for name, tensor in delta.head.items()}
    for name, entries in delta.entries.items():
        for part in _PARTS:
            tensors[f"{name}.{part}"] = getattr(entries, part).contiguous()
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata=delta.metadata)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"Cannot write {path}: {error}.", "Check the folder and the free space.") from None


def read_delta(path: str | Path) -> Delta:
    """Read and check a delta file.

    Raises:
        DataError: when it is missing, is not a delta file, or its tensors do not fit together.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"Cannot read {path} as safetensors: {error}.", "Export the run again.") from None
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise DataError(f"{path} is not a sparse delta: it lacks {', '.join(missing)}.", "Export it with `--as delta`.")
    if metadata["format"] != FORMAT:
        raise DataError(f"{path} has format {metadata['format']!r}, not {FORMAT!r}.", "Use the version that wrote it.")
    head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    sparse = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    delta = Delta(_entries(path, sparse), head, metadata)
    if str(delta.count) != metadata["k"]:
        raise DataError(f"{path} promises {metadata['k']} weights and holds {delta.count}.", "Export the run again.")
    return delta


def _entries(path: str | Path, tensors: dict[str, torch.Tensor]) -> dict[str, Entries]:
    found: dict[str, Entries] = {}
    for name in tensors:
        stem, _, part = name.rpartition(".")
        wanted = [f"{stem}.{other}" for other in _PARTS]
        if part not in _PARTS or any(other not in tensors for other in wanted):
            raise DataError(f"{path}: tensor {name!r} has no place in a sparse delta.", "Export the run again.")
        index, value, step = (tensors[other] for other in wanted)
        whole_numbers = index.dtype == step.dtype == torch.int32
        if not (whole_numbers and index.ndim == 1 and index.shape == value.shape == step.shape):
            raise DataError(f"{path}: index, value and step of {stem!r} do not fit together.", "Export the run again.")
        if len(index) and (int(index[0]) < 0 or bool((index[1:] <= index[:-1]).any())):
            raise DataError(f"{path}: the indices of {stem!r} are not ascending.", "Export the run again.")
        found[stem] = Entries(index, value, step)
    return found


@torch.no_grad()
def apply_delta(model: nn.Module, delta: Delta, base_sha256: str) -> Applied:
    """Put a delta into a model of the base it was made from.

    Args:
        model: the base model, changed in place.
        delta: what to put in.
        base_sha256: of the weights the model was loaded from.

    Returns:
        What is needed to `revert`.

    Raises:
        ModelError: when the base is another one or a tensor does not fit; then nothing is changed.
    """
    if base_sha256 != delta.metadata["base_sha256"]:
        raise ModelError(
            f"This delta was made on base weights {delta.metadata['base_sha256'][:12]}, not {base_sha256[:12]}.",
            "Load the model it was trained from.",
        )
    parameters = dict(model.named_parameters())
    _check_fit(parameters, delta)
    applied = Applied()
    for name, entries in delta.entries.items():
        parameter = parameters[name]
        index = entries.index.long().to(parameter.device)
        flat = parameter.view(-1)
        applied._undo.append((parameter, index, flat[index].clone()))
        flat.index_copy_(0, index, entries.value.to(parameter))
    for name, tensor in delta.head.items():
        applied._undo.append((parameters[name], None, parameters[name].clone()))
        parameters[name].copy_(tensor)
    return applied


def _check_fit(parameters: dict[str, nn.Parameter], delta: Delta) -> None:
    unknown = [name for name in (*delta.entries, *delta.head) if name not in parameters]
    if unknown:
        raise ModelError(f"The model has no tensor {unknown[0]!r}, which the delta changes.", "Load its own base.")
    for name, entries in delta.entries.items():
        size = parameters[name].numel()
        if len(entries.index) and int(entries.index[-1]) >= size:
            raise ModelError(f"The delta changes entry {int(entries.index[-1]):,} of {name!r}, which has {size:,}.")
        if entries.value.dtype != parameters[name].dtype:
            raise ModelError(
                f"The delta holds {name!r} in {entries.value.dtype}, the model in {parameters[name].dtype}.",
                "Load the model in the precision it was trained in.",
            )
    for name, tensor in delta.head.items():
        own = tuple(parameters[name].shape)
        if tuple(tensor.shape) != own:
            raise ModelError(
                f"The delta's head {name!r} has shape {tuple(tensor.shape)}, the model's {own}.",
                "Load the model with the same labels.",
            )
