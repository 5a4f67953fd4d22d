"""Where the lab keeps its files and what it refuses: the only place that reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import PathRefused

UPLOAD_BYTES = 64 * 2**20
UPLOAD_ROWS = 200_000
PROJECT = Path(__file__).resolve().parent.parent
ASSETS = PROJECT / "assets"


def home() -> Path:
    """The folder of the store: ``PEFTSCOPE_HOME``, or ``~/.peftscope``."""
    return Path(os.environ.get("PEFTSCOPE_HOME") or Path.home() / ".peftscope").expanduser()


def cpu_slots() -> int:
    """How many runs may use the CPU at once: ``PEFTSCOPE_CPU_SLOTS``, by default 1."""
    return max(1, int(os.environ.get("PEFTSCOPE_CPU_SLOTS") or 1))


def idle_minutes() -> float:
    """How long the engine stays without work: ``PEFTSCOPE_IDLE_MINUTES``, by default 30."""
    return float(os.environ.get("PEFTSCOPE_IDLE_MINUTES") or 30)


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
        PathRefused: when it does not, after following links.
    """
    path = Path(text).expanduser().resolve()
    if not any(path == root or root in path.parents for root in roots()):
        listed = ", ".join(str(root) for root in roots())
        raise PathRefused(
            f"{path} is outside the folders this lab may read.",
            f"Put it below one of: {listed}; or add its folder to PEFTSCOPE_ROOTS.",
        )
    return path
