"""What a config.json claims is compared with the weights, at once and before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from engine.errors import ModelError
from engine.models.catalogue import resolve_model
from engine.models.claims import _FUNCTIONS
from engine.models.loading import load_classifier, load_language_model
from tests.models.saved import CONFIGS, save_tiny

pytestmark = pytest.mark.usefixtures("home")
HUGE = 10**9


def claiming(folder: Path, name: str, **claims: Any) -> str:
    save_tiny(name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **claims}), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(("name", "key"), [("deberta-v3", "cls_dropout"), ("bert", "classifier_dropout")])
def test_a_rate_that_may_be_left_open_is_no_wrong_claim(name: str, key: str, tmp_path: Path) -> None:
    source = resolve_model(claiming(tmp_path / "model", name, **{key: None}))
    load_classifier(source, ("no", "yes"), head_seed=0, init_seed=0, dropout=0.0)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "key", "value", "why"),
    [
        ("bert", "num_hidden_layers", HUGE, "hold 2 layers"),
        ("bert", "num_hidden_layers", True, "whole number from 1"),
        ("bert", "num_hidden_layers", -1, "whole number from 1"),
        ("distilbert", "n_layers", HUGE, "hold 2 layers"),
        ("gpt2", "n_layer", 3, "hold 2 layers"),
        ("bert", "vocab_size", HUGE, "have 120"),
        ("bert", "max_position_embeddings", HUGE, "have 40"),
        ("gpt2", "n_positions", HUGE, "have 40"),
        ("bert", "type_vocab_size", "two", "whole number from 0"),
        ("llama", "intermediate_size", HUGE, "have 24"),
        ("gpt2", "n_inner", HUGE, "have 64"),
        ("bert", "hidden_size", 0, "whole number from 1"),
        ("llama", "hidden_size", HUGE, "16 wide"),
        ("bert", "num_attention_heads", 0, "whole number from 1"),
        ("bert", "num_attention_heads", 3, "cannot be divided"),
        ("llama", "num_key_value_heads", 0, "whole number from 1"),
        ("mistral", "head_dim", HUGE, "16 query rows"),
        ("bert", "hidden_act", "zzz", "no such function"),
        ("gpt2", "activation_function", ["gelu"], "no such function"),
        ("bert", "hidden_dropout_prob", None, "number from 0 to 1"),
        ("bert", "attention_probs_dropout_prob", "0.1", "number from 0 to 1"),
        ("bert", "pad_token_id", HUGE, "120 tokens"),
    ],
)
def test_a_claim_that_cannot_be_is_refused_by_name(name: str, key: str, value: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"config\.json says {key}: .*{why}"):
        resolve_model(claiming(tmp_path / "model", name, **{key: value}))


@pytest.mark.parametrize("name", CONFIGS)
def test_true_claims_pass(name: str, tmp_path: Path) -> None:
    assert resolve_model(claiming(tmp_path / "model", name)).header


def test_the_activation_functions_are_those_of_the_library() -> None:
    assert set(_FUNCTIONS.split()) <= set(ACT2FN)


@pytest.mark.parametrize("claim", [{"layer_norm_eps": None}, {"initializer_range": "wide"}])
def test_what_only_the_library_can_judge_is_refused_on_loading(claim: dict[str, Any], tmp_path: Path) -> None:
    source = resolve_model(claiming(tmp_path / "model", "bert", **claim))
    with pytest.raises(ModelError, match=f"cannot be loaded.*{next(iter(claim))}"):
        load_classifier(source, ["no", "yes"], head_seed=0, init_seed=0, dropout=0.0)


def test_a_deeply_nested_configuration_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    (folder / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        resolve_model(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value: float, tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinite values, the first in bert\.encoder\.layer\.1\.output"):
        load_classifier(resolve_model(str(folder)), ["no", "yes"], head_seed=0, init_seed=0, dropout=0.0)


def test_a_language_model_of_such_weights_is_refused_too(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.full_like(tensors["embed_tokens.weight"], float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinite values"):
        load_language_model(resolve_model(str(folder)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} as .*quantised"):
        resolve_model(str(folder))


def test_other_tensors_may_be_whole_numbers(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(40)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "embeddings.position_ids" in resolve_model(str(folder)).header
