"""How a run is divided by methods that do one thing first and another afterwards."""

from __future__ import annotations


def first_phase(share: float, steps: int) -> int:
    """Steps of the first phase: its share of all, at least one."""
    return max(1, round(share * steps))
