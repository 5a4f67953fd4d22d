"""Which queued run comes next."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from engine.methods.registry import method_named
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


LARGEST_COMPANY = 40
COMPANY_BYTES = 24 * 2**30
"""Runs that share a pass take at most so much memory by the estimates of their plans."""


def company_of(
    first: RunRow, queued: Sequence[RunRow], active: Iterable[RunRow], last_turn: Mapping[str, float], slot: str
) -> list[RunRow]:
    """The queued runs that share the pass of one that has its turn, in the order in which theirs would have come.

    A run that was lost once goes on alone: whatever took its worker may have been another's doing.
    """
    key = _pack_key(first)
    if key is None or first.losses:
        return []
    going, turns = [*active, first], dict(last_turn)
    room = COMPANY_BYTES - first.plan.get("memory_bytes", 0)
    waiting = [row for row in queued if row.id != first.id and not row.losses and _pack_key(row) == key]
    chosen: list[RunRow] = []
    while len(chosen) + 1 < LARGEST_COMPANY:
        row = next_run(waiting, going, turns, slot)
        if row is None or (room := room - row.plan.get("memory_bytes", 0)) < 0:
            break
        chosen.append(row)
        going.append(row)
        waiting.remove(row)
        turns[row.owner] = time.time()
    return chosen


def _pack_key(row: RunRow) -> str | None:
    """Equal for runs that can share a pass; None for those that share none."""
    train, method = row.spec["train"], row.spec["method"]
    if train.get("execution") != "packed":
        return None
    free = method_named(method["name"]).differs
    shared = row.spec | {
        "train": {key: value for key, value in train.items() if key not in _OF_ONE_RUN},
        "method": {key: value for key, value in method.items() if key not in free},
        "budget": None,
    }
    return json.dumps(shared, sort_keys=True)


_OF_ONE_RUN = ("seed", "seeds", "steps", "lr", "warmup")
"""What runs of one pass may differ in, beside the settings that their method names."""
