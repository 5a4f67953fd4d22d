"""What memory and probes cost, measured in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from engine.bench import memory, probes
from tests.small import spec_data


@pytest.fixture
def words(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec_data(small)), encoding="utf-8")
    given = ["--spec", str(tmp_path / "spec.yaml"), "--models", str(small / "model"), "--methods", "lora"]
    return [*given, "--steps", "20", "--device", "cpu", "--out", str(tmp_path / "out")]


@pytest.mark.slow
def test_memory_is_measured_apart_and_its_parts_are_the_peak(words: list[str], tmp_path: Path) -> None:
    assert memory.main([*words, "--batch-sizes", "4"]) == 0
    (row,) = json.loads((tmp_path / "out" / "memory.json").read_text())["table"]
    assert row["estimated"] / row["measured"] == pytest.approx(1 + row["off"])
    assert sum(row["parts"].values()) == row["phases"]["training"] <= row["measured"]
    assert min(row["parts"].values()) >= 0
    assert {"loading", "preparing", "training", "evaluating"} == set(row["phases"])


@pytest.mark.slow
def test_probes_stay_within_what_they_may_cost(words: list[str], tmp_path: Path) -> None:
    assert probes.main(words) == 0
    (row,) = json.loads((tmp_path / "out" / "probes.json").read_text())["table"]
    assert 0 < row["probes"] <= row["allowed"]
    assert row["frames"]["change"] >= 2
