"""The cost of selecting, on the small model: every side takes its turns, and what it keeps is counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from engine.bench import peaks, selective
from engine.errors import SpecError
from tests.small import spec_data


@pytest.fixture
def words(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))
    data = spec_data(small)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return [
        *("--model", data["model"], "--spec", str(tmp_path / "spec.yaml"), "--methods", "pafi,fish,id3"),
        *("--shares", "1", "--rounds", "2", "--block", "2", "--batch-size", "8", "--out", str(tmp_path / "out")),
    ]  # fmt: skip


def test_every_side_is_timed_and_what_it_keeps_is_counted(words: list[str], tmp_path: Path) -> None:
    assert selective.main(words) == 0
    (found,) = json.loads((tmp_path / "out" / "selective.json").read_text())["shares"].values()
    assert list(found["milliseconds"]) == ["dense AdamW", "pafi", "fish", "id3"]
    assert all(len(times) == 2 and min(times) > 0 for times in found["milliseconds"].values())
    dense, pafi, id3 = (found["kept"][name] for name in ("dense AdamW", "pafi", "id3"))
    head = 2 * (32 + 1)
    assert pafi["state"] == 8 * (found["budget"] + head)
    assert pafi["gradients"] == 4 * head, "the head's; all others were read and dropped"
    assert id3["state"] == pafi["state"], "after its last step ID3 has as many"
    assert dense["state"] == 2 * dense["gradients"]


def test_the_toolkit_must_be_installed_by_hand(words: list[str]) -> None:
    try:
        import selective_optimizers  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(SpecError, match="not installed"):
            selective.main([*words, "--toolkit"])
    else:
        assert selective.main([*words, "--toolkit"]) == 0


def test_the_bound_on_gradients_and_state() -> None:
    """Of MiniLM at 1 %, with its word embeddings as the largest tensor."""
    assert peaks.bound([11_720_448, 22_713_216 - 11_720_448], 227_132) == pytest.approx(0.202, abs=5e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_steps_hold_on_a_gpu(words: list[str], tmp_path: Path) -> None:
    assert selective.main([*words, "--device", "cuda"]) == 0
    (found,) = json.loads((tmp_path / "out" / "selective.json").read_text())["shares"].values()
    full, pafi, id3 = (found["peaks"][name] for name in ("full", "pafi", "id3"))
    assert 0 <= full["weights"] - full["gradients"] <= 1024, "all but the numbers of positions"
    assert 2 * full["gradients"] <= full["state"] < 3 * full["gradients"], "two moments, in the allocator's pieces"
    assert full["whole"] > full["weights"] + full["state"] + full["gradients"]
    assert pafi["gradients"] < id3["gradients"], "tensors without a chosen weight are frozen"
    assert id3["largest"] <= id3["gradients"] < full["gradients"] / 2, "one tensor's at a time, and the head's"
    assert id3["temporaries"] >= id3["largest"] / 2, "the gradients of a part are put together"
    assert all(12 * found["budget"] < held["state"] < full["state"] / 4 for held in (pafi, id3))
