"""Turns of layers: what was recorded is what the method drew, at its very steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.export.finished import opened
from engine.export.recording import FRAMES, Recording, record
from engine.plan import make_plan
from engine.probes.recorded import turns_of
from engine.spec import parse_spec
from engine.store.run_reader import RunReader
from engine.store.runs import Runs
from engine.training.build import Caches, build
from engine.training.run import run_job
from tests.small import spec_data
from tests.training.test_run import go_on, stop, submit

STEPS = 100
LISA = {"name": "lisa", "layers": 1, "interval": 1, "outside": False}
ROWS = [
    {"name": "e", "layer": -1, "shape": [4]},
    {"name": "a", "layer": 0, "shape": [3]},
    {"name": "b", "layer": 0, "shape": [1]},
    {"name": "c", "layer": 1, "shape": [5]},
]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def frame(step: int, *active: int) -> tuple[int, dict[str, np.ndarray]]:
    return step, {"active": np.array(active, np.uint8)}


def test_shares_are_means_over_the_steps_of_a_column():
    frames = [frame(0, 1, 1, 0, 0), frame(3, 1, 0, 1, 0), frame(5, 1, 0, 0, 1)]
    fine = turns_of(ROWS, 2, frames, 6, 60)
    assert fine.places == ("embeddings", "layer 0", "layer 1")
    assert fine.shares.tolist() == [[1] * 6, [0.75, 0.75, 0.75, 0.25, 0.25, 0], [0, 0, 0, 0, 0, 1]]
    coarse = turns_of(ROWS, 2, frames, 6, 2)
    assert coarse.ends.tolist() == [0, 3, 6]
    assert coarse.shares[1].tolist() == pytest.approx([0.75, 0.5 / 3])
    assert turns_of(ROWS, 2, [], 6, 2) is None
    assert turns_of(ROWS, 2, frames, 0, 2) is None


def drawn(small: Path) -> list[list[int]]:
    """Layers of each step, by the method's own rule."""
    spec = make_plan(parse_spec(spec_data(small, LISA, steps=STEPS))).spec
    method = build(spec, Caches()).method
    return [method.drawn(step) for step in range(STEPS)]


def recorded(home: Path, run_id: str) -> list[list[int]]:
    with RunReader(Runs(home).folder(run_id).database) as reader:
        frames = [reader.frame("layers", step=step) for _, step in reader.frame_index("layers")]
        metas = reader.metas()
    turns = turns_of(metas["layer_rows"], 2, frames, STEPS, STEPS)
    assert turns.places == ("layer 0", "layer 1")
    return [np.flatnonzero(column == 1).tolist() for column in turns.shares.T]


def test_lisas_turns_are_recorded_step_by_step_also_through_a_stop(home, small, monkeypatch):
    expected = drawn(small)
    assert len({tuple(layers) for layers in expected}) == 2
    straight, stopped = (submit(home, spec_data(small, LISA, lr=0.01, steps=STEPS)) for _ in range(2))
    assert run_job(home, straight, Caches()) == "finished"
    assert recorded(home, straight) == expected
    stop(home, stopped, 41, monkeypatch)
    go_on(home, stopped)
    assert recorded(home, stopped) == expected


def test_a_recording_keeps_every_turn(home, small, monkeypatch):
    monkeypatch.setattr("engine.export.recording.FRAMES", 10)
    run_id = submit(home, spec_data(small, LISA, lr=0.01, steps=STEPS))
    assert run_job(home, run_id, Caches()) == "finished"
    with opened(home, run_id) as finished:
        found = Recording(record(finished))
        turns = [step for _, step in finished.reader.frame_index("layers")]
    assert len(turns) > 10
    assert [step for _, step in found.frame_index("layers")] == turns
    assert len(found.frame_index("change")) <= 10 < FRAMES


def test_turns_beyond_the_limit_are_recorded_at_frames_and_the_run_says_so(home, small, monkeypatch):
    monkeypatch.setattr("engine.training.recorder.EXACT_CHANGES", 5)
    run_id = submit(home, spec_data(small, LISA, lr=0.01, steps=250))
    assert run_job(home, run_id, Caches()) == "finished"
    with RunReader(Runs(home).folder(run_id).database) as reader:
        steps = [step for _, step in reader.frame_index("layers")]
        assert any("recorded at frames only" in note.text for note in reader.notes())
    from engine.probes.schedule import frame_steps

    assert len(steps) > 5
    assert set(steps[5:]) <= set(frame_steps(250))


def test_a_method_that_never_changes_its_layers_records_them_once(home, small):
    run_id = submit(home, spec_data(small, {"name": "surgical"}, lr=0.01))
    assert run_job(home, run_id, Caches()) == "finished"
    with RunReader(Runs(home).folder(run_id).database) as reader:
        assert [step for _, step in reader.frame_index("layers")] == [0]
