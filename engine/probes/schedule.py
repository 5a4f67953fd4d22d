"""When frames are taken, and which of them can afford the costly probes. Plain arithmetic, no torch."""

from __future__ import annotations

FRAMES = 100
"""Frames of a run of that many steps or more; a shorter run has one for each step."""
SHARED_FRAMES = 60
"""The same where several runs train together."""
SHARE = 0.03
"""Largest share of the training time that all probes together may cost ..."""
FLOOR_SECONDS = 0.25
"""... or this many seconds, where the share is less."""


def frame_steps(steps: int, frames: int = FRAMES) -> tuple[int, ...]:
    """Numbers of steps done at which frames are taken: evenly spaced, from 0 to `steps` inclusive.

    Every step of a run of fewer than `frames` steps, else `frames` + 1 of them.
    """
    if steps <= frames:
        return tuple(range(steps + 1))
    return tuple(round(steps * k / frames) for k in range(frames + 1))


class FrameSchedule:
    """Decides, step by step, which probes run.

    Cheap probes (counts, ranks, scalars) run at every frame. A costly one (change of every matrix,
    gradients of all weights) runs at its first and at the last frame, and between them whenever the
    time spent on all probes, with its own last cost, stays under an allowance that grows evenly over
    the run. A run too short to afford more thus ends with a few such frames, spread over its length.

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
        self._costs: dict[str, float] = {}

    def share_with(self, company: int) -> None:
        """So many runs train together, and their probes take turns in the same time."""
        self._share /= company
        self._due = frozenset(frame_steps(self.steps, SHARED_FRAMES))

    def due(self, done: int) -> bool:
        """Whether a frame is taken after `done` steps."""
        return done in self._due

    def affords(self, probe: str, done: int, trained: float) -> bool:
        """Whether a costly probe runs in the frame after `done` steps.

        Args:
            probe: its name.
            done: steps done.
            trained: seconds of training so far, probes apart.
        """
        if probe not in self._costs or done == self.steps:
            return True
        # Beside its own cost, those of all in the last frame are set aside. The allowance grows with the run,
        # so that the frames are spread over it, and never passes the larger of share and floor.
        allowance = max(self._floor * done / self.steps, self._share * trained)
        return self.spent + self._costs[probe] + sum(self._costs.values()) <= allowance

    def spend(self, seconds: float, probe: str = "") -> None:
        """Book what probes have just cost, with the name of a costly one."""
        self.spent += seconds
        if probe:
            self._costs[probe] = seconds
