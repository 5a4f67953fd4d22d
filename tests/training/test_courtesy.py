"""Waiting threads are hushed beside others and freed when alone."""

from __future__ import annotations

import threading

import psutil
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
    monkeypatch.setattr(courtesy.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(Courtesy, "_usage", staticmethod(lambda: used[0]))
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


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("processors", "teams"), [(2, 1), (4, 3), (8, 7)])
def test_together_its_threads_are_more_than_the_processors(
    processors: int, teams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courtesy.os, "sched_getaffinity", lambda pid: set(range(processors)))
    with Courtesy() as polite:
        polite.hush()
        assert len(parked()) == teams
        assert 2 + teams * (2 - 1) > processors
    for thread in parked():
        thread.join(5)
    assert not parked()


@pytest.mark.usefixtures("two_threads")
def test_processors_that_a_run_leaves_free_are_others_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used = [0.0], [0.0]
    monkeypatch.setattr(courtesy.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(courtesy.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(Courtesy, "_usage", staticmethod(lambda: used[0]))
    with Courtesy() as polite:
        for cores, hushed in ((5.9, False), (6.9, True)):
            clock[0] += 1
            used[0] += cores
            polite.look()
            assert polite.hushed is hushed


def test_a_system_that_tells_nothing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(courtesy.psutil, "cpu_times", refuse)
    monkeypatch.setattr(courtesy, "LOOK_SECONDS", 0.0)
    with Courtesy() as polite:
        polite.look()
        assert not polite.hushed


def test_a_single_thread_waits_for_nobody() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    polite = Courtesy()
    polite.hush()
    assert not polite.hushed
    torch.set_num_threads(before)
