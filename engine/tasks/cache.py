"""Datasets already read and split, kept below the store so that the next load takes a moment.

A file is a plain ``.npz``: all texts in one UTF-8 block with their offsets, labels, and the
rest as JSON. A cache that is damaged or cannot be written costs time, never the data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from engine import settings
from engine.tasks.dataset import SPLITS, Dataset, Split, SplitName


def cache_key(*parts: object) -> str:
    """A file name for what a dataset was made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def read_cached(key: str) -> Dataset | None:
    """The dataset stored under a key; None when there is none that can be read."""
    try:
        with np.load(_path(key), allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(arrays["about"].tobytes())
        splits: dict[SplitName, Split] = {name: _unpack(name, arrays) for name in SPLITS}
        return Dataset(
            id=about["id"],
            title=about["title"],
            labels=tuple(about["labels"]),
            length=about["length"],
            splits=splits,
            sha256=about["sha256"],
            provenance=about["provenance"],
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_cached(key: str, dataset: Dataset) -> None:
    """Store a dataset under a key; a disk that refuses is ignored."""
    about = {
        "id": dataset.id,
        "title": dataset.title,
        "labels": dataset.labels,
        "length": dataset.length,
        "sha256": dataset.sha256,
        "provenance": dict(dataset.provenance),
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    for name in SPLITS:
        arrays |= _pack(name, dataset.splits[name])
    path = _path(key)
    temporary = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return settings.home() / "cache" / "datasets" / f"{key}.npz"


def _pack(name: str, split: Split) -> dict[str, np.ndarray]:
    encoded = [text.encode() for text in (*split.texts, *(split.pairs or ()))]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    block = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return {f"{name}/text": block, f"{name}/offsets": offsets, f"{name}/labels": split.labels}


def _unpack(name: str, arrays: dict[str, np.ndarray]) -> Split:
    block, offsets = arrays[f"{name}/text"].tobytes(), arrays[f"{name}/offsets"].tolist()
    texts = [block[start:stop].decode() for start, stop in itertools.pairwise(offsets)]
    labels = arrays[f"{name}/labels"]
    rows = len(labels)
    return Split(texts[:rows], texts[rows:] if len(texts) > rows else None, labels)
