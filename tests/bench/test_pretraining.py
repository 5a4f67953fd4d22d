"""What pretraining is worth, measured on the small model: both sides tuned, then paired by seed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from engine.bench import pretraining
from tests.small import spec_data


@pytest.mark.slow
def test_both_sides_are_tuned_and_paired(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    data = spec_data(small)
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({key: data[key] for key in ("dataset", "method", "train")}), encoding="utf-8")
    words = ["--model", data["model"], "--rates", "1e-3,1e-2", "--seeds", "2", "--steps", "6", "--batch-size", "8"]
    assert pretraining.main([*words, "--spec", str(spec), "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert set(report["rates"]) == {"pretrained", "random"}
    assert [len(values) for values in report["test"].values()] == [2, 2]
    pairs = zip(report["test"]["pretrained"], report["test"]["random"], strict=True)
    expected = sum(one - other for one, other in pairs) / 2
    assert report["gain"]["estimate"] == pytest.approx(expected)
    weights = [load_file(tmp_path / "out" / "weights" / f"random-{seed}" / "model.safetensors") for seed in (0, 1)]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0]), "every seed has its own"
    assert "gain" in capsys.readouterr().out
