"""Where a run's numbers come from: versions, hashes, hardware and the code itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from engine.settings import PROJECT

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "pandas", "datasets")


def collect(weights: Mapping[str, Any], data: Mapping[str, Any], device: str = "") -> dict[str, Any]:
    """Everything a number depends on besides the spec, as JSON data.

    Args:
        weights: the model's id and the sha256 of its weights.
        data: the dataset's id, sha256 and how it was split.
        device: the accelerator's name, where one is used.
    """
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(logical=False),
            "threads": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "device": device or "cpu",
        },
        "code": {"git": git_revision(PROJECT), "sha256": code_hash(PROJECT / "engine")},
        "weights": dict(weights),
        "data": dict(data),
    }


def write_provenance(path: Path, provenance: Mapping[str, Any]) -> None:
    """Write it beside the run, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(provenance, indent=2), encoding="utf-8")
    part.replace(path)


def package_versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on; absent ones are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def git_revision(folder: Path) -> str | None:
    """The commit that a folder is at, with ``+`` when files differ from it; None outside git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" if changed else head


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def code_hash(folder: Path) -> str:
    """Hash of all Python files below a folder, by name and content; tells whether code has changed."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
