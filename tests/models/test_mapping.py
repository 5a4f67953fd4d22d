"""The architecture map: roles of every family, and what cannot be mapped."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from engine.errors import ModelError
from engine.models.architecture import LINEAR_ROLES, Architecture
from engine.models.mapping import architecture_from_names
from tests.models.saved import CONFIGS
from tests.tiny import architecture_of, tiny_bert, tiny_llama

ENCODER = {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}
LINEARS = {
    **{name: ENCODER for name in CONFIGS if CONFIGS[name][0] not in ("gpt2", "llama", "mistral", "qwen2")},
    "gpt2": {"qkv": 1, "o": 1, "up": 1, "down": 1},
    **{name: {**ENCODER, "gate": 1} for name in ("llama", "mistral", "qwen2")},
}


def mapped(name: str) -> Architecture:
    model_type, settings = CONFIGS[name]
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **settings, num_labels=3))
    return architecture_of(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_has_each_linear_role_once(name: str) -> None:
    architecture = mapped(name)
    for layer in range(2):
        roles = [p.role for p in architecture.linears() if p.layer == layer]
        assert {role: roles.count(role) for role in set(roles)} == LINEARS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_placed_and_parted(name: str) -> None:
    architecture = mapped(name)
    assert architecture.layers == 2
    assert architecture.hidden == 16
    assert architecture.max_positions == (38 if "roberta" in name or name in ("camembert", "mpnet") else 40)
    for row in architecture.parameters:
        assert row.part == ("bias" if row.name.endswith(".bias") else "weight")
        assert (0 <= row.layer < 2) == (".0." in row.name or ".1." in row.name)
    token = architecture.linears(["up"])[0]
    assert token.transposed == (name == "gpt2")
    assert {p.shape for p in architecture.head if p.part == "weight"} >= {(3, 16)}


def test_bert_tells_the_two_output_denses_and_norms_apart() -> None:
    architecture = architecture_of(tiny_bert())
    block = "bert.encoder.layer.1."
    assert architecture.find(block + "attention.output.dense.weight").role == "o"
    assert architecture.find(block + "output.dense.weight").role == "down"
    assert architecture.find(block + "attention.output.LayerNorm.bias").role == "norm_1"
    assert architecture.find(block + "output.LayerNorm.weight").role == "norm_2"


def test_pooler_is_backbone_and_classifier_is_head() -> None:
    architecture = architecture_of(tiny_bert())
    assert [p.name for p in architecture.head] == ["classifier.weight", "classifier.bias"]
    assert [p.name for p in architecture.backbone if p.role == "pooler"] == [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    ]


def test_whether_key_biases_are_alive() -> None:
    assert mapped("qwen2").key_bias_alive
    assert mapped("deberta-v2").key_bias_alive
    assert not mapped("bert").key_bias_alive
    assert not mapped("gpt2").key_bias_alive


def test_every_parameter_is_counted_once() -> None:
    for model in tiny_bert(), tiny_llama():
        assert sum(p.size for p in architecture_of(model).parameters) == sum(p.numel() for p in model.parameters())


def test_linear_roles_leave_out_embeddings_and_pooler() -> None:
    names = [p.name for p in architecture_of(tiny_bert()).linears(LINEAR_ROLES)]
    assert len(names) == 12
    assert not any("embeddings" in name or "pooler" in name for name in names)


def test_unknown_type_names_the_supported_ones() -> None:
    with pytest.raises(ModelError, match=r"'t5'.*bert.*llama.*qwen2"):
        architecture_from_names({"model_type": "t5"}, [("shared.weight", (10, 4))])


def test_names_without_a_head_are_refused() -> None:
    shapes = [(n, tuple(p.shape)) for n, p in tiny_bert().named_parameters() if not n.startswith("classifier")]
    with pytest.raises(ModelError, match="AutoModelForSequenceClassification"):
        architecture_from_names({"model_type": "bert"}, shapes)
