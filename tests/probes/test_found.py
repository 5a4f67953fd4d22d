"""Findings: what the record gives back is what the method measured, and an older record says that it has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from engine.export.finished import opened
from engine.export.recording import Recording, record
from engine.methods._polyline import principal_plane, splits, tolerances
from engine.methods.ist import IST
from engine.methods.rdp import RdpLoRA
from engine.methods.subtuning import SubTuning
from engine.probes.found import importance_of, path_of, scores_of, trials_of
from engine.store.run_reader import RunReader
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make
from tests.small import spec_data
from tests.tiny import tiny_bert
from tests.training.test_run import go_on, stop, submit

WALK = np.random.default_rng(3).normal(size=(9, 12)).cumsum(axis=0)
IST_RUN = {"name": "ist", "interval": 3, "rate": 1000.0}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def findings(cls: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A method after its scoring phase, and its findings as a record gives them back."""
    model = tiny_bert(layers=4)
    run = Training(make(cls, model, settings), model, lr=5e-3, score_batches=batches_of(24, size=1))
    return run.method, {"findings": json.loads(json.dumps(run.method.findings(), allow_nan=False))}


def reader_of(home: Path, run_id: str) -> RunReader:
    return RunReader(Runs(home).folder(run_id).database)


def importance(reader: Any) -> Any:
    frames = [reader.frame("importance", step=step) for _, step in reader.frame_index("importance")]
    return importance_of(reader.metas(), frames)


# --- the path -------------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_principal_components() -> None:
    places, shares = principal_plane(WALK)
    pca = PCA(n_components=2).fit(WALK)
    np.testing.assert_allclose(np.abs(places), np.abs(pca.transform(WALK)), atol=1e-9)
    assert shares == pytest.approx(pca.explained_variance_ratio_)
    assert places[-1, 0] > places[0, 0]
    assert places[np.abs(places[:, 1]).argmax(), 1] > 0
    np.testing.assert_allclose(principal_plane(-WALK)[0], places, atol=1e-9)


def test_a_path_that_never_moves_and_one_in_a_line_have_a_plane_too() -> None:
    places, shares = principal_plane(np.ones((3, 4)))
    assert not places.any()
    assert shares == (0.0, 0.0)
    places, shares = principal_plane(np.arange(4.0)[:, None])
    assert places.tolist() == [[-1.5, 0], [-0.5, 0], [0.5, 0], [1.5, 0]]
    assert shares == (1.0, 0.0)


def test_a_division_says_which_line_it_left_and_how_far() -> None:
    """The path goes far and comes back: its first corner is 4.9 from its line, but goes with the second, 2 from its."""
    points = np.array([[0.0, 0.0], [7.0, -1.9], [4.0, 2.0], [8.0, 0.0]])
    far, top = splits(points)
    assert (top.vertex, top.first, top.last, top.distance, top.tolerance) == (2, 0, 3, 2.0, 2.0)
    assert (far.vertex, far.first, far.last) == (1, 0, 2)
    assert far.distance == pytest.approx(np.hypot(3, 3.9))
    assert far.tolerance == 2.0
    assert tolerances(points).tolist() == [np.inf, 2.0, 2.0, np.inf]


@pytest.mark.parametrize("settings", [{}, {"last": False}, {"normalise": True, "layers": 3}, {"layers": 1}])
def test_the_recorded_path_is_the_methods_own(settings: dict[str, Any]) -> None:
    method, metas = findings(RdpLoRA, samples=5, **settings)
    path = path_of(metas)
    assert path is not None
    line = method.polyline
    assert (path.layers, path.chosen, path.hidden) == (4, line.layers, line.points.shape[1])
    assert path.normalised == settings.get("normalise", False)
    np.testing.assert_allclose(path.tolerance, line.tolerance)
    assert path.examples == 5
    assert path.tokens == sum(batch["input_ids"].numel() for batch in batches_of(24, size=1)[:5])
    for vertex, ends in enumerate(path.lines):
        assert (ends is None) == (vertex in (0, 4))
        if ends is not None:
            start, along = line.points[ends[0]], line.points[ends[1]] - line.points[ends[0]]
            share = np.clip((line.points[vertex] - start) @ along / (along @ along), 0, 1)
            assert path.distance[vertex] == pytest.approx(np.linalg.norm(line.points[vertex] - start - share * along))
    low, high = path.span
    assert low < high
    for tolerance in (low, (low + min(high, 2 * low + 1)) / 2):
        assert np.flatnonzero(path.tolerance > tolerance).tolist() == path.corners
    assert set(path.corners) - {0, 4} == {layer + 1 for layer in line.layers} - {4}


# --- trials ---------------------------------------------------------------------------------------


def test_the_recorded_trials_are_the_methods_own_with_paired_intervals() -> None:
    method, metas = findings(SubTuning, layers=2, samples=12, trial_steps=2, trial_batch=4)
    found = trials_of(metas)
    assert found is not None
    assert (found.fit, found.held, found.steps, found.batch) == (6, 6, 2, 4)
    assert [{t.layer: t.loss for t in each.trials} for each in found.rounds] == method.profile
    before: tuple[int, ...] = ()
    for each in found.rounds:
        best = min(each.trials, key=lambda trial: trial.loss)
        assert each.chosen == best.layer
        assert best.interval is None
        for trial in each.trials:
            own, least = (method._each[(*before, layer)] for layer in (trial.layer, each.chosen))
            assert own.mean() == pytest.approx(trial.loss, rel=1e-5)
            assert trial.behind == pytest.approx(own.mean() - least.mean())
            if trial is not best:
                expected = stats.ttest_rel(own, least).confidence_interval(0.95)
                assert trial.interval == pytest.approx((expected.low, expected.high))
                assert (trial.layer in each.close) == (expected.low <= 0)
        before = (*before, each.chosen)


def test_a_trial_without_a_finite_loss_is_counted_and_one_held_example_tells_nothing() -> None:
    with np.errstate(all="ignore"):
        method, _ = findings(SubTuning, layers=1, samples=2, trial_steps=1)
    method.profile[0][3] = float("inf")
    found = trials_of({"findings": json.loads(json.dumps(method.findings(), allow_nan=False))})
    assert found is not None
    (only,) = found.rounds
    assert only.failed == 1
    assert len(only.trials) == 3
    assert all(trial.interval is None for trial in only.trials)
    assert set(only.close) == {trial.layer for trial in only.trials} - {only.chosen}


# --- importance -----------------------------------------------------------------------------------


def test_importance_is_recorded_at_every_judgement_also_through_a_stop(home, small, monkeypatch) -> None:
    data = spec_data(small, IST_RUN, lr=0.05, steps=12)
    straight, stopped = submit(home, data), submit(home, data)
    assert run_job(home, straight, Caches()) == "finished", Runs(home).get(straight).error
    stop(home, stopped, 7, monkeypatch)
    go_on(home, stopped)
    with reader_of(home, straight) as one, reader_of(home, stopped) as other:
        whole, resumed = importance(one), importance(other)
    assert whole.steps.tolist() == [0, 3, 6, 9]
    assert not whole.values[0].any()
    assert np.ptp(whole.values[-1]) > 0
    assert (whole.layers, whole.interval, whole.drawn, whole.suppressed, whole.sets) == ((0, 1), 3, 1, 1, 2)
    assert whole.examples == (16, 16)
    np.testing.assert_allclose(whole.weights[0], 0.5)
    assert resumed.steps.tolist() == whole.steps.tolist()
    assert np.array_equal(resumed.values, whole.values)


def test_many_judgements_are_all_kept_by_a_recording(home, small, monkeypatch) -> None:
    monkeypatch.setattr("engine.export.recording.FRAMES", 4)
    run_id = submit(home, spec_data(small, IST_RUN | {"interval": 1}, lr=0.05, steps=12))
    assert run_job(home, run_id, Caches()) == "finished"
    with opened(home, run_id) as finished:
        replay, own = importance(Recording(record(finished))), importance(finished.reader)
    assert len(own.steps) > 8
    assert np.array_equal(replay.values, own.values)


def test_what_is_judged_is_described_as_it_is_drawn() -> None:
    method, metas = findings(IST, share=0.5, samples=7, candidates=100)
    about = metas["findings"]["importance"]
    assert about["drawn"] == len(method.drawn(0)) == 2
    assert about["sets"] == len(method._draw(method.importance, 0.5, [0, 1], 100)) == 6
    assert about["examples"] == [7, 7, 7, 3]


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ({"name": "rdp_lora", "layers": 1, "rank": 2}, path_of),
        ({"name": "subtuning", "layers": 2, "samples": 16, "trial_steps": 2}, trials_of),
        ({"name": "surgical", "layers": 1, "samples": 6}, scores_of),
        ({"name": "tuned_heads", "heads": 1, "samples": 6}, scores_of),
    ],
)
def test_a_run_records_its_findings_once_and_a_recording_keeps_them(home, small, monkeypatch, method, read) -> None:
    run_id = submit(home, spec_data(small, method, lr=0.01))
    stop(home, run_id, 5, monkeypatch)
    with reader_of(home, run_id) as reader:
        begun = reader.meta("findings")
    go_on(home, run_id)
    with opened(home, run_id) as finished:
        assert finished.reader.meta("findings") == begun
        assert Recording(record(finished)).meta("findings") == begun
    assert read({"findings": begun}) is not None


def test_a_record_without_findings_gives_none(home, small) -> None:
    run_id = submit(home, spec_data(small, {"name": "fish"}, lr=0.01))
    assert run_job(home, run_id, Caches()) == "finished"
    with reader_of(home, run_id) as reader:
        metas = reader.metas()
    assert "findings" not in metas
    assert path_of(metas) is trials_of(metas) is scores_of(metas) is importance_of(metas, []) is None
    assert importance_of({"findings": {"importance": {}}}, []) is None
