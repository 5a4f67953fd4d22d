"""The architecture map of a model on disk, from its configuration and its safetensors headers."""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import ModelError
from engine.models.architecture import Architecture
from engine.models.mapping import architecture_from_names
from engine.models.source import ModelSource


def architecture_of(source: ModelSource, labels: int) -> Architecture:
    """The architecture map of the classifier that `load_classifier` would build, from the files' headers.

    Raises:
        ModelError: for an unsupported type, or a checkpoint that lacks parts of its backbone.
    """
    shapes = [row for module in source.family.modules(_layers(source)) for row in _tensors(source, module, labels)]
    return architecture_from_names(source.config, shapes)


def missing_from(source: ModelSource) -> tuple[str, ...]:
    """Backbone tensors that the checkpoint lacks and that start from random values (a pooler), if any."""
    architecture = architecture_of(source, 2)
    return tuple(p.name for p in architecture.backbone if held_shape(source, p.module, p.part) is None)


def _layers(source: ModelSource) -> int:
    """Number of blocks: what the configuration says, else what the checkpoint holds."""
    for key in ("num_hidden_layers", "n_layers", "n_layer"):
        if isinstance(source.config.get(key), int):
            return int(source.config[key])
    return held_layers(source)


def held_layers(source: ModelSource) -> int:
    """Number of blocks in the checkpoint."""
    family = source.family
    blocks = (family.split(f"{family.prefix}.{name.removeprefix(family.prefix + '.')}")[0] for name in source.header)
    return 1 + max((block for block in blocks if block is not None), default=-1)


def _tensors(source: ModelSource, module: str, labels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one module's parameters in the loaded classifier."""
    family = source.family
    if module in dict(family.head):
        yield from _head_tensors(source, module, labels)
        return
    if not _is_used(source, module):
        return
    weight = held_shape(source, module, "weight")
    if weight is None:
        yield from _absent_tensors(source, module)
        return
    yield f"{module}.weight", weight
    bias = held_shape(source, module, "bias")
    if bias is not None:
        yield f"{module}.bias", bias


def held_shape(source: ModelSource, module: str, part: str) -> tuple[int, ...] | None:
    """Shape of a parameter in the checkpoint, under its full name, without the prefix, or by its old name."""
    old = {"weight": "gamma", "bias": "beta"}[part]
    for base in (module, module.removeprefix(source.family.prefix + ".")):
        for suffix in (part, old):
            if f"{base}.{suffix}" in source.header:
                return source.header[f"{base}.{suffix}"]
    return None


def _is_used(source: ModelSource, module: str) -> bool:
    """Whether the configured model builds a module that only some of its family have."""
    role, config = source.family.role(f"{module}.weight"), source.config
    if role == "position" and "deberta" in str(config["model_type"]):
        return bool(config.get("position_biased_input", True))
    if role == "type":
        return int(config.get("type_vocab_size", 2)) > 0
    optional = role in ("other", "distance") or (role == "norm_out" and "deberta" in str(config["model_type"]))
    return not optional or held_shape(source, module, "weight") is not None


def _absent_tensors(source: ModelSource, module: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A pooler may be absent and is then initialised; anything else absent means a damaged checkpoint."""
    if source.family.role(f"{module}.weight") != "pooler":
        raise ModelError(
            f"The weights in {source.folder} lack {module}.weight, so they are not a whole "
            f"{source.config['model_type']} model as its config.json describes it.",
            "Save or download the model again.",
        )
    width = _width(source)
    yield f"{module}.weight", (width, width)
    yield f"{module}.bias", (width,)


def _head_tensors(source: ModelSource, module: str, labels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = _width(source)
    rows = labels if module == source.family.output else width
    yield f"{module}.weight", (rows, width)
    if source.family.kind == "encoder":
        yield f"{module}.bias", (rows,)


def _width(source: ModelSource) -> int:
    for key in ("hidden_size", "dim", "n_embd"):
        if isinstance(source.config.get(key), int):
            return int(source.config[key])
    raise ModelError(f"{source.folder / 'config.json'} does not say the model's width.", "Save the model again.")
