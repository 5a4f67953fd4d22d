"""The engine on real processes: runs finish, fail, stop, resume and survive what happens to their workers."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import EngineError, NotAllowed
from engine.jobs import client
from engine.jobs.process import Identity, is_alive
from engine.store.run_file import RunReader
from tests.jobs.conftest import Lab, until
from tests.jobs.standin import counted

WAIT = 60.0


def test_ten_runs_at_once_all_end_and_the_bad_one_says_why(lab: Lab) -> None:
    ids = [lab.submit(steps=20) for _ in range(9)]
    bad = lab.submit(act="raise", at=3)
    rows = [lab.over(run_id) for run_id in ids]
    assert [row.state for row in rows] == ["finished"] * 9
    assert len({row.summary["pid"] for row in rows if row.summary}) == 1, "one warm worker took them all"
    assert all(counted(lab.runs, run_id) == list(range(1, 21)) for run_id in ids)
    row = lab.over(bad)
    assert row.state == "failed"
    assert "the third wheel fell off" in (row.error or "")
    log = lab.runs.folder(bad).log.read_text()
    assert "hello from the run" in log
    assert "hello from below python" in log
    assert "Traceback" in log
    assert lab.over(lab.submit(steps=3)).state == "finished"


def test_an_error_meant_for_the_user_arrives_whole(lab: Lab) -> None:
    row = lab.over(lab.submit(act="refuse", at=2))
    assert (row.state, row.error, row.todo) == ("failed", "The data is gone.", "Bring it back.")


def test_a_stopped_run_keeps_its_checkpoint_and_goes_on_as_if_never_stopped(lab: Lab) -> None:
    run_id = lab.submit(steps=400, pause=0.01)
    lab.at_step(run_id, 20)
    with pytest.raises(NotAllowed):
        client.stop(lab.home, run_id, "keep", "bob")
    client.stop(lab.home, run_id, "keep", "ada")
    row = lab.over(run_id)
    assert (row.state, row.error) == ("stopped", None)
    assert 20 <= row.step < 400
    assert lab.runs.folder(run_id).checkpoint.exists()
    with pytest.raises(NotAllowed):
        client.resume(lab.home, run_id, "bob")
    client.resume(lab.home, run_id, "ada")
    row = lab.over(run_id)
    assert (row.state, row.attempts, row.losses) == ("finished", 2, 0)
    assert counted(lab.runs, run_id) == list(range(1, 401))


def test_a_discarded_run_keeps_its_record_but_no_checkpoint(lab: Lab) -> None:
    run_id = lab.submit(steps=1000, pause=0.01)
    lab.at_step(run_id, 15)
    client.stop(lab.home, run_id, "discard", "machine")
    assert lab.over(run_id).state == "stopped"
    assert not lab.runs.folder(run_id).checkpoint.exists()
    assert len(counted(lab.runs, run_id)) >= 15


def test_a_run_that_ignores_the_flag_is_stopped_by_signal_and_its_worker_stays(lab: Lab) -> None:
    run_id = lab.submit(act="busy", at=5)
    row = lab.at_step(run_id, 5)
    client.stop(lab.home, run_id, "keep", "ada")
    assert lab.over(run_id).state == "stopped"
    assert row.worker is not None
    assert is_alive(Identity(row.worker["pid"], row.worker["created"]))
    assert lab.over(lab.submit(steps=2)).state == "finished"


def test_a_run_that_ignores_signals_is_ended_with_all_it_started(lab: Lab) -> None:
    run_id = lab.submit(act="deaf", at=12)
    child = lab.runs.folder(run_id).root / "child"
    until(lambda: child.exists() and child.read_text())
    client.stop(lab.home, run_id, "discard", "ada")
    row = lab.over(run_id)
    assert row.state == "stopped"
    assert not lab.runs.folder(run_id).checkpoint.exists()
    until(lambda: not is_running(int(child.read_text())))
    notes = RunReader(lab.runs.folder(run_id).database).notes()
    assert "did not stop when asked" in notes[-1].text
    assert lab.over(lab.submit(steps=2)).state == "finished"


def is_running(pid: int) -> bool:
    """Whether a process runs, zombies apart: in a container nobody may collect them."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("act", ["die once", "leave once"])
def test_a_lost_run_goes_on_once_from_its_checkpoint_and_says_so(lab: Lab, act: str) -> None:
    run_id = lab.submit(steps=40, act=act, at=25)
    row = lab.over(run_id)
    assert (row.state, row.losses, row.attempts) == ("finished", 1, 2)
    assert counted(lab.runs, run_id) == list(range(1, 41))
    notes = RunReader(lab.runs.folder(run_id).database).notes()
    assert [note.level for note in notes] == ["warning"]
    assert "from its last checkpoint" in notes[0].text
    assert ("SIGKILL" in notes[0].text) if act == "die once" else ("exit code 3" in notes[0].text)


def test_a_run_lost_twice_fails_with_the_reason_and_the_rest_go_on(lab: Lab) -> None:
    run_id, next_id = lab.submit(act="die", at=4), lab.submit(steps=3)
    row = lab.over(run_id)
    assert (row.state, row.losses) == ("failed", 1)
    assert "twice" in (row.error or "")
    assert "SIGKILL" in (row.error or "")
    assert "something terrible" in (row.error or "")
    assert lab.over(next_id).state == "finished"


def test_a_worker_killed_while_idle_is_replaced(lab: Lab) -> None:
    worker = lab.worker()
    os.kill(worker.pid, signal.SIGKILL)
    assert lab.over(lab.submit(steps=2)).state == "finished"
    assert lab.worker().name != worker.name


def test_a_run_carried_out_by_somebody_unknown_is_left_alone_and_the_rest_go_on(lab: Lab) -> None:
    spec = {"method": {"name": "full"}, "train": {"steps": 3, "device": "cpu"}}
    other = lab.runs.submit(spec, {}, owner="ada", slot="here", worker={"pid": 0})
    assert lab.over(lab.submit(steps=3)).state == "finished"
    assert lab.runs.get(other).state == "active"
    lab.runs.finish(other, "stopped")


def test_a_run_whose_log_cannot_be_written_fails_in_words(lab: Lab) -> None:
    (folder := lab.runs.folder("taken").root.parent).mkdir(parents=True, exist_ok=True)
    blocker = lab.submit(steps=100_000, pause=0.01)
    lab.at_step(blocker, 1)
    run_id = lab.submit(steps=3)
    (folder / run_id / "log.txt").mkdir(parents=True)
    client.stop(lab.home, blocker, "discard", "ada")
    row = lab.over(run_id)
    assert row.state == "failed"
    assert "log.txt cannot be written" in (row.error or "")
    assert lab.over(lab.submit(steps=2)).state == "finished"


def test_a_question_is_answered_while_a_run_holds_the_only_slot(lab: Lab) -> None:
    run_id = lab.submit(steps=100_000, pause=0.01)
    lab.at_step(run_id, 1)
    first = client.answer(lab.home, client.ask(lab.home, "echo", {"text": "<b>é"}), wait=WAIT)
    assert first.value()["echo"] == "<b>é"
    second = client.answer(lab.home, client.ask(lab.home, "echo", {"text": "x"}), wait=WAIT).value()
    assert (second["pid"], second["n"]) == (first.value()["pid"], 2), "the process stays warm"
    assert lab.runs.get(run_id).state == "active"
    client.stop(lab.home, run_id, "discard", "ada")
    lab.over(run_id)


def test_a_question_that_fails_or_kills_says_so_and_the_next_is_answered(lab: Lab) -> None:
    refused = client.answer(lab.home, client.ask(lab.home, "raise", {}), wait=WAIT)
    with pytest.raises(EngineError, match="Ask something else"):
        refused.value()
    broken = client.answer(lab.home, client.ask(lab.home, "echo", {}), wait=WAIT)
    with pytest.raises(EngineError, match="KeyError"):
        broken.value()
    lost = client.answer(lab.home, client.ask(lab.home, "die", {}), wait=WAIT)
    with pytest.raises(EngineError, match="was lost"):
        lost.value()
    assert client.answer(lab.home, client.ask(lab.home, "echo", {"text": "y"}), wait=WAIT).value()["echo"] == "y"


def test_a_device_that_is_not_there_fails_at_once_with_those_that_are(lab: Lab) -> None:
    spec = {"method": "full", "train": {"device": "cuda:7"}}
    row = lab.over(client.submit(lab.home, spec, {}, owner="ada"))
    assert row.state == "failed"
    assert "cuda:7" in (row.error or "")
    assert "cpu" in (row.todo or "")


def test_the_engine_shows_itself_and_works_at_low_priority(lab: Lab) -> None:
    state = lab.start()
    assert is_alive(state.identity)
    until(lambda: (client.engine_state(lab.home) or state).slots[-1:] == ["cpu:0"])
    assert psutil.Process(lab.worker().pid).nice() >= 10
    assert psutil.Process(state.pid).nice() == psutil.Process().nice()


def test_an_engine_is_light(lab: Lab) -> None:
    process = psutil.Process(lab.start().pid)
    assert not any("torch" in Path(entry.path).name for entry in process.memory_maps()), "it never loads torch"
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(1.5)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    assert used / (time.monotonic() - began) < 0.25
