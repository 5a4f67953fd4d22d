"""Whole runs on a small model: results, determinism, resume, stop, divergence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import EngineError
from engine.methods.registry import method_named, methods
from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.run_reader import RunReader
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.execution import EagerSteps
from engine.training.run import run_job
from tests.small import spec_data, write_data

COSTS = ("cost/", "step/seconds")


def submit(home: Path, data: dict[str, Any]) -> str:
    """Plan and record a run as active, as a worker finds it."""
    plan = make_plan(parse_spec(data))
    runs = Runs(home)
    run_id = runs.submit(plan.spec, plan.to_json(), owner="test", slot="here", worker={"pid": 0})
    runs.close()
    return run_id


def series(home: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run but time and memory, without thinning."""
    with RunReader(Runs(home).folder(run_id).database) as reader:
        found = reader.scalars(max_points=10**6)
    return {
        key: list(zip(steps.tolist(), values.tolist(), strict=True))
        for key, (steps, values) in found.items()
        if not key.startswith(COSTS)
    }


def settings_of(name: str, k: int) -> dict[str, Any]:
    """A method with its own settings, but k weights where it selects so many."""
    return {"name": name, **({"k": k} if "k" in method_named(name).Config.model_fields else {})}


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_runs_to_a_result(home: Path, small: Path, method: str) -> None:
    run_id = submit(home, spec_data(small, settings_of(method, 500), lr=0.01))
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
    row = Runs(home).get(run_id)
    assert row.summary is not None
    assert row.summary["params"]["total"] == row.summary["params"]["method"] + row.summary["params"]["head"]
    low, high = row.summary["accuracy"]["ci95"]
    assert low <= row.summary["accuracy"]["test"] <= high
    found = series(home, run_id)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    assert found["validation/accuracy"][0][0] == 0
    assert all(math.isfinite(value) for points in found.values() for _, value in points)
    assert not Runs(home).folder(run_id).checkpoint.exists()
    assert (Runs(home).folder(run_id).result / "trained.safetensors").is_file()


def test_the_same_spec_gives_the_same_numbers_twice_in_a_warm_process(home: Path, small: Path) -> None:
    caches = Caches()
    runs = [submit(home, spec_data(small, {"name": "lora", "rank": 2}, lr=0.01)) for _ in range(2)]
    between = submit(home, spec_data(small, "full", lr=0.01, seed=5))
    for run_id in (runs[0], between, runs[1]):
        assert run_job(home, run_id, caches) == "finished"
    assert series(home, runs[0]) == series(home, runs[1])
    assert series(home, runs[0]) != series(home, between)


def test_the_record_says_on_how_many_validation_examples_the_curve_is_measured(home: Path, small: Path) -> None:
    run_id = submit(home, spec_data(small, "linear_probe", lr=0.01))
    assert run_job(home, run_id, Caches()) == "finished"
    with RunReader(Runs(home).folder(run_id).database) as reader:
        curve = reader.meta("curve")
    assert 0 < curve["items"] == curve["of"] <= 256


class StopAt:
    """Asks to stop once so many steps are done."""

    def __init__(self, runs: Runs, run_id: str, step: int, how: Literal["keep", "discard"]) -> None:
        self.done = lambda: runs.get(run_id).step
        self.step, self.how = step, how

    def stop_requested(self) -> Literal["keep", "discard"] | None:
        return self.how if self.done() >= self.step else None


def stop(home: Path, run_id: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute a run until so many steps are done, and stop it there with its checkpoint kept."""
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.loop.FLUSH_SECONDS", 0.0)
        patch.setattr("engine.training.job.RowControl", lambda runs, run_id: StopAt(runs, run_id, step, "keep"))
        assert run_job(home, run_id, Caches()) == "stopped", Runs(home).get(run_id).error


def wake(home: Path, run_id: str) -> None:
    """Let a stopped run be executed again."""
    Runs(home).resume(run_id, "test")
    assert Runs(home).claim(run_id, "here", {"pid": 0})


def go_on(home: Path, run_id: str) -> None:
    """Execute a stopped run to its end."""
    wake(home, run_id)
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error


@pytest.mark.parametrize(
    "method",
    [
        *(settings_of(name, 300) for name in sorted(methods())),
        {"name": "id3", "k": 60, "on": {"name": "lora", "rank": 4}},
    ],
    ids=lambda method: f"{method['name']}{'-on' if 'on' in method else ''}",
)
def test_a_stopped_run_resumes_as_if_never_stopped(
    home: Path, small: Path, method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = spec_data(small, method, lr=0.01, steps=20)
    straight, stopped = submit(home, data), submit(home, data)
    assert run_job(home, straight, Caches()) == "finished", Runs(home).get(straight).error
    stop(home, stopped, 8, monkeypatch)
    assert len(series(home, stopped)["train/loss"]) == 8
    go_on(home, stopped)
    runs = Runs(home)
    assert series(home, stopped) == series(home, straight)
    ours, theirs = ((runs.folder(run).result / "trained.safetensors") for run in (straight, stopped))
    for key, tensor in load_file(theirs).items():
        assert torch.equal(load_file(ours)[key], tensor), key


def test_pafis_mask_does_not_depend_on_the_data(home: Path, small: Path, tmp_path: Path) -> None:
    """Two files of other sentences, the same lengths allowed: the same entries, whatever was learned."""
    masks = []
    for seed in (0, 7):
        data = spec_data(small, {"name": "pafi", "k": 400}, lr=0.01)
        data["dataset"] |= {"source": str(write_data(tmp_path / f"{seed}.tsv", seed=seed))}
        run_id = submit(home, data)
        assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
        with RunReader(Runs(home).folder(run_id).database) as reader:
            masks.append(reader.selection())
    assert all((masks[0][key] == masks[1][key]).all() for key in ("tensor", "index"))


def test_entries_that_never_get_a_gradient_are_counted(home: Path, small: Path) -> None:
    run_id = submit(home, spec_data(small, {"name": "pafi", "k": 2000}, lr=0.01))
    assert run_job(home, run_id, Caches()) == "finished"
    found = series(home, run_id)["mask/unmoved"]
    assert found[0][1] == 2000, "before the first step none has one"
    assert 0 < found[-1][1] < 2000, "words that never occur are among the smallest weights"


def test_a_discarded_run_leaves_no_checkpoint(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = submit(home, spec_data(small, "bitfit", steps=50))
    monkeypatch.setattr("engine.training.loop.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("engine.training.job.RowControl", lambda runs, run_id: StopAt(runs, run_id, 3, "discard"))
    assert run_job(home, run_id, Caches()) == "stopped"
    assert not Runs(home).folder(run_id).checkpoint.exists()
    assert series(home, run_id)["train/loss"]


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_a_hopeless_learning_rate_ends_as_diverged_with_its_history(home: Path, small: Path, steps: int) -> None:
    run_id = submit(home, spec_data(small, "full", lr=1000.0, steps=steps))
    assert run_job(home, run_id, Caches()) == "diverged"
    row = Runs(home).get(run_id)
    assert row.todo == "Lower the learning rate."
    assert len(series(home, run_id)["train/loss"]) >= 1
    assert (Runs(home).folder(run_id).checkpoint / "last.safetensors").is_file()


def test_an_unexpected_error_is_told_in_plain_words(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(self: EagerSteps, step: int) -> int:
        raise MemoryError

    run_id = submit(home, spec_data(small, "bitfit"))
    monkeypatch.setattr(EagerSteps, "take", out_of_memory)
    assert run_job(home, run_id, Caches()) == "failed"
    assert Runs(home).get(run_id).error == "The device ran out of memory."


def test_a_damaged_checkpoint_says_so(home: Path, small: Path) -> None:
    run_id = submit(home, spec_data(small, "bitfit"))
    folder = Runs(home).folder(run_id).checkpoint
    folder.mkdir()
    (folder / "last.safetensors").write_bytes(b"not a checkpoint")
    assert run_job(home, run_id, Caches()) == "failed"
    assert "damaged" in str(Runs(home).get(run_id).error)


def test_a_budget_above_the_model_is_refused(home: Path, small: Path) -> None:
    spec = parse_spec(spec_data(small, "id3") | {"budget": {"params": 10**9}})
    with pytest.raises(EngineError, match="above the model"):
        make_plan(spec)


def test_resolving_a_resolved_spec_changes_nothing(home: Path, small: Path) -> None:
    plan = make_plan(parse_spec(spec_data(small, "lora") | {"budget": {"params": 400}}))
    assert make_plan(plan.spec).spec == plan.spec
    assert plan.params.method <= 400
