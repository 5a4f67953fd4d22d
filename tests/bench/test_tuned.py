"""Accuracy at tuned rates, on the small model: the grid, the choice, the table and what is not repeated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from engine.bench import tuned
from tests.small import spec_data


@pytest.mark.slow
def test_each_method_meets_the_test_set_at_its_best_rate(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_data(small)), encoding="utf-8")
    words = ["--methods", "full,pafi,bitfit", "--budgets", "30,1000", "--rates", "1e-6,5e-3", "--seeds", "2"]
    words += [
        "--steps",
        "30",
        "--batch-size",
        "8",
        "--spec",
        str(spec),
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert tuned.main(words) == 0
    first = capsys.readouterr().out
    assert "bitfit at 30 is left out" in first
    report = json.loads((tmp_path / "out" / "tuned.json").read_text())
    assert [(row["method"], row["budget"]) for row in report["table"]] == [
        ("full", None), ("pafi", 30), ("pafi", 1000), ("bitfit", 1000),
    ]  # fmt: skip
    full = report["table"][0]
    assert full["rate"] == 5e-3, "at 1e-6 nothing is learned"
    assert full["at_an_end"]
    assert len(full["values"]) == 2
    assert full["validation"]["0.005"] > full["validation"]["1e-06"]
    assert set(report["verdicts"]) == {"30", "1000"}
    assert tuned.main(words) == 0
    assert capsys.readouterr().out.count("0 runs in") == 2, "what was finished is not repeated"
