"""Where the lab keeps its files and what it refuses: the only place that reads the environment."""

from __future__ import annotations

import math
import os
from pathlib import Path

from engine.errors import PathRefused, SpecError, StoreError

UPLOAD_BYTES = 64 * 2**20
UPLOAD_ROWS = 200_000
PROJECT = Path(__file__).resolve().parent.parent
ASSETS = PROJECT / "assets"


THREADS = {"TOKENIZERS_PARALLELISM": "false"}
"""Environment of every process that computes; read when torch is first imported."""
# An idle thread that spins takes the core from whoever else has work: on two cores beside a browser
# or a second run, steps took three times as long. Training adapts to that by itself.
QUIET_THREADS = {**THREADS, "OMP_WAIT_POLICY": "PASSIVE"}
"""The same for processes that work beside others all the time."""


def home() -> Path:
    """The folder of the store: ``PEFTSCOPE_HOME``, or ``~/.peftscope``.

    Raises:
        StoreError: when it is a file, or lies below one.
    """
    folder = Path(os.environ.get("PEFTSCOPE_HOME") or Path.home() / ".peftscope").expanduser()
    found = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if found is not None and not found.is_dir():
        raise StoreError(
            f"The store cannot be in {folder}: {found} is a file.", "Set PEFTSCOPE_HOME to a folder, or unset it."
        )
    return folder


def cpu_slots() -> int:
    """How many runs may use the CPU at once: ``PEFTSCOPE_CPU_SLOTS``, by default 1."""
    return max(1, int(_number("PEFTSCOPE_CPU_SLOTS", 1)))


def packs() -> bool:
    """Whether runs share a GPU by default where they can: ``PEFTSCOPE_PACK``, set to 1 for a class; by default not."""
    return _number("PEFTSCOPE_PACK", 0) > 0


def idle_minutes() -> float:
    """How long the engine stays without work: ``PEFTSCOPE_IDLE_MINUTES``, by default 30."""
    return _number("PEFTSCOPE_IDLE_MINUTES", 30)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"{name} is {text!r}, which is not a number.", f"Unset it for {default}.")
    return value


def roots() -> tuple[Path, ...]:
    """Folders below which files and models may be read.

    ``PEFTSCOPE_ROOTS`` holds them, separated as in ``PATH``; by default the folder the
    engine was started from, the user's home and the store's uploads.
    """
    given = os.environ.get("PEFTSCOPE_ROOTS")
    chosen = [Path(part) for part in given.split(os.pathsep) if part] if given else [Path.cwd(), Path.home()]
    return tuple(path.expanduser().resolve() for path in [*chosen, home() / "uploads", ASSETS])


def allowed_path(text: str | Path) -> Path:
    """Resolve a path and check that it lies below one of the roots.

    Raises:
        PathRefused: when it does not, after following links, or cannot be a path at all.
    """
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, a circle of links, a zero byte
        raise PathRefused(f"{str(text)!r} cannot be a path: {str(error).rstrip('.')}.", "Check its spelling.") from None
    if not any(path == root or root in path.parents for root in roots()):
        listed = ", ".join(str(root) for root in roots())
        raise PathRefused(
            f"{path} is outside the folders this lab may read.",
            f"Put it below one of: {listed}; or add its folder to PEFTSCOPE_ROOTS.",
        )
    return path
