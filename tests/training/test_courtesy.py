"""Waiting threads are hushed beside others and freed when alone."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.training import courtesy
from engine.training.courtesy import Courtesy


def parked() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hush" and thread.is_alive()]


@pytest.fixture
def two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_it_follows_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used = [0.0], [0.0]
    monkeypatch.setattr(courtesy.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Courtesy, "_usage", lambda self: used[0])
    polite = Courtesy()
    for seconds, cores, hushed in ((1, 0.1, False), (1, 0.9, True), (0.1, 0.0, True), (1, 0.2, False)):
        clock[0] += seconds
        used[0] += cores * seconds
        polite.look()
        assert polite.hushed is hushed
        for thread in [] if hushed else parked():
            thread.join(5)
        assert len(parked()) == int(hushed)


@pytest.mark.usefixtures("two_threads")
def test_numbers_do_not_depend_on_it() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 300, generator=generator) for _ in range(2))
    polite = Courtesy()
    loud = torch.mm(a, b).sum()
    polite.hush()
    hushed = torch.mm(a, b).sum()
    polite.free()
    assert torch.equal(loud, hushed)


def test_a_single_thread_waits_for_nobody() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    polite = Courtesy()
    polite.hush()
    assert not polite.hushed
    torch.set_num_threads(before)
