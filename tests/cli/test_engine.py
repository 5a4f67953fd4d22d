"""Real runs by a real worker on one warm engine: the same numbers as in the foreground, whatever happens to them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from engine.jobs import client
from engine.jobs.runner import ANSWERER
from engine.plan import make_plan
from engine.settings import PROJECT
from engine.spec import parse_spec
from engine.store.run_reader import RunReader
from engine.store.run_row import RunRow
from engine.store.runs import Runs
from engine.training import checkpoint
from engine.training.build import Caches
from engine.training.result_file import TRAINED
from engine.training.run import run_job
from tests.cli.conftest import call, write_spec
from tests.jobs.conftest import Lab, make_lab, until
from tests.small import spec_data
from tests.training.test_run import series

MIDDLE = 12


@pytest.fixture(scope="module")
def lab(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A warm engine with the real runner."""
    made = make_lab(tmp_path_factory.mktemp("real"))
    real = {"runner": "tests.cli.often:run_job", "answerer": ANSWERER, "term_seconds": 20, "kill_seconds": 60}
    shared = Lab(made.home, replace(made.options, **real))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSCOPE_HOME", str(shared.home))
        patch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(shared.home.parent)]))
        shared.start()
        yield shared
        shared.end()


def long_run(small: Path) -> dict[str, Any]:
    return spec_data(small, {"name": "id3", "k": 300}, lr=0.01, steps=200)


@pytest.fixture(scope="module")
def straight(lab: Lab, small: Path) -> RunRow:
    """The long run in one go, in this process."""
    plan = make_plan(parse_spec(long_run(small)))
    run_id = lab.runs.submit(plan.spec, plan.to_json(), owner="ada", slot="here", worker={"pid": 0})
    assert run_job(lab.home, run_id, Caches()) == "finished", lab.runs.get(run_id).error
    return lab.runs.get(run_id)


def submit(lab: Lab, data: dict[str, Any]) -> str:
    """Queue a run as a page does."""
    plan = make_plan(parse_spec(data))
    return client.submit(lab.home, plan.spec, plan.to_json(), owner="ada")


def over(lab: Lab, run_id: str) -> RunRow:
    return client.wait_until_over(lab.home, run_id, 120)


def saved_step(lab: Lab, run_id: str) -> int:
    """Steps in the run's checkpoint; 0 when there is none."""
    saved = checkpoint.read(lab.runs.folder(run_id).checkpoint)
    return saved.step if saved else 0


def in_the_middle(lab: Lab, run_id: str) -> RunRow:
    """The run once it is under way and has a checkpoint of its own."""
    until(lambda: lab.runs.get(run_id).step >= MIDDLE and saved_step(lab, run_id) > 0, seconds=120)
    row = lab.runs.get(run_id)
    assert row.state == "active", row.error
    return row


def assert_same(lab: Lab, run_id: str, reference: RunRow) -> None:
    """Two runs have the same numbers and the same trained weights, bit for bit."""
    assert series(lab.home, run_id) == series(lab.home, reference.id)
    ours, theirs = (load_file(lab.runs.folder(run).result / TRAINED) for run in (run_id, reference.id))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with (
        RunReader(lab.runs.folder(run_id).database) as mine,
        RunReader(lab.runs.folder(reference.id).database) as other,
    ):
        mask, expected = mine.selection(), other.selection()
    assert all((mask[name] == expected[name]).all() for name in expected)


def resumed_from(lab: Lab, run_id: str) -> int:
    """The step of the checkpoint that the run went on from."""
    with RunReader(lab.runs.folder(run_id).database) as reader:
        (note,) = [note for note in reader.notes() if note.text.startswith("Resumed from the checkpoint")]
    assert note.step is not None
    return note.step


def test_page_and_command_line_give_the_same_numbers(lab: Lab, small: Path, tmp_path: Path) -> None:
    data = spec_data(small, {"name": "lora", "rank": 2}, lr=0.01)
    page = over(lab, submit(lab, data))
    assert page.state == "finished", page.error
    terminal = call("run", write_spec(tmp_path / "spec.yaml", data), "--json").json
    assert_same(lab, page.id, lab.runs.get(terminal["run"]))
    assert page.summary is not None
    timed = {"run", "seconds", "training_seconds", "loop_seconds", "steps_per_second", "peak_memory_bytes"}
    timed |= {"energy_joules", "latency", "memory", "probe_seconds"}
    assert {k: v for k, v in page.summary.items() if k not in timed} == {
        k: v for k, v in terminal.items() if k not in timed
    }


def test_submitted_seeds_differ_and_a_finished_twin_is_offered(lab: Lab, small: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.yaml", spec_data(small, "bitfit", lr=0.01, steps=4))
    queued = call("submit", spec, "--seeds", 2, "--json").json
    assert [(row["seed"], row["state"]) for row in queued] == [(0, "queued"), (1, "queued")]
    rows = [over(lab, row["run"]) for row in queued]
    assert [row.state for row in rows] == ["finished", "finished"]
    assert rows[0].spec_hash == rows[1].spec_hash
    assert series(lab.home, rows[0].id) != series(lab.home, rows[1].id)
    again = call("submit", spec, "--json").json
    assert again == [{"run": rows[0].id, "seed": 0, "state": "finished before"}]
    forced = call("submit", spec, "--again").out
    assert rows[0].id not in forced
    assert "queued" in forced


def test_a_worker_killed_in_the_middle_goes_on_from_its_checkpoint(lab: Lab, small: Path, straight: RunRow) -> None:
    run_id = submit(lab, long_run(small))
    row = in_the_middle(lab, run_id)
    assert row.worker is not None
    os.killpg(row.worker["pid"], signal.SIGKILL)
    row = over(lab, run_id)
    assert (row.state, row.losses) == ("finished", 1), row.error
    assert resumed_from(lab, run_id) > 0
    assert_same(lab, run_id, straight)
    assert row.summary is not None
    assert straight.summary is not None
    assert row.summary["tokens"] == straight.summary["tokens"]
    with RunReader(lab.runs.folder(run_id).database) as reader:
        assert any("lost its worker" in note.text for note in reader.notes())


def test_waiting_runs_share_a_pass_and_go_on_alone_when_their_worker_is_lost(lab: Lab, small: Path) -> None:
    holder = submit(lab, long_run(small))
    in_the_middle(lab, holder)
    ids = []
    for seed in (1, 2, 3):
        plan = make_plan(parse_spec(spec_data(small, {"name": "lora", "rank": 2}, lr=0.01, steps=150, seed=seed)))
        train = plan.spec.train.model_copy(update={"execution": "packed"})  # which a plan offers on a GPU alone
        spec = plan.spec.model_copy(update={"train": train})
        ids.append(client.submit(lab.home, spec, plan.to_json(), owner=f"student {seed}"))
    call("stop", holder, "--discard")
    rows = [in_the_middle(lab, run_id) for run_id in ids]
    workers = [row.worker for row in rows]
    assert workers[0] is not None
    assert workers == [workers[0]] * 3, "one worker has all of them"
    assert ids[0] in lab.runs.folder(ids[2]).log.read_text(), "the log says where all was printed"
    os.killpg(workers[0]["pid"], signal.SIGKILL)
    for run_id in ids:
        row = over(lab, run_id)
        assert (row.state, row.losses) == ("finished", 1), row.error
        assert row.summary is not None
        assert row.summary["company"] == 1
        assert resumed_from(lab, run_id) > 0
        assert len(series(lab.home, run_id)["train/loss"]) == 150
        with RunReader(lab.runs.folder(run_id).database) as reader:
            assert any("in one pass with 2 other" in note.text for note in reader.notes())


def test_stop_and_resume_from_the_terminal(lab: Lab, small: Path, straight: RunRow) -> None:
    run_id = submit(lab, long_run(small))
    in_the_middle(lab, run_id)
    assert call("stop", run_id, "--json").json["stop"] == "keep"
    assert over(lab, run_id).state == "stopped"
    done = saved_step(lab, run_id)
    assert done >= MIDDLE
    assert "is queued" in call("resume", run_id).out
    assert over(lab, run_id).state == "finished"
    assert resumed_from(lab, run_id) == done
    assert_same(lab, run_id, straight)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can set the limits of another process")
def test_a_full_disk_fails_the_run_with_its_reason_and_loses_nothing(lab: Lab, small: Path, straight: RunRow) -> None:
    """Made full by a limit on the size of the files that the worker may write."""
    run_id = submit(lab, long_run(small))
    row = in_the_middle(lab, run_id)
    assert row.worker is not None
    no_limit = resource.prlimit(row.worker["pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(row.worker["pid"], resource.RLIMIT_FSIZE, (4_096, no_limit[1]))
    try:
        until(lambda: is_let_go(lab, run_id))
        stuck = recorded(lab, run_id)
    finally:
        resource.prlimit(row.worker["pid"], resource.RLIMIT_FSIZE, no_limit)
    row = over(lab, run_id)
    assert row.state == "failed"
    assert row.error
    assert "Free some" in (row.todo or "")
    assert recorded(lab, run_id) >= stuck, "its history is kept"
    done = saved_step(lab, run_id)
    assert done > 0, "and so is the earlier checkpoint, whole"
    call("resume", run_id)
    assert over(lab, run_id).state == "finished"
    assert resumed_from(lab, run_id) == done
    assert_same(lab, run_id, straight)


def recorded(lab: Lab, run_id: str) -> int:
    """Steps whose loss is in the run's file."""
    with RunReader(lab.runs.folder(run_id).database) as reader:
        return len(reader.scalars(["train/loss"], max_points=10**6)["train/loss"][0])


def is_let_go(lab: Lab, run_id: str) -> bool:
    """Whether the run's file has no writer any more: the failure was noticed."""
    lock = FileLock(lab.runs.folder(run_id).root / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def test_serve_leaves_a_served_store_alone(lab: Lab) -> None:
    said = call("serve", "--json")
    assert (said.status, said.json) == (0, {"served": False, "home": str(lab.home)})
    assert "another engine serves" in call("serve").out


def test_ctrl_c_keeps_the_checkpoint(home: Path, small: Path, tmp_path: Path) -> None:
    data = spec_data(small, "bitfit", lr=0.01, steps=600)
    spec = write_spec(tmp_path / "spec.yaml", data)
    words = [sys.executable, "-m", "engine", "run", str(spec)]
    process = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = Runs(home)
    until(lambda: any(row.step >= 10 for row in runs.list()), seconds=90)
    process.send_signal(signal.SIGINT)
    out, complaint = process.communicate(timeout=90)
    assert process.returncode == 130, complaint
    (row,) = runs.list()
    assert f'"run": "{row.id}", "status": "stopped"' in out.splitlines()[-1]
    saved = checkpoint.read(runs.folder(row.id).checkpoint)
    assert saved is not None
    assert saved.step == row.step >= 10
    # What another process began goes on here as if it had never stopped.
    runs.resume(row.id, "machine")
    assert runs.claim(row.id, "here", {"pid": 0})
    caches = Caches()
    assert run_job(home, row.id, caches) == "finished", runs.get(row.id).error
    plan = make_plan(parse_spec(data))
    straight = runs.submit(plan.spec, plan.to_json(), owner="ada", slot="here", worker={"pid": 0})
    assert run_job(home, straight, caches) == "finished"
    assert series(home, row.id) == series(home, straight)
