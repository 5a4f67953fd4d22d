"""SHA-256 of large files, remembered by (path, size, time of change) so that it is computed once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from engine import settings


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, from memory when the file has not changed since.

    Raises:
        OSError: when the file cannot be read.
    """
    stat = path.stat()
    key = str(path.resolve())
    known = _remembered()
    entry = known.get(key)
    if isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
        return str(entry[2])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(known | {key: [stat.st_size, stat.st_mtime_ns, digest]})
    return digest


def files_sha256(paths: Sequence[Path]) -> str:
    """One hash for several files: that of the file when it is one, else of the list of names and hashes."""
    if len(paths) == 1:
        return file_sha256(paths[0])
    listing = "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()


def _memory() -> Path:
    return settings.home() / "cache" / "checksums.json"


def _remembered() -> dict[str, object]:
    try:
        data = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _remember(known: dict[str, object]) -> None:
    """Write the memory whole. Of two processes the later wins, and the other's file is hashed once more."""
    path = _memory()
    temporary = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk costs the memory, not the answer
