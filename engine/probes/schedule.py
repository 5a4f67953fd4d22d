"""When frames are taken, and which of them can afford the costly probe. Plain arithmetic, no torch."""

from __future__ import annotations

FRAMES = 100
"""Frames of a run of that many steps or more; a shorter run has one for each step."""
SHARE = 0.03
"""Largest share of the training time that all probes together may cost ..."""
FLOOR_SECONDS = 0.25
"""... or this many seconds, where the share is less."""


def frame_steps(steps: int) -> tuple[int, ...]:
    """Numbers of steps done at which frames are taken: evenly spaced, from 0 to `steps` inclusive.

    Every step of a run of fewer than `FRAMES` steps, else `FRAMES` + 1 of them.
    """
    if steps <= FRAMES:
        return tuple(range(steps + 1))
    return tuple(round(steps * k / FRAMES) for k in range(FRAMES + 1))


class FrameSchedule:
    """Decides, step by step, which probes run.

    Cheap probes (counts, ranks, scalars) run at every frame. The costly one (change of every
    matrix) runs at the first and at the last frame, and between them whenever the time spent on
    all probes, with its own last cost, stays under an allowance that grows evenly over the run. A
    run too short to afford more thus ends with a few change frames, spread over its length.

    Args:
        steps: steps of the run.
        share, floor: the allowance; see `SHARE` and `FLOOR_SECONDS`.
    """

    def __init__(self, steps: int, share: float = SHARE, floor: float = FLOOR_SECONDS) -> None:
        self.steps = steps
        self.spent = 0.0
        """Seconds all probes have taken so far."""
        self._share = share
        self._floor = floor
        self._due = frozenset(frame_steps(steps))
        self._cost: float | None = None

    def due(self, done: int) -> bool:
        """Whether a frame is taken after `done` steps."""
        return done in self._due

    def affords_change(self, done: int, trained: float) -> bool:
        """Whether the costly probe runs in the frame after `done` steps.

        Args:
            done: steps done.
            trained: seconds of training so far, probes apart.
        """
        if self._cost is None or done == self.steps:
            return True
        # Twice the cost: the last frame's is set aside. The allowance grows with the run, so that
        # the frames are spread over it, and never passes the larger of share and floor.
        allowance = max(self._floor * done / self.steps, self._share * trained)
        return self.spent + 2 * self._cost <= allowance

    def spend(self, seconds: float, *, change: bool = False) -> None:
        """Book what probes have just cost; ``change`` when the costly one was the cause."""
        self.spent += seconds
        if change:
            self._cost = seconds
