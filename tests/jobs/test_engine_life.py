"""Engines that are started twice, killed, idle, outdated or broken."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs import client, presence
from engine.jobs.backends.local import environment
from engine.jobs.foreground import settle_lost
from engine.jobs.process import Identity, is_alive, own_identity
from engine.jobs.serve import serve, start_engine
from engine.settings import PROJECT
from engine.store.run_row import StopHow
from tests.jobs.conftest import Lab, until
from tests.jobs.standin import counted


def test_of_two_engines_started_at_once_one_stays(own_lab: Lab) -> None:
    started = [start_engine(own_lab.home, own_lab.options) for _ in range(3)]
    state = until(lambda: client.engine_state(own_lab.home))  # looks, and starts none itself
    until(lambda: sum(is_alive(identity) for identity in started) == 1)
    assert [identity.pid for identity in started if is_alive(identity)] == [state.pid]
    assert own_lab.start().pid == state.pid
    assert serve(own_lab.home, own_lab.options) is False
    assert own_lab.over(own_lab.submit(steps=2)).state == "finished"


def test_a_run_outlives_its_engine_and_the_next_one_takes_it_up(own_lab: Lab) -> None:
    first = own_lab.start()
    run_id = own_lab.submit(steps=600, pause=0.01)
    worker = own_lab.at_step(run_id, 10).worker
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not is_alive(first.identity))
    later = own_lab.at_step(run_id, own_lab.runs.get(run_id).step + 20)
    assert later.state == "active", "the worker goes on alone"
    second = own_lab.start()
    assert second.pid != first.pid
    row = own_lab.over(run_id)
    assert (row.state, row.attempts, row.worker) == ("finished", 1, worker)
    assert counted(own_lab.runs, run_id) == list(range(1, 601))
    next_row = own_lab.over(own_lab.submit(steps=2))
    assert next_row.worker == worker, "the warm worker was taken over too"


def test_a_run_whose_worker_died_with_the_engine_is_continued_by_the_next(own_lab: Lab) -> None:
    first = own_lab.start()
    run_id = own_lab.submit(steps=400, pause=0.01)
    worker = own_lab.at_step(run_id, 30).worker
    assert worker is not None
    os.kill(first.pid, signal.SIGKILL)
    os.killpg(worker["pid"], signal.SIGKILL)
    until(lambda: not is_alive(first.identity))
    own_lab.start()
    row = own_lab.over(run_id)
    assert (row.state, row.losses) == ("finished", 1)
    assert counted(own_lab.runs, run_id) == list(range(1, 401))


def test_an_idle_engine_leaves_with_its_workers_and_comes_back_for_work(own_lab: Lab) -> None:
    lab = Lab(own_lab.home, replace(own_lab.options, idle_seconds=1.0))
    run_id = lab.submit(steps=2)
    first = lab.start()
    worker = lab.over(run_id).worker
    assert worker is not None
    until(lambda: not is_alive(first.identity))
    assert client.engine_state(lab.home) is None
    until(lambda: not is_alive(Identity(worker["pid"], worker["created"])))
    assert lab.over(lab.submit(steps=2)).state == "finished"


def test_an_engine_starts_anew_when_code_has_changed_but_never_under_a_run(own_lab: Lab) -> None:
    first = own_lab.start()
    run_id = own_lab.submit(steps=500, pause=0.02)
    own_lab.at_step(run_id, 3)
    (own_lab.options.code / "some.py").touch()
    (own_lab.options.code / "other.txt").write_text("no code")
    time.sleep(2.5)
    waiting = own_lab.submit(steps=2)
    (own_lab.options.code / "some.py").write_text("2\n")
    row = own_lab.over(run_id)
    assert (row.state, row.attempts) == ("finished", 1)
    after = own_lab.over(waiting)
    assert after.state == "finished"
    state = client.engine_state(own_lab.home)
    assert state is not None
    assert state.pid != first.pid
    assert state.revision != first.revision
    assert after.worker is not None
    assert row.worker is not None
    assert after.worker["name"] != row.worker["name"]


def test_an_engine_with_old_code_still_answers_until_it_can_leave(own_lab: Lab) -> None:
    first = own_lab.start()
    run_id = own_lab.submit(steps=100_000, pause=0.01)
    own_lab.at_step(run_id, 3)
    (own_lab.options.code / "some.py").write_text("2\n")
    time.sleep(3.0)  # by now it has seen that
    assert client.answer(own_lab.home, client.ask(own_lab.home, "echo", {"text": "x"}), wait=60).value()["echo"] == "x"
    client.stop(own_lab.home, run_id, "discard", "ada")
    assert own_lab.over(run_id).state == "stopped"
    until(lambda: (state := client.engine_state(own_lab.home)) is not None and state.pid != first.pid)


def test_workers_that_cannot_start_fail_the_run_with_their_last_words(own_lab: Lab) -> None:
    lab = Lab(own_lab.home, replace(own_lab.options, runner="tests.jobs.nowhere:run_job"))
    row = lab.over(lab.submit())
    assert row.state == "failed"
    assert "No module named 'tests.jobs.nowhere'" in (row.error or "")


def test_two_slots_run_two_runs_at_once(two_slots: Lab) -> None:
    first, second = (two_slots.submit(steps=100_000, pause=0.01) for _ in range(2))
    assert {two_slots.at_step(run_id, 1).slot for run_id in (first, second)} == {"cpu:0", "cpu:1"}
    for run_id in (first, second):
        client.stop(two_slots.home, run_id, "discard", "ada")
        assert two_slots.over(run_id).state == "stopped"


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "engine.lock").mkdir()
    with pytest.raises(EngineError, match=r"did not start(.|\n)*engine\.lock"):
        client.ensure_running(tmp_path, wait=30)


def test_a_worker_that_no_longer_moves_is_replaced_and_its_run_goes_on(own_lab: Lab) -> None:
    lab = Lab(own_lab.home, replace(own_lab.options, hung_seconds=8.0))
    run_id = lab.submit(steps=300, pause=0.01)
    worker = lab.at_step(run_id, 20).worker
    assert worker is not None
    os.kill(worker["pid"], signal.SIGSTOP)
    row = lab.over(run_id)
    assert (row.state, row.losses) == ("finished", 1)
    assert counted(lab.runs, run_id) == list(range(1, 301))


def test_a_worker_without_an_engine_leaves_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "GRACE_SECONDS", 2.0)
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.05)
    with presence.Presence(tmp_path, "cpu:0-x", "cpu:0", "") as worker:
        assert worker.wanted()
        until(lambda: not worker.wanted(), seconds=20)
        worker.board.engine_began(own_identity(), "", [])
        until(worker.wanted, seconds=5)


def test_a_full_disk_ends_the_run_with_advice_and_it_resumes_when_there_is_room(own_lab: Lab) -> None:
    run_id = own_lab.submit(steps=60, act="fill once", at=15)
    row = own_lab.over(run_id)
    assert row.state == "failed"
    assert "Free some space" in (row.todo or "")
    assert counted(own_lab.runs, run_id)[:15] == list(range(1, 16))
    client.resume(own_lab.home, run_id, "ada")
    assert own_lab.over(run_id).state == "finished"
    assert counted(own_lab.runs, run_id) == list(range(1, 61))


FOREGROUND = """
import sys
from pathlib import Path
from engine.jobs.foreground import run_here
spec = {"method": {"name": "full", "pause": 0.01}, "train": {"steps": int(sys.argv[2]), "device": "cpu"}}
row = run_here(Path(sys.argv[1]), spec, {}, owner="ada", runner="tests.jobs.standin:run_job")
print(row.state, row.step)
"""


def foreground(lab: Lab, steps: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FOREGROUND, str(lab.home), str(steps)]
    env = {**os.environ, **environment(lab.home)}
    return subprocess.Popen(words, cwd=PROJECT, env=env, stdout=subprocess.PIPE, text=True)


def test_a_run_in_the_foreground_needs_no_engine(own_lab: Lab) -> None:
    out, _ = foreground(own_lab, 5).communicate(timeout=60)
    assert out.splitlines()[-1] == "finished 5"
    assert client.engine_state(own_lab.home) is None


def test_ctrl_c_in_the_foreground_keeps_the_checkpoint(own_lab: Lab) -> None:
    process = foreground(own_lab, 100_000)
    run_id = until(lambda: next((row.id for row in own_lab.runs.list() if row.step >= 5), None))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1].startswith("stopped")
    assert own_lab.runs.folder(run_id).checkpoint.exists()


@pytest.mark.parametrize(("asked", "state"), [(None, "failed"), ("keep", "stopped")])
def test_a_foreground_run_whose_process_could_not_record_its_end_is_over_and_resumes(
    own_lab: Lab, monkeypatch: pytest.MonkeyPatch, asked: StopHow | None, state: str
) -> None:
    monkeypatch.setattr(client, "ensure_running", lambda *_: None)
    process = foreground(own_lab, 100_000)
    run_id = until(lambda: next((row.id for row in own_lab.runs.list() if row.step >= 5), None))
    settle_lost(own_lab.home)
    assert own_lab.runs.get(run_id).state == "active", "it lives"
    process.send_signal(signal.SIGSTOP)
    if asked:
        own_lab.runs.request_stop(run_id, asked, "ada")
    process.kill()
    process.communicate(timeout=60)
    assert own_lab.runs.get(run_id).state == "active", "nobody has looked"
    settle_lost(own_lab.home)
    row = own_lab.runs.get(run_id)
    assert row.state == state
    assert asked or "resume the run" in (row.todo or "")
    own_lab.runs.move(run_id, "queued")
    own_lab.runs.claim(run_id, "here", row.worker or {})
    assert client.resume(own_lab.home, run_id, "ada").state == "queued", "also when it was not looked at before"
