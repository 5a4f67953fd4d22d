"""Which queued run comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from engine.store.run_row import RunRow


def device_of(slot: str) -> str:
    """The device that a slot offers: ``cpu`` for all CPU slots, ``cuda:N`` for itself."""
    return "cpu" if slot.startswith("cpu") else slot


def fits(row: RunRow, slot: str) -> bool:
    """Whether a run's resolved device is the slot's."""
    device = "cuda:0" if row.device == "cuda" else row.device
    return device == device_of(slot)


def next_run(
    queued: Sequence[RunRow], active: Iterable[RunRow], last_turn: Mapping[str, float], slot: str
) -> RunRow | None:
    """The run that a free slot takes, or None.

    The highest priority first; then whoever has fewest runs going; then whoever waited longest
    for a turn; and of one owner's runs the oldest. So one who queues forty cannot hold up the rest.

    Args:
        queued: waiting runs.
        active: running runs.
        last_turn: when each owner last got a slot, seconds since 1970.
        slot: the free slot.
    """
    going = Counter(row.owner for row in active)
    fitting = [row for row in queued if fits(row, slot)]
    return min(
        fitting,
        key=lambda row: (-row.priority, going[row.owner], last_turn.get(row.owner, 0.0), row.created, row.id),
        default=None,
    )
