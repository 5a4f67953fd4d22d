"""The same cases over every backend: what the queue may rely on."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.jobs.answers import Requests
from engine.jobs.backends.base import Backend
from engine.jobs.backends.inline import InlineBackend
from engine.jobs.backends.local import LocalBackend
from engine.jobs.board import Board
from engine.jobs.process import Identity
from engine.jobs.supervisor import Supervisor
from engine.store.runs import Runs
from tests.jobs.conftest import make_lab, until
from tests.jobs.standin import counted

SPEC = {"method": {"name": "full"}, "train": {"steps": 15, "device": "cpu"}}


@pytest.fixture(params=[InlineBackend, LocalBackend])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Backend]]:
    """A home under a supervisor that runs in a thread."""
    lab = make_lab(tmp_path)
    backend = request.param(lab.home, lab.options)
    supervisor = Supervisor(lab.home, backend, lab.options)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    yield lab.home, backend
    supervisor.leaving.set()
    thread.join()
    board = Board(lab.home)
    workers = [Identity(row.pid, row.created) for row in board.workers()]
    supervisor.close()
    until(lambda: not any(backend.alive(identity) for identity in workers))


def test_queued_runs_finish_stop_and_are_asked_about(place: tuple[Path, Backend]) -> None:
    home, _ = place
    runs, requests = Runs(home), Requests(home)
    ids = [runs.submit(SPEC, {}, owner="ada") for _ in range(3)]
    slow = {"method": {"name": "full", "pause": 0.01}, "train": {"steps": 10_000, "device": "cpu"}}
    long = runs.submit(slow, {}, owner="bob")
    question = requests.ask("echo", {"text": "hello"})
    until(lambda: requests.get(question).is_over)
    assert requests.get(question).value()["echo"] == "hello"
    until(lambda: runs.get(long).step >= 3)
    runs.request_stop(long, "keep", "bob")
    until(lambda: all(row.is_over for row in runs.list()))
    assert runs.get(long).state == "stopped"
    for run_id in ids:
        assert runs.get(run_id).state == "finished"
        assert counted(runs, run_id) == list(range(1, 16))


def test_a_worker_is_found_by_its_identity_and_leaves_when_told(place: tuple[Path, Backend]) -> None:
    home, backend = place
    assert backend.capacity() is None or "cpu:0" in (backend.capacity() or [])
    identity = backend.launch("cpu:5", "cpu:5-test", "other code")
    board = Board(home)
    until(lambda: any(row.name == "cpu:5-test" and row.ready for row in board.workers()) or not backend.alive(identity))
    backend.stop(identity, hard=False)
    until(lambda: not backend.alive(identity))
    until(lambda: all(row.name != "cpu:5-test" for row in board.workers()))
