"""What every `auto` of a recipe means on this machine, for this model and dataset. Torch-free."""

from __future__ import annotations

from engine.devices import cpu_threads, resolve_device
from engine.errors import SpecError
from engine.models.architecture import Architecture
from engine.models.families import Family
from engine.spec import TrainSpec
from engine.tasks.dataset import Dataset


def resolved_train(
    train: TrainSpec, rate: float, family: Family, architecture: Architecture, dataset: Dataset, *, drops: bool
) -> TrainSpec:
    """The recipe without any `auto`; one without any stays as it is.

    Args:
        train: as asked for.
        rate: the method's default learning rate.
        family, architecture: of the model.
        dataset: decides the number of tokens.
        drops: whether the method itself has dropout.

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
            "execution": _execution(train, device, family, drops),
            "max_length": max_length(train, architecture, dataset),
        }
    )


def _precision(wanted: str, device: str) -> str:
    if wanted == "auto":
        return "fp32" if device == "cpu" else "tf32"
    if wanted == "tf32" and device == "cpu":
        raise SpecError("TF32 was asked for on the CPU, which has none.", "Use `precision: auto` or `fp32`.")
    return wanted


def _execution(train: TrainSpec, device: str, family: Family, drops: bool) -> str:
    """Ragged wherever it can be: on the CPU, without dropout, and where tokens may stand end to end.

    Dropout draws one number per entry: over tensors of another shape these would be others.
    """
    hindrance = (
        "it is for the CPU"
        if device != "cpu"
        else "it cannot draw dropout as padded batches do"
        if train.dropout or drops
        else "this type of model cannot do it"
        if family.head_reads is None
        else ""
    )
    if train.execution == "auto":
        return "padded" if hindrance else "ragged"
    if train.execution == "ragged" and hindrance:
        raise SpecError(f"Ragged execution was asked for, but {hindrance}.", "Use `execution: auto` or `padded`.")
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
