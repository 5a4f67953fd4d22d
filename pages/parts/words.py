"""Numbers as a reader wants them: counts with separators, sizes, durations, and what is only estimated."""

from __future__ import annotations

import time

from engine.store.run_row import RunRow


def count(number: float) -> str:
    """26112 as ``26,112``."""
    return f"{number:,.0f}"


def number(amount: int, thing: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{amount:,} {thing}" if amount == 1 else f"{amount:,} {thing}s"


def size(number: float) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:,.0f} {unit}" if number >= 100 or unit == "B" else f"{number:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds in words that are as exact as anyone needs."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def share(part: float, whole: float) -> str:
    """A part as a percentage of the whole, with three digits."""
    return f"{100 * part / whole:.3g} %"


def points(value: float) -> str:
    """An accuracy as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def with_interval(value: float, ends: list[float] | None) -> str:
    """An accuracy with its interval."""
    return f"{points(value)} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else points(value)


def ago(moment: float) -> str:
    """How long ago something was."""
    seconds = max(0.0, time.time() - moment)
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 86_400:
        return f"{seconds / 3600:.0f} h ago"
    return time.strftime("%d %b %Y", time.localtime(moment))


def params_of(row: RunRow) -> dict[str, int]:
    """Parameters of a run: as counted at its end where there is one, else as planned."""
    found: dict[str, int] = (row.summary or {}).get("params") or row.plan["params"]
    return found


def part(curve: dict[str, int] | None) -> str:
    """On which validation examples a curve was measured: ``256 of 816``; empty where all, or not on record."""
    return f"{curve['items']:,} of {curve['of']:,}" if curve and curve["items"] < curve["of"] else ""


def plain(text: str) -> str:
    """Text for a place that reads Markdown, with every mark of Markdown escaped."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>()#+-.!|~:$&" else sign for sign in text)
