"""A model's folder and what its files say, read without torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.models.families import FAMILIES, Family, family_of
from engine.models.header import Header, read_header, read_json, weight_files


@dataclass(frozen=True)
class ModelSource:
    """A model's folder, checked.

    Attributes:
        id: the reference it was asked for by.
        title: for people.
        folder: holds config.json, safetensors and tokenizer.json.
        sha256: of the weights; of the list of shards when there are several.
        licence: as stated by its publisher; empty when unknown.
        origin: where it comes from.
        url: where to read about it; empty for a folder.
        revision: the hub's commit, or the package and its version; empty for a folder.
    """

    id: str
    title: str
    folder: Path
    sha256: str
    licence: str
    origin: Literal["package", "folder", "hub", "assets"]
    url: str = ""
    revision: str = ""

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``, with the padding token that loading and padding use filled in.

        Raises:
            ModelError: when it is missing or malformed.
        """
        config = read_json(self.folder / "config.json")
        return {**config, "pad_token_id": _pad_token(self.folder, config)}

    @functools.cached_property
    def header(self) -> Header:
        """Names and shapes of the checkpoint's tensors."""
        return read_header(weight_files(self.folder))

    @property
    def family(self) -> Family:
        """The family's layout; ModelError when it is not supported."""
        return family_of(self.config.get("model_type"))


def _pad_token(folder: Path, config: dict[str, Any]) -> int | None:
    """The padding token: the configuration's, else the family's, else (decoders) the end token."""
    given = config.get("pad_token_id")
    if given is None and config.get("model_type") in FAMILIES:
        given = FAMILIES[config["model_type"]].pad_token
    if given is None:
        end = config.get("eos_token_id")
        given = end[0] if isinstance(end, list) and end else end
    return int(given) if isinstance(given, int) and given >= 0 else None
