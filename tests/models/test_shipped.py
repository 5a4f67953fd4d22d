"""The models that come with the lab: what their cards say, and what is promised of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.models import catalogue
from engine.models.catalogue import SHIPPED, default_model, models, resolve_model
from engine.models.loading import load_classifier, load_language_model
from engine.prompting.measure import by_shots, load_speaker

NANO = ("nano-bert", "nano-llama")


def test_all_are_small_enough_for_the_repository() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 24 * 2**20


@pytest.mark.parametrize("name", NANO)
def test_it_is_listed_and_is_what_its_card_says(home: Path, name: str) -> None:
    entry = next(entry for entry in models() if entry.id == name)
    assert (entry.available, entry.licence) == (True, "Apache-2.0")
    source, card = resolve_model(name), (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    made = json.loads((SHIPPED / name / "made.json").read_text(encoding="utf-8"))
    assert source.sha256 == made["sha256"]
    for told in (made["parameters"], made["settings"]["steps"], made["texts"]["forbidden_hashes"]):
        assert f"{told:,}" in card
    model = load_classifier(source, ("bad", "good"), head_seed=0, init_seed=0, dropout=0.0)
    head = {"classifier.weight", "classifier.bias", "score.weight"}
    assert sum(p.numel() for n, p in model.named_parameters() if n not in head) <= made["parameters"]


def test_other_weights_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SHIPPED / "nano-bert", tmp_path / "nano-bert")
    made = tmp_path / "nano-bert" / "made.json"
    made.write_text(json.dumps(json.loads(made.read_text()) | {"sha256": "other"}))
    monkeypatch.setattr(catalogue, "SHIPPED", tmp_path)
    with pytest.raises(ModelError, match="not those that its card describes"):
        resolve_model("nano-bert")


def test_a_clone_without_its_files_says_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "SHIPPED", tmp_path)
    entry = next(entry for entry in models() if entry.id == "nano-bert")
    assert not entry.available
    assert "assets/models" in entry.reason
    with pytest.raises(ModelError, match="check out the project again"):
        resolve_model("nano-bert")


def test_a_newcomer_on_a_processor_is_offered_the_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "cuda_devices", lambda: 0)
    assert default_model() == "nano-bert"
    monkeypatch.setattr(catalogue, "cuda_devices", lambda: 1)
    assert default_model() == "minilm-l6"


def test_nano_llama_is_a_llama_with_grouped_queries(home: Path) -> None:
    config = load_language_model(resolve_model("nano-llama")).config
    assert config.model_type == "llama"
    assert config.num_key_value_heads < config.num_attention_heads


def test_nano_llama_adds_one_digit_numbers_in_context(home: Path) -> None:
    (row,) = by_shots(load_speaker("nano-llama"), "sums", [8])["rows"]
    assert row["correct"] >= 60
