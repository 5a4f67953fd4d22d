"""Answer times: base and trained model in turns, merged where that is another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training import latency
from engine.training.build import Caches, build, encoded_splits
from engine.training.run import run_job
from tests.small import spec_data
from tests.training.test_run import submit


@pytest.mark.parametrize(("method", "merges"), [("full", False), ("bitfit", False), ("lora", True)])
def test_what_is_asked_depends_on_the_method(home: Path, small: Path, method: str, merges: bool) -> None:
    spec, caches = make_plan(parse_spec(spec_data(small, method))).spec, Caches()
    built = build(spec, caches)
    training = built.model.training
    found = latency.measure(built, encoded_splits(spec, built.setting, caches)["test"])
    assert ("merged" in found) == merges
    assert min(found[name] for name in ("base", "trained", *(["merged"] if merges else []))) > 0
    assert found["rounds"] >= 3
    assert built.model.training == training


def test_a_run_is_not_lost_where_there_is_no_room_for_copies(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("engine.training.latency._question", lambda *given: full(given))
    run_id = submit(home, spec_data(small, "bitfit"))
    assert run_job(home, run_id, Caches()) == "finished"
    summary = Runs(home).get(run_id).summary
    assert summary is not None
    assert summary["latency"] is None


def test_rounds_take_turns_and_end_in_time() -> None:
    asked: list[str] = []
    questions: dict[str, Any] = {name: (lambda name=name: asked.append(name)) for name in ("base", "trained")}
    times = latency._interleaved(questions, latency.SECONDS)
    assert asked[:4] == ["base", "trained", "base", "trained"]
    assert len(times["base"]) == len(times["trained"]) == latency.ROUNDS, "the first round only warms up"
