"""The speed comparison: both sides train alike, in pairs, and a decoder is refused in words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from engine.bench import steps
from engine.errors import SpecError
from tests.small import spec_data


@pytest.fixture
def spec(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model, with what plain transformers needs to find its tokenizer, as a spec file."""
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    shutil.copytree(small / "model", tmp_path / "model")
    shutil.copyfile(small / "data.tsv", tmp_path / "data.tsv")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 32}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec_data(tmp_path)), encoding="utf-8")
    return tmp_path / "spec.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["bare", "logged", "trainer"])
def test_both_sides_see_the_same_losses(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loop: str
) -> None:
    words = ["--models", str(tmp_path / "model"), "--methods", "lora", "--pairs", "2", "--steps", "8", "--fused"]
    words += ["--loop", loop]
    assert steps.main([*words, "--spec", str(spec), "--out", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "steps.json").read_text())["table"]
    assert len(row["ratios"]) == 2
    assert min(row["ratios"]) > 0
    assert row["apart"] < 1e-4
    assert row["execution"] == "ragged"
    assert "losses apart" in capsys.readouterr().out


def test_a_decoder_is_refused(home: Path) -> None:
    with pytest.raises(SpecError, match="is a decoder"):
        steps.main(["--models", "nano-llama", "--pairs", "1"])
