"""The shared recipe: schedule, clipping, divergence."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch
from torch import nn

from engine.errors import Diverged
from engine.plan import curve_points
from engine.training.recipe import RECENT, DivergenceGuard, clip, lr_factor


def test_the_schedule_rises_linearly_then_falls_and_never_is_zero() -> None:
    factors = [lr_factor(step, 100, 0.06) for step in range(100)]
    assert factors[:6] == pytest.approx([k / 6 for k in range(1, 7)])
    assert max(factors) == 1.0
    assert factors[6] == pytest.approx(94 / 95)
    assert factors[-1] == pytest.approx(1 / 95)
    assert all(a > b for a, b in itertools.pairwise(factors[6:]))


def test_without_warm_up_the_first_step_is_near_the_peak() -> None:
    assert lr_factor(0, 10, 0.0) == pytest.approx(10 / 11)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [1]), (3, [1, 2, 3]), (20, [5, 10, 15, 20]), (300, list(range(30, 301, 30)))]
)
def test_the_curve_is_measured_evenly_and_at_the_end(steps: int, expected: list[int]) -> None:
    assert curve_points(steps) == expected


def test_clipping_equals_pytorchs_own() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(3, 5))]
    theirs = [nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(3, 5))]
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = torch.randn(mine.shape)
        other.grad = mine.grad.clone()
    expected = nn.utils.clip_grad_norm_(theirs, 1.0)
    norm, scale = clip(ours, None, 1.0)
    assert norm == expected
    assert scale < 1
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_clipping_counts_gradients_that_a_method_consumed() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([3.0])
    norm, scale = clip([parameter], torch.tensor(16.0), 1.0)
    assert float(norm) == pytest.approx(5.0)
    assert float(parameter.grad) == pytest.approx(3.0 * float(scale))


def test_a_loss_that_is_not_finite_is_divergence() -> None:
    guard = DivergenceGuard(classes=2)
    guard.see(1, 0.7)
    with pytest.raises(Diverged, match="step 2 is nan"):
        guard.see(2, math.nan)


def test_huge_finite_losses_are_divergence_but_a_spike_is_not() -> None:
    guard = DivergenceGuard(classes=2)
    guard.see(1, 0.7)
    guard.see(2, 30.0)
    for step in range(3, 3 + RECENT):
        guard.see(step, 0.7)
    for step in range(100, 100 + RECENT // 10):
        guard.see(step, 20.0)
    with pytest.raises(Diverged, match="Lower the learning rate"):
        guard.see(102, 50.0)


def test_a_short_run_that_began_badly_has_not_diverged() -> None:
    guard = DivergenceGuard(2)
    guard.see_untrained(12.8)
    guard.see(0, 0.1)
    again = DivergenceGuard(2)
    again.restore(guard.state())
    again.see_last(1, 12.6)
    with pytest.raises(Diverged, match=r"above 38\.4"):
        again.see_last(1, 38.5)


@pytest.mark.parametrize("losses", [1, RECENT - 1, RECENT])
def test_a_run_too_short_for_a_mean_is_judged_by_its_last_weights(losses: int) -> None:
    guard = DivergenceGuard(classes=2)
    for step in range(losses):
        guard.see(step + 1, 0.7)
    guard.see_last(losses, 3.4)
    with pytest.raises(Diverged, match=rf"step {losses}") if losses < RECENT else contextlib.nullcontext():
        guard.see_last(losses, 3.5)


def test_a_restored_guard_judges_as_the_first_would() -> None:
    guard = DivergenceGuard(classes=2)
    for step in range(RECENT - 1):
        guard.see(step, 3.5)
    again = DivergenceGuard(classes=2)
    again.restore(guard.state())
    for judge in (guard, again):
        with pytest.raises(Diverged, match="mean of the last"):
            judge.see(RECENT, 1000.0)
