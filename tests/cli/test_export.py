"""What `export` writes, byte for byte as promised, read by those it is meant for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from engine.models.catalogue import resolve_model
from engine.plan import read_setting
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches, encoded_splits
from engine.training.evaluation import predict
from tests.cli.conftest import Stock, call

METADATA = {"format", "k", "method", "eligibility", "spec_hash", "base_sha256"}


def test_a_delta_file_is_what_was_promised(stock: Stock, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "id3.safetensors"
    said = call("export", stock.id3_id, "--as", "delta", "--to", path, "--json")
    assert said.json == {"run": stock.id3_id, "format": "delta", "file": str(path)}
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    base = load_file(small / "model" / "model.safetensors")
    row = Runs(stock.home).get(stock.id3_id)
    assert set(metadata) >= METADATA
    assert metadata["format"] == "1"
    assert metadata["k"] == "301"
    assert metadata["method"] == "id3"
    assert metadata["spec_hash"] == row.spec_hash
    assert metadata["base_sha256"] == resolve_model(str(small / "model")).sha256
    eligible = json.loads(metadata["eligibility"])
    assert eligible["exclude"] == []
    names = {name.rpartition(".")[0] for name in tensors if not name.startswith("head.")}
    assert set(tensors) == {f"{name}.{part}" for name in names for part in ("index", "value", "step")} | {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    assert tensors["head.classifier.weight"].shape == (2, 32)
    steps = []
    for name in names:
        index, value, step = (tensors[f"{name}.{part}"] for part in ("index", "value", "step"))
        whole = base[name.removeprefix("bert.")]
        assert index.dtype == step.dtype == np.int32
        assert value.dtype == whole.dtype == np.float32
        assert index.ndim == 1
        assert index.shape == value.shape == step.shape
        assert index.min() >= 0
        assert index.max() < whole.size
        assert (np.diff(index) > 0).all(), "flat positions, each once"
        assert len(index) <= eligible["eligible"][name]
        steps.append(step)
    # 301 over 12 steps: 25 at each, one more at the first.
    assert np.bincount(np.concatenate(steps)).tolist() == [26] + [25] * 11


def test_an_adapter_answers_as_the_run_did(stock: Stock, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    assert call("export", stock.lora_id, "--as", "peft", "--to", folder).out == f"wrote {folder}\n"
    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(small / "model", num_labels=2)
    row = Runs(stock.home).get(stock.lora_id)
    spec = parse_spec(row.spec)
    held_out = encoded_splits(spec, read_setting(spec), Caches())["test"]
    recorded = load_file(Runs(stock.home).folder(row.id).result / "test.safetensors")["logits"]
    before = predict(base, held_out, "cpu")
    assert np.abs(before - recorded).max() > 1e-3, "the base alone answers otherwise"
    after = predict(PeftModel.from_pretrained(base, folder), held_out, "cpu")
    np.testing.assert_allclose(after, recorded, atol=1e-6)


def test_the_exported_spec_repeats_the_run(stock: Stock, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    call("export", stock.lora_id, "--as", "spec", "--to", path)
    again = call("run", path, "--json").json
    first = stock.lora.last
    same = ("method", "params", "accuracy", "optimizer_state_scalars", "tokens")
    assert {key: again[key] for key in same} == {key: first[key] for key in same}
    assert Runs(stock.home).get(again["run"]).spec_hash == Runs(stock.home).get(first["run"]).spec_hash
