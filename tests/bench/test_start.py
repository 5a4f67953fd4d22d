"""The click to the first live point, timed through a real engine on the small model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from engine.bench import start
from tests.small import spec_data


def test_cold_and_warm_runs_are_timed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path))  # restored afterwards, since the benchmark sets its own
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_data(small, "bitfit", steps=20)), encoding="utf-8")
    assert start.main(["--spec", str(spec), "--repeats", "2", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "start.json").read_text())
    assert len(report["warm"]) == 2
    for timed in (report["cold"], *report["warm"]):
        assert 0 < timed["planned"] < timed["first_point"] < timed["finished"]
    assert report["cold"]["first_point"] > min(each["first_point"] for each in report["warm"])
