"""Promises about whole runs: exactly K weights, seeds that each set one thing, endings that lose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from engine.methods.observed import Selection
from engine.plan import make_plan, read_setting
from engine.spec import parse_spec
from engine.store.run_file import RunWriter
from engine.store.runs import Runs
from engine.tasks.order import batch_order
from engine.training import checkpoint
from engine.training.build import Built, Caches, base_model, build, encoded_splits
from engine.training.costs import PeakMemory
from engine.training.courtesy import Courtesy
from engine.training.execution import EagerSteps, StepWork
from engine.training.loop import Loop
from engine.training.phases import optimizer_scalars
from engine.training.recipe import prepare_torch
from engine.training.run import run_job
from tests.small import spec_data
from tests.training.test_run import StopAt, go_on, series, stop, submit


class GoOn:
    """Never asks a run to stop."""

    def stop_requested(self) -> Literal["keep", "discard"] | None:
        return None


def trained(data: dict[str, Any], folder: Path) -> tuple[Built, Loop]:
    """A run's objects after its last step, as the loop leaves them."""
    plan = make_plan(parse_spec(data))
    prepare_torch(plan.spec.train)
    caches = Caches()
    built = build(plan.spec, caches)
    splits = encoded_splits(plan.spec, built.setting, caches)
    with RunWriter(folder / "run.db") as sink, Courtesy() as courtesy:
        loop = Loop(built, splits, sink, GoOn(), courtesy, folder, PeakMemory("cpu"))
        loop.run()
    return built, loop


def assert_exactly(k: int, built: Built, loop: Loop) -> None:
    """K weights were selected, each once; nothing outside them and the head has changed by one bit."""
    selection = built.method.selection()
    assert isinstance(selection, Selection)
    entries = set(zip(selection.tensor.tolist(), selection.index.tolist(), strict=True))
    assert len(selection.index) == len(entries) == k
    chosen: dict[str, np.ndarray] = {}
    for number, row in enumerate(selection.parameters):
        chosen[row.name] = selection.index[selection.tensor == number]
    head = {name for name, _ in built.head}
    base = dict(built.base.named_parameters())
    moved = 0
    for name, parameter in built.model.named_parameters():
        differs = (parameter.detach().view(torch.int32) != base[name].detach().view(torch.int32)).flatten()
        if name in head:
            assert differs.any(), name
            continue
        moved += int(differs.sum())
        differs[torch.from_numpy(chosen.get(name, np.empty(0, np.int32))).long()] = False
        assert not differs.any(), f"{name} changed outside the selection"
    assert 0.9 * k < moved <= k, "and the selected ones did change"
    assert optimizer_scalars(built) == 2 * k
    held = sum(t.numel() for state in loop.steps.optimizer.state.values() for t in state.values() if t.ndim)  # type: ignore[union-attr]
    assert held == 2 * sum(parameter.numel() for _, parameter in built.head), "the dense optimizer has the head alone"


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("k", [5, 300])
def test_id3_changes_exactly_k_weights(home: Path, small: Path, tmp_path: Path, k: int, decay: float) -> None:
    built, loop = trained(spec_data(small, {"name": "id3", "k": k}, lr=0.01, weight_decay=decay), tmp_path)
    assert_exactly(k, built, loop)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_id3_changes_exactly_5000_weights_of_minilm(home: Path, tmp_path: Path, decay: float) -> None:
    data = {
        "model": "minilm-l6",
        "dataset": "rotten_tomatoes",
        "method": "id3",
        "budget": {"params": 5_000},
        "train": {"steps": 4, "batch_size": 8, "lr": 1e-3, "weight_decay": decay, "device": "cpu"},
    }
    built, loop = trained(data, tmp_path)
    assert_exactly(5_000, built, loop)
    assert make_plan(parse_spec(data)).memory_bytes / 2.5 < loop.recorder.memory.bytes()


def parts(data: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of a run decide before its first step."""
    spec = make_plan(parse_spec(data)).spec
    built = build(spec, Caches())
    base = {name: tensor for name, tensor in built.base.named_parameters() if not name.startswith("classifier")}
    return {
        "head": torch.cat([parameter.detach().flatten() for _, parameter in built.head]),
        "init": torch.cat([parameter.detach().flatten() for _, parameter in built.method.parameters()]),
        "data": torch.from_numpy(batch_order(328, 8, 12, spec.train.seed_of("data"))),
        "base": torch.cat([tensor.detach().flatten() for tensor in base.values()]),
    }


@pytest.mark.parametrize(
    ("train", "changed"),
    [
        ({"seeds": {"head": 7}}, {"head"}),
        ({"seeds": {"init": 7}}, {"init"}),
        ({"seeds": {"data": 7}}, {"data"}),
        ({"seeds": {"method": 7}}, set()),
        ({"seed": 7}, {"head", "init", "data"}),
        ({"seed": 7, "seeds": {"head": 0, "init": 0, "data": 0, "method": 0}}, set()),
    ],
)
def test_each_seed_sets_one_thing(home: Path, small: Path, train: dict[str, Any], changed: set[str]) -> None:
    before = parts(spec_data(small, {"name": "lora", "rank": 2}))
    after = parts(spec_data(small, {"name": "lora", "rank": 2}, **train))
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


@pytest.mark.parametrize("stream", ["head", "init", "data"])
def test_each_seed_changes_the_run(home: Path, small: Path, stream: str) -> None:
    method = {"name": "lora", "rank": 2}
    runs = [
        submit(home, spec_data(small, method, lr=0.01, steps=4)),
        submit(home, spec_data(small, method, lr=0.01, steps=4, seeds={stream: 7})),
        submit(home, spec_data(small, method, lr=0.01, steps=4, seeds={stream: 0})),
    ]
    caches = Caches()
    assert [run_job(home, run_id, caches) for run_id in runs] == ["finished"] * 3
    first, other, spelt_out = (series(home, run_id) for run_id in runs)
    assert first["train/loss"] != other["train/loss"]
    assert first == spelt_out


def test_weights_spoilt_by_the_very_last_step_are_divergence(home: Path, small: Path) -> None:
    """The loss of the last step is still that of good weights."""
    run_id = submit(home, spec_data(small, "full", lr=1e30, steps=1))
    assert run_job(home, run_id, Caches()) == "diverged"
    row = Runs(home).get(run_id)
    assert "validation loss at step 1 is" in str(row.error)
    assert [step for step, _ in series(home, run_id)["train/loss"]] == [1]
    saved = checkpoint.read(Runs(home).folder(run_id).checkpoint)
    assert saved is not None
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values() if tensor.is_floating_point())


def test_no_checkpoint_is_taken_of_a_gradient_that_is_not_finite(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is finite, its update is not: the checkpoint from before must stay."""
    monkeypatch.setattr("engine.training.loop.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("engine.training.loop.CHECKPOINT_SECONDS", 0.0)
    apply = StepWork.apply

    def poisoned(self: StepWork, step: int, lr: float) -> torch.Tensor:
        if step == 3:
            gradient = self.built.dense[0][1].grad
            assert gradient is not None
            gradient.mul_(float("inf"))
        return apply(self, step, lr)

    monkeypatch.setattr(StepWork, "apply", poisoned)
    run_id = submit(home, spec_data(small, "full", lr=0.01))
    assert run_job(home, run_id, Caches()) == "diverged"
    assert "gradient's norm at step 4" in str(Runs(home).get(run_id).error)
    saved = checkpoint.read(Runs(home).folder(run_id).checkpoint)
    assert saved is not None
    assert saved.step == 3
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values() if tensor.is_floating_point())


def test_a_run_that_starts_again_shows_nothing_from_before(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.training.loop.FLUSH_SECONDS", 0.0)
    run_id, runs = submit(home, spec_data(small, {"name": "id3", "k": 300}, steps=50)), Runs(home)
    for step in (9, 4):
        monkeypatch.setattr(
            "engine.training.job.RowControl", lambda runs, run_id, at=step: StopAt(runs, run_id, at, "discard")
        )
        assert run_job(home, run_id, Caches()) == "stopped"
        assert len(series(home, run_id)["train/loss"]) == step
        runs.resume(run_id, "test")
        assert runs.claim(run_id, "here", {"pid": 0})
        runs.progress(run_id, "training", 0, 50)


def test_a_resumed_run_counts_the_time_before_and_teaches_no_speed(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, runs = submit(home, spec_data(small, "bitfit", steps=20)), Runs(home)
    stop(home, run_id, 15, monkeypatch)
    saved = checkpoint.read(runs.folder(run_id).checkpoint)
    assert saved is not None
    go_on(home, run_id)
    summary = runs.get(run_id).summary
    assert summary is not None
    assert summary["seconds"] > saved.state["elapsed"] >= saved.state["seconds"] > 0
    assert not (home / "speed.json").exists(), "a part of a run says little about a whole one"
    whole = submit(home, spec_data(small, "bitfit", steps=20))
    assert run_job(home, whole, Caches()) == "finished"
    assert (home / "speed.json").exists()


def test_a_result_is_not_lost_because_its_speed_cannot_be_kept(home: Path, small: Path) -> None:
    (home / "speed.json").mkdir()
    run_id = submit(home, spec_data(small, "bitfit", steps=2))
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error


def test_a_mistake_of_any_kind_ends_the_run_in_words(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(self: EagerSteps, step: int) -> int:
        raise IndexError("index 7 is out of bounds")

    run_id = submit(home, spec_data(small, "bitfit"))
    monkeypatch.setattr(EagerSteps, "take", mistaken)
    assert run_job(home, run_id, Caches()) == "failed"
    assert "IndexError: index 7 is out of bounds" in str(Runs(home).get(run_id).error)


def test_the_caches_are_left_as_they_were(home: Path, small: Path) -> None:
    """A warm worker's base model is copied, never trained."""
    caches = Caches()
    data = spec_data(small, "full", lr=0.01)
    first = submit(home, data)
    assert run_job(home, first, caches) == "finished"
    spec = make_plan(parse_spec(data)).spec
    fresh = base_model(spec, read_setting(spec), Caches()).state_dict()
    (kept,) = caches.models.values()
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name
