"""Reads the names and shapes of a loaded classifier into the architecture map. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import ModelError
from engine.models.architecture import OFFSET_POSITIONS, Architecture, Parameter, Role
from engine.models.families import Family, family_of

_HEADS = ("num_attention_heads", "n_heads", "n_head")
Shapes = Sequence[tuple[str, tuple[int, ...]]]


def architecture_from_names(config: Mapping[str, Any], shapes: Shapes) -> Architecture:
    """The architecture map of a classifier.

    Args:
        config: its configuration as plain data (``config.json``, or ``model.config.to_dict()``).
        shapes: names and shapes in `named_parameters()` order of the loaded
            `AutoModelForSequenceClassification`.

    Raises:
        ModelError: for an unsupported model type, or names that are not those of its classifier.
    """
    family = family_of(config.get("model_type"))
    layers = 1 + max((layer for name, _ in shapes if (layer := family.split(name)[0]) is not None), default=-1)
    rows = tuple(_row(family, name, tuple(shape), layers) for name, shape in shapes)
    roles = {row.role for row in rows}
    if layers == 0 or "token" not in roles or "head" not in roles:
        raise ModelError(
            f"These are not the parameters of a {config['model_type']} classifier: no blocks, embeddings or head.",
            "Load the model with AutoModelForSequenceClassification.",
        )
    pad = config.get("pad_token_id")
    return Architecture(
        model_type=str(config["model_type"]),
        kind=family.kind,
        layers=layers,
        hidden=_hidden(rows),
        heads=next((int(config[key]) for key in _HEADS if isinstance(config.get(key), int)), 1),
        parameters=rows,
        rotary=family.rotary,
        relative_queries="p2c" in (config.get("pos_att_type") or ()),
        pad_token=pad if isinstance(pad, int) and pad >= 0 else None,
        max_positions=_max_positions(config, rows, pad),
    )


def _row(family: Family, name: str, shape: tuple[int, ...], layers: int) -> Parameter:
    role = family.role(name)
    block, _ = family.split(name)
    part = "bias" if name.rpartition(".")[2] in ("bias", "beta") else "weight"
    transposed = family.transposed and block is not None and len(shape) == 2
    return Parameter(name, shape, _layer(block, role, layers), role, part, transposed=transposed)


def _layer(block: int | None, role: Role, layers: int) -> int:
    if block is not None:
        return block
    return layers if role in ("norm_out", "pooler", "head") else -1


def _hidden(rows: Sequence[Parameter]) -> int:
    """Width between the blocks: the size of a block's norm (embeddings may be narrower)."""
    return next(row.shape[0] for row in rows if row.role in ("norm_1", "norm_2"))


def _max_positions(config: Mapping[str, Any], rows: Sequence[Parameter], pad: object) -> int:
    """Longest input: rows of the position table less the reserved ones, else what the configuration says."""
    table = next((row.shape[0] for row in rows if row.role == "position"), None)
    if table is None:
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 512)
    reserved = pad + 1 if config["model_type"] in OFFSET_POSITIONS and isinstance(pad, int) else 0
    return table - reserved
