"""What a run asks between two steps, answered from its row in the queue."""

from __future__ import annotations

import time
from typing import Literal

from engine.store.runs import Runs


class RowControl:
    """Implements `engine.events.Control`; looks at the row at most every ``every`` seconds."""

    def __init__(self, runs: Runs, run_id: str, every: float = 0.1) -> None:
        self._runs = runs
        self._run_id = run_id
        self._every = every
        self._looked = float("-inf")
        self._found: Literal["keep", "discard"] | None = None

    def stop_requested(self) -> Literal["keep", "discard"] | None:
        """Whether, and how, the run should end now."""
        now = time.monotonic()
        if now - self._looked >= self._every:
            self._looked = now
            self._found = self._runs.stop_request(self._run_id)
        return self._found
