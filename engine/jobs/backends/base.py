"""The four verbs of a backend; the queue, stops and recovery are written once above them."""

from __future__ import annotations

from typing import Protocol

from engine.jobs.process import Identity


class Backend(Protocol):
    """Starts and ends workers.

    A worker serves one slot, takes the runs assigned to its name from the queue, and is
    found again by its identity, also by another engine than the one that started it.
    """

    def capacity(self) -> list[str] | None:
        """The slots of this place, preferred ones first; None while they are being found out."""

    def launch(self, slot: str, name: str, revision: str) -> Identity:
        """Start a worker on a slot."""

    def alive(self, identity: Identity) -> bool:
        """Whether a worker still runs."""

    def stop(self, identity: Identity, *, hard: bool) -> None:
        """Ask a worker to end, or end it and all that it started."""
