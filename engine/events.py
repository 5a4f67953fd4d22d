"""What a run reports while it trains; the store keeps it, and nothing flows back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np

Phase = Literal["queued", "loading", "preparing", "scoring", "training", "evaluating", "finished"]
PHASES: tuple[Phase, ...] = ("queued", "loading", "preparing", "scoring", "training", "evaluating", "finished")
Level = Literal["info", "warning", "error"]


class Sink(Protocol):
    """Takes a run's events. The one writer of a run's file implements it."""

    def scalar(self, key: str, step: int, value: float) -> None:
        """One number of a series, for example ``("train/loss", 12, 0.61)``."""

    def frame(self, kind: str, step: int, arrays: Mapping[str, np.ndarray], keep: bool = False) -> None:
        """One picture's data: small named arrays. ``keep`` exempts it from thinning."""

    def note(self, level: Level, text: str, step: int | None = None) -> None:
        """A sentence for the user."""

    def meta(self, key: str, value: object) -> None:
        """One JSON value that describes the run, replacing an earlier one."""

    def phase(self, phase: Phase, done: int = 0, total: int = 0) -> None:
        """Where the run is; ``done`` of ``total`` within the phase."""

    def rewind(self, step: int) -> None:
        """Forget scalars and frames after step `step`: a resumed run writes them again."""

    def flush(self) -> None:
        """Make everything so far durable. Raises StoreError when the disk is full."""


class Control(Protocol):
    """What a run asks between two steps."""

    def stop_requested(self) -> Literal["keep", "discard"] | None:
        """Whether, and how, the run should end now."""
