"""What every `auto` of a recipe means on this machine, for this model and dataset. Torch-free."""

from __future__ import annotations

from engine import settings
from engine.devices import cpu_threads, resolve_device
from engine.errors import SpecError
from engine.models.architecture import Architecture
from engine.models.families import Family
from engine.spec import TrainSpec
from engine.tasks.dataset import Dataset


def resolved_train(
    train: TrainSpec,
    rate: float,
    family: Family,
    architecture: Architecture,
    dataset: Dataset,
    *,
    drops: bool,
    captured: bool,
    packs: bool,
) -> TrainSpec:
    """The recipe without any `auto`; one without any stays as it is.

    Args:
        train: as asked for.
        rate: the method's default learning rate.
        family, architecture: of the model.
        dataset: decides the number of tokens.
        drops: whether the method itself has dropout.
        captured: whether any of its step can be a CUDA graph.
        packs: whether runs of it can share one pass.

    Raises:
        SpecError: for a device, precision, length or execution that cannot be had.
    """
    device = resolve_device(train.device)
    return train.model_copy(
        update={
            "lr": rate if train.lr == "auto" else train.lr,
            "device": device,
            "threads": cpu_threads() if train.threads == "auto" else train.threads,
            "precision": _precision(train.precision, device),
            "execution": _execution(train, device, family, drops=drops, captured=captured, packs=packs),
            "max_length": max_length(train, architecture, dataset),
        }
    )


def _precision(wanted: str, device: str) -> str:
    if wanted == "auto":
        return "fp32" if device == "cpu" else "tf32"
    if wanted == "tf32" and device == "cpu":
        raise SpecError("TF32 was asked for on the CPU, which has none.", "Use `precision: auto` or `fp32`.")
    return wanted


def _execution(train: TrainSpec, device: str, family: Family, *, drops: bool, captured: bool, packs: bool) -> str:
    """The fastest that can be had.

    Ragged batches draw no dropout: it draws one number per entry, and over tensors of another shape
    these would be others.
    """
    hindrances = {
        "padded": "",
        "ragged": "it is for the CPU"
        if device != "cpu"
        else "it cannot draw dropout as padded batches do"
        if train.dropout or drops
        else "this type of model cannot do it"
        if family.head_reads is None
        else "",
        "graph": "it is for a GPU"
        if device == "cpu"
        else "this method changes in mid-run what a graph would have recorded"
        if not captured
        else "this type of model moves data from the processor at every step"
        if not family.captured
        else "",
        "packed": "it is for a GPU"
        if device == "cpu"
        else "what this method trains cannot stand beside what other runs train"
        if not packs
        else "runs that share a pass cannot draw dropout as they would alone"
        if train.dropout or drops
        else "this type of model cannot do it"
        if family.head_reads is None
        else "",
    }
    if train.execution == "auto":
        fastest = ("packed", "graph", "ragged", "padded") if settings.packs() else ("graph", "ragged", "padded")
        return next(name for name in fastest if not hindrances[name])
    if hindrances[train.execution]:
        raise SpecError(
            f"{train.execution.capitalize()} execution was asked for, but {hindrances[train.execution]}.",
            "Use `execution: auto` or `padded`.",
        )
    return train.execution


def max_length(train: TrainSpec, architecture: Architecture, dataset: Dataset) -> int:
    """Tokens per example, special tokens included.

    Raises:
        SpecError: for more than the model has positions.
    """
    wanted, longest = train.max_length, architecture.max_positions
    length = dataset.default_max_length if wanted == "auto" else int(wanted)
    if length > longest and wanted != "auto":
        raise SpecError(f"`max_length` {length} is above the model's {longest} positions.", "Ask for fewer.")
    return min(length, longest)
