"""Exports of what was trained: sparse delta, peft adapter, merged model. Imports torch when called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.export.finished import Finished

if TYPE_CHECKING:
    from engine.training.result_file import Result

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
)


def write_delta(finished: Finished, target: Path) -> None:
    """One safetensors file with the changed entries, the head, and what they belong to."""
    from engine.training.result_file import read_result

    delta_to(finished, read_result(finished.folder.result), target)


def delta_to(finished: Finished, result: Result, target: Path) -> None:
    """As `write_delta`, for a result of the run that may hold fewer entries."""
    from engine.export.rebuild import own_tensors
    from engine.sparse import delta

    metadata = {
        "method": finished.spec.method.name,
        "eligibility": eligibility(finished),
        "spec_hash": finished.row.spec_hash,
        "base_sha256": finished.base_sha256,
        "model": finished.spec.model,
        "run": finished.row.id,
    }
    delta.write_delta(target, delta.delta_of(own_tensors(result, 0), result.head, metadata))


def eligibility(finished: Finished) -> str:
    """Which entries could be selected, as JSON: per tensor how many, and the setting that ruled some out."""
    layout = finished.reader.meta("layout", [])
    return json.dumps(
        {
            "exclude": finished.spec.method.settings.get("exclude", []),
            "eligible": {row["name"]: row["eligible"] for row in layout},
        },
        sort_keys=True,
    )


def write_peft(finished: Finished, folder: Path) -> None:
    """The folder that `PeftModel.from_pretrained` loads, with the tokenizer beside it."""
    from engine.export.base import name_base
    from engine.export.rebuild import rebuild
    from engine.methods.contract import chain

    built = rebuild(finished)
    for part in chain(built.method):
        if "peft" in part.export_formats:
            part.save_peft(built.model, folder)
            title = part.title
            break
    name_base(folder, built.setting.source, title, finished.row.id, built.setting.dataset.labels)
    copy_tokenizer(built.setting.source.folder, folder)
    _write_card(finished, folder)


def write_merged(finished: Finished, folder: Path) -> None:
    """The whole model as a folder for `AutoModelForSequenceClassification.from_pretrained`."""
    from safetensors import SafetensorError

    from engine.errors import StoreError
    from engine.export.rebuild import merged, rebuild
    from engine.models.loading import without_progress_bars

    built = rebuild(finished)
    model: Any = merged(built)
    try:
        with without_progress_bars():
            model.save_pretrained(folder)
        copy_tokenizer(built.setting.source.folder, folder)
        _write_card(finished, folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The model cannot be written to {folder}: {error}.", "Free some disk space.") from None


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files of a model's folder into an export.

    Raises:
        EngineError: when it has none.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise EngineError(f"{source} has no tokenizer files.", "Restore the base model's folder.")
    for path in found:
        shutil.copyfile(path, folder / path.name)


def _write_card(finished: Finished, folder: Path) -> None:
    """What it is and where it comes from, beside the weights."""
    facts = {
        "run": finished.row.id,
        "spec": finished.spec.canonical(),
        "spec_hash": finished.row.spec_hash,
        "base_sha256": finished.base_sha256,
        "summary": finished.summary,
        "provenance": finished.reader.meta("provenance", {}),
    }
    (folder / "peftscope.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
