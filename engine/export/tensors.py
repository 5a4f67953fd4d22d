"""What cannot be merged, as one file: the tensors that a method has added and trained; and back around a base model.

A safetensors file with each tensor under its name in the attached model, the task head's as
``head.<name>``, and with text metadata: format version, the method with its settings as JSON,
model, run, spec hash and the sha256 of the base weights. Imports torch when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import DataError, ModelError
from engine.export.finished import Finished, chain_of
from engine.methods.contract import Context
from engine.methods.registry import config_of, method_named
from engine.models.mapping import architecture_from_names
from engine.spec import MethodChoice
from engine.training.result_file import HEAD

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = "peftscope-tensors/1"


def write_tensors(finished: Finished, target: Path) -> None:
    """One safetensors file with what the innermost method has added and trained, and the head."""
    from safetensors.torch import save_file

    from engine.export.rebuild import own_tensors
    from engine.training.result_file import read_result

    choices, result = chain_of(finished.spec.method), read_result(finished.folder.result)
    tensors = own_tensors(result, len(choices) - 1)
    metadata = {
        "format": FORMAT,
        "method": choices[-1].model_dump_json(),
        "model": finished.spec.model,
        "run": finished.row.id,
        "spec_hash": finished.row.spec_hash,
        "base_sha256": finished.base_sha256,
    }
    save_file({**tensors, **{HEAD + name: tensor for name, tensor in result.head.items()}}, target, metadata)


def put_in(model: Any, path: str | Path, base_sha256: str) -> nn.Module:
    """Put what a file holds around a base model, which then answers as the run's did.

    Args:
        model: a classifier of the base weights, from `AutoModelForSequenceClassification`; changed in place.
        path: the file.
        base_sha256: of the weights that the model was loaded from.

    Raises:
        DataError: when it is no such file.
        ModelError: when the base is another one, or a tensor does not fit; then nothing is changed.
    """
    import torch

    tensors, metadata = _read(path)
    if metadata["base_sha256"] != base_sha256:
        raise ModelError(
            f"{path} was trained on base weights {metadata['base_sha256'][:12]}, not {base_sha256[:12]}.",
            "Load the model it was trained from.",
        )
    choice = MethodChoice.model_validate_json(metadata["method"])
    cls, config = method_named(choice.name), config_of(choice)
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    architecture = architecture_from_names(model.config.to_dict(), shapes)
    rows = cls.trainables(architecture, config)
    _check_fit(
        {row.name: row.shape for row in rows} | {HEAD + row.name: row.shape for row in architecture.head}, tensors
    )
    # Nothing is trained: of the context only the map matters.
    context = Context(
        architecture, steps=1, init_seed=0, method_seed=0, device=str(model.device), weight_decay=0.0, clip=1.0
    )
    method = cls(config, context)
    attached = method.attach(model)
    method.install({row.name: tensors[row.name] for row in rows})
    with torch.no_grad():
        for row in architecture.head:
            attached.get_parameter(row.name).copy_(tensors[HEAD + row.name])
    return attached.eval()


def _read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"Cannot read {path} as safetensors: {error}.", "Export the run again.") from None
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} has format {metadata.get('format')!r}, not {FORMAT!r}.", "Export with `--as tensors`.")
    return tensors, metadata


def _check_fit(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, torch.Tensor]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        here, there = found.get(name, "none"), wanted.get(name, "none")
        if here != there:
            raise ModelError(
                f"{name!r} has shape {here} in the file and {there} in the model.",
                "Load the model it was trained from, with the same labels.",
            )
