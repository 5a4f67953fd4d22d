"""Reads what a model folder holds, tensor names and shapes included, without loading any tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100 * 2**20  # the format's own limit
_FLOATS = ("F32", "F16", "BF16", "F64")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")

Header = dict[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Raises:
        ModelError: when the file is missing, unreadable, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}.", "Save the model with save_pretrained.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Save or download the model again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object.", "Save or download the model again.")
    return data


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or all shards of its index.

    Raises:
        ModelError: when there are none, only pickles, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder)
    if any(found for pattern in _PICKLES for found in folder.glob(pattern)):
        raise ModelError(
            f"{folder} holds its weights as pickles, which can run code when opened and are never read here.",
            "Convert them: model.save_pretrained(folder) writes safetensors.",
        )
    raise ModelError(f"{folder} has no {SINGLE}.", "Save the model with save_pretrained.")


def _shards(folder: Path) -> list[Path]:
    mapping = read_json(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{folder / INDEX} lists no weights.", "Save or download the model again.")
    names = sorted({str(name) for name in mapping.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX} names {name!r}, which is not a safetensors file beside it.")
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, a part of its weights.", "Save or download the model again.")
    return [folder / name for name in names]


def read_header(files: Iterable[Path]) -> Header:
    """Names and shapes of all tensors in some safetensors files, in the files' order.

    Raises:
        ModelError: for a file that is truncated, not safetensors, or holds quantised weights.
    """
    shapes: Header = {}
    for path in files:
        for name, entry in _header_of(path).items():
            if name != "__metadata__":
                _check_numbers(path, name, entry.get("dtype"))
                shapes[name] = tuple(int(size) for size in entry["shape"])
    return shapes


def _check_numbers(path: Path, name: str, kind: object) -> None:
    """Refuse weights in whole or eight-bit numbers: without the scales that belong to them they mean nothing."""
    if name.endswith("weight") and kind not in _FLOATS:
        raise ModelError(
            f"{path} holds {name} as {kind}: quantised weights are not read here.",
            f"Give the model in full or half precision ({', '.join(_FLOATS)}).",
        )


def _header_of(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        end = max(int(e["data_offsets"][1]) for name, e in header.items() if name != "__metadata__")
        if 8 + length + end != size:
            raise ValueError(f"it has {size:,} bytes, its header promises {8 + length + end:,}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {error}.", "Save or download the model again."
        ) from None
    return header
