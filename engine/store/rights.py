"""Who may do what to a run. An owner is an opaque string: a browser's, or this machine's own user."""

from __future__ import annotations

from engine.errors import NotAllowed
from engine.store.run_row import RunRow

MACHINE = "machine"


def may_stop(row: RunRow, asker: str) -> bool:
    """Whether somebody may stop, resume or delete a run: its owner, or the machine's own user."""
    return asker in (row.owner, MACHINE)


def refuse_strangers(row: RunRow, asker: str, deed: str) -> None:
    """Check `may_stop`.

    Raises:
        NotAllowed: when the asker is neither.
    """
    if not may_stop(row, asker):
        raise NotAllowed(
            f"Run {row.id} was started by somebody else.",
            f"Only whoever started it, or the user of this machine at its command line, may {deed} it.",
        )
