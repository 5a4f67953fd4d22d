"""When frames are taken, and that probes stay within their allowance."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.probes.schedule import FrameSchedule, frame_steps


@pytest.mark.parametrize("steps", [1, 2, 59, 99, 100, 101, 120, 149, 150, 300, 700, 1_001, 1_000_000])
def test_frames_cover_the_run_from_first_to_last(steps):
    found = frame_steps(steps)
    assert found[0] == 0
    assert found[-1] == steps
    assert list(found) == sorted(set(found))
    assert len(found) == min(steps, 100) + 1
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert max(gaps) - min(gaps) <= 1


def played(steps: int, step_seconds: float, cheap: float, change: float) -> tuple[FrameSchedule, list[int], int]:
    """A whole run: the schedule, the steps with a change frame, and the number of frames."""
    schedule, with_change, frames = FrameSchedule(steps), [], 0
    for done in range(steps + 1):
        if not schedule.due(done):
            continue
        frames += 1
        schedule.spend(cheap)
        if schedule.affords("change", done, done * step_seconds):
            with_change.append(done)
            schedule.spend(change, "change")
    return schedule, with_change, frames


@pytest.mark.parametrize("steps", [60, 300, 5_000])
@pytest.mark.parametrize("step_seconds", [0.002, 0.05, 0.6])
@pytest.mark.parametrize("change", [0.0005, 0.02, 0.1])
def test_probes_stay_within_their_allowance(steps, step_seconds, change):
    schedule, with_change, frames = played(steps, step_seconds, 0.0002, change)
    assert schedule.spent <= max(0.03 * steps * step_seconds, 0.25) + 1e-9
    assert frames >= 60
    assert with_change[0] == 0
    assert with_change[-1] == steps


def test_a_cheap_probe_runs_at_every_frame_but_the_first_few():
    _, with_change, frames = played(300, 0.1, 0.0002, 0.001)
    assert len(with_change) >= frames - 3


def test_a_costly_probe_is_spread_over_the_run():
    _, with_change, _ = played(300, 0.05, 0.0002, 0.03)  # allowance 0.45 s
    assert 10 <= len(with_change) <= 15
    assert sum(step <= 150 for step in with_change) == pytest.approx(len(with_change) / 2, abs=2)


def test_a_probe_dearer_than_the_allowance_runs_at_the_ends_alone():
    _, with_change, frames = played(100, 0.01, 0.0002, 1.0)
    assert with_change == [0, 100]
    assert frames == 101
