"""One warm engine for most tests, on real processes; and the means to end what a test left."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engine.jobs import client, process
from engine.jobs.board import EngineState, WorkerRow
from engine.jobs.options import Options
from engine.jobs.process import Identity, is_alive
from engine.store.run_row import RunRow
from engine.store.runs import Runs

WAIT = 40.0


def until(true: Callable[[], Any], seconds: float = WAIT) -> Any:
    """Wait for something to become true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.03)
    raise AssertionError("it did not happen in time")


@dataclass
class Lab:
    """A home with an engine that uses the stand-in runner."""

    home: Path
    options: Options
    runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        self.runs = Runs(self.home)

    def start(self) -> EngineState:
        """Start the engine unless it runs."""
        state = client.ensure_running(self.home, self.options)
        assert state is not None
        return state

    def submit(self, steps: int = 30, owner: str = "ada", method: str = "full", **settings: Any) -> str:
        """Queue a run of the stand-in."""
        spec = {"method": {"name": method, **settings}, "train": {"steps": steps, "device": "cpu"}}
        return client.submit(self.home, spec, {}, owner=owner, options=self.options)

    def over(self, run_id: str) -> RunRow:
        """The run's row once it has ended."""
        return client.wait_until_over(self.home, run_id, WAIT)

    def at_step(self, run_id: str, step: int) -> RunRow:
        """The run's row once it is that far."""
        until(lambda: self.runs.get(run_id).step >= step)
        return self.runs.get(run_id)

    def worker(self, slot: str = "cpu:0") -> WorkerRow:
        """The slot's warm worker."""
        found: WorkerRow = until(
            lambda: next((w for w in client.engine_workers(self.home) if w.slot == slot and w.ready), None)
        )
        return found

    def end(self) -> None:
        """End the engine and all workers of this home, each by its own number."""
        state = client.engine_state(self.home)
        if state is not None:
            process.terminate(state.identity)
            until(lambda: not is_alive(state.identity))
        for worker in client.engine_workers(self.home):
            process.kill(Identity(worker.pid, worker.created))


def make_lab(folder: Path) -> Lab:
    """A lab whose engine watches a folder of its own for changed code."""
    code = folder / "code"
    code.mkdir()
    (code / "some.py").write_text("1\n")
    options = Options(
        idle_seconds=120,
        cpu_slots=1,
        runner="tests.jobs.standin:run_job",
        answerer="tests.jobs.standin:answer",
        code=code,
        hung_seconds=20,
        term_seconds=0.6,
        kill_seconds=8.0,
    )
    return Lab(folder / "home", options)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with a warm engine, shared by the module's tests."""
    shared = make_lab(tmp_path_factory.mktemp("lab"))
    shared.start()
    yield shared
    shared.end()


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab of the test's own, whose engine is not started yet."""
    lab = make_lab(tmp_path)
    yield lab
    lab.end()


@pytest.fixture
def two_slots(tmp_path: Path) -> Iterator[Lab]:
    """The same with two CPU slots."""
    lab = make_lab(tmp_path)
    lab = Lab(lab.home, replace(lab.options, cpu_slots=2))
    yield lab
    lab.end()
