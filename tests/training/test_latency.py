"""Answer times: base and trained model in turns, merged where that is another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.plan import make_plan
from engine.spec import parse_spec
from engine.training import latency
from engine.training.build import Caches, build, encoded_splits
from tests.small import spec_data


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


def test_rounds_take_turns_and_end_in_time() -> None:
    asked: list[str] = []
    questions: dict[str, Any] = {name: (lambda name=name: asked.append(name)) for name in ("base", "trained")}
    times = latency._interleaved(questions)
    assert asked[:4] == ["base", "trained", "base", "trained"]
    assert len(times["base"]) == len(times["trained"]) == latency.ROUNDS, "the first round only warms up"
