"""BitFit's own oracles: which biases, how many on known models, and where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, Qwen2Config

from engine.errors import BudgetError
from engine.methods.bitfit import BitFit
from engine.models.architecture import Architecture
from engine.models.checkpoint import architecture_of as catalogue_map
from engine.models.source import ModelSource
from engine.sparse.delta import apply_delta, delta_of
from tests.methods.driver import Training, batches_of, make, weights
from tests.models.saved import save_tiny
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

HALF = BitFit.Config(biases=("query", "intermediate"))


def names(architecture: Architecture, *biases: str, strict: bool = True) -> set[str]:
    config = BitFit.Config(biases=biases, strict=strict)
    return {row.name for row in BitFit.trainables(architecture, config)}


def bert(layers: int, hidden: int) -> Architecture:
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4 * hidden
    )
    with torch.device("meta"):
        return architecture_of(AutoModelForSequenceClassification.from_config(config))


def tiny_qwen() -> nn.Module:
    """Rotary positions and biases of query, key and value."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(
    ("layers", "hidden", "every", "half"), [(12, 768, 102_912, 46_080), (24, 1024, 272_384, 122_880)]
)
def test_the_famous_counts(layers: int, hidden: int, every: int, half: int) -> None:
    """0.09 and 0.08 per cent of BERT base and large, and half of that."""
    architecture = bert(layers, hidden)
    assert BitFit.size(architecture, BitFit.Config()) == every
    assert BitFit.size(architecture, HALF) == half


def test_exactly_the_biases_and_the_head_are_trained() -> None:
    model = tiny_bert()
    run = Training(make(BitFit, model), model)
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "bias" in name or "classifier" in name}
    assert [name for name, _ in run.method.parameters()] == [
        row.name for row in BitFit.trainables(architecture_of(model), BitFit.Config())
    ]
    assert run.method.optimizer_scalars() == 0  # the loop counts those of `parameters`


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_nothing_but_biases_and_head_changes_by_one_bit(weight_decay: float) -> None:
    model, base = tiny_bert(), weights(tiny_bert())
    run = Training(make(BitFit, model, steps=5, weight_decay=weight_decay), model, lr=0.01).run(batches_of(5))
    for name, parameter in run.model.named_parameters():
        moved = not torch.equal(parameter, base[name])
        assert moved == ("bias" in name or "classifier" in name), name
    row = architecture_of(model).find("bert.encoder.layer.0.attention.self.query.bias")
    delta = run.method.delta(row, base[row.name])
    assert delta is not None
    assert torch.equal(delta, dict(model.named_parameters())[row.name].detach() - base[row.name])
    weight = architecture_of(model).find("bert.encoder.layer.0.attention.self.query.weight")
    assert run.method.delta(weight, base[weight.name]) is None


def test_single_kinds_and_the_authors_matching_by_parts_of_names() -> None:
    architecture = architecture_of(tiny_bert(layers=1))
    layer = "bert.encoder.layer.0."
    attention, feed_forward = layer + "attention.output.dense.bias", layer + "output.dense.bias"
    assert names(architecture, "output") == {feed_forward}
    assert names(architecture, "output", strict=False) == {feed_forward, attention, "bert.pooler.dense.bias"}
    assert names(architecture, "attention_output") == {attention}
    assert names(architecture, "intermediate") == {layer + "intermediate.dense.bias"}
    norms = {layer + "output.LayerNorm.bias", layer + "attention.output.LayerNorm.bias"}
    assert names(architecture, "output_layernorm", strict=False) == {*norms, "bert.pooler.dense.bias"}
    assert names(architecture, "output_layernorm", "attention_layernorm") == norms
    every = {row.name for row in architecture.backbone if row.part == "bias"}
    kinds = ("query", "key", "value", "attention_output", "intermediate", "output", "attention_layernorm")
    assert names(architecture, *kinds, "output_layernorm", "embedding_layernorm", "pooler") == every
    assert names(architecture, "all") == every


def bias_gradients(model: nn.Module) -> tuple[float, float]:
    """Norms of the gradients of key and query biases."""
    model.config.pad_token_id = 0
    model(**tiny_batch()).loss.backward()
    squares = {"k": 0.0, "q": 0.0}
    for row in architecture_of(model).backbone:
        if row.part == "bias" and row.role in squares:
            squares[row.role] += float(dict(model.named_parameters())[row.name].grad.square().sum())
    return squares["k"] ** 0.5, squares["q"] ** 0.5


def test_key_biases_are_dead_unless_positions_are_rotary() -> None:
    key, query = bias_gradients(tiny_bert())
    assert key / query < 1e-5
    rotary = tiny_qwen()
    with torch.no_grad():  # they start at zero, where attention is too even to tell
        for name, parameter in rotary.named_parameters():
            parameter.mul_(5.0) if "proj.weight" in name else None
    key, query = bias_gradients(rotary)
    assert key / query > 1e-3
    assert any("key biases" in text for text in BitFit.warnings(architecture_of(tiny_bert()), BitFit.Config(), 10))
    assert BitFit.warnings(architecture_of(rotary), BitFit.Config(), 10) == []
    assert BitFit.warnings(architecture_of(tiny_bert()), HALF, 10) == []


def test_dead_key_biases_are_told_where_they_are_dead(tmp_path: Path) -> None:
    """Relative positions are matched against keys in DeBERTa; GPT-2 keeps the biases of all three in one vector."""

    def told(name: str) -> list[str]:
        source = ModelSource(name, name, save_tiny(name, tmp_path / name), "", "", "folder")
        return BitFit.warnings(catalogue_map(source, 2), BitFit.Config(), 10)

    assert not any("key biases" in text for text in told("deberta-v2"))
    assert any(f"{2 * 16} of these biases are key biases" in text for text in told("gpt2"))


def test_a_model_without_biases_trains_its_head_alone_and_says_so() -> None:
    model = tiny_llama()
    architecture = architecture_of(model)
    assert BitFit.size(architecture, BitFit.Config()) == 0
    (text,) = BitFit.warnings(architecture, BitFit.Config(), 10)
    assert "nothing" in text
    base = weights(model)
    run = Training(make(BitFit, model, steps=3), model).run(batches_of(3))
    moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, base[name])}
    assert moved == {row.name for row in architecture.head}


def test_the_budget_is_a_ceiling() -> None:
    architecture = architecture_of(tiny_bert())
    size = BitFit.size(architecture, BitFit.Config())
    assert BitFit.fit(architecture, BitFit.Config(), 10 * size) == BitFit.Config()
    assert BitFit.fit(architecture, BitFit.Config(), size) == BitFit.Config()
    with pytest.raises(BudgetError, match=f"{size:,} biases"):
        BitFit.fit(architecture, BitFit.Config(), size - 1)
    assert BitFit.fit(architecture, HALF, size - 1) == HALF


def test_a_result_installs_into_a_fresh_model() -> None:
    model, fresh = tiny_bert(), tiny_bert()
    run = Training(make(BitFit, model, steps=4), model).run(batches_of(4))
    other = make(BitFit, fresh)
    other.attach(fresh)
    other.install(run.method.result())
    ours = weights(run.model)
    assert all(torch.equal(p, ours[name]) for name, p in fresh.named_parameters() if "classifier" not in name)


def test_a_delta_taken_back_leaves_the_base_bit_for_bit() -> None:
    model, fresh, base = tiny_bert(), tiny_bert(), weights(tiny_bert())
    run = Training(make(BitFit, model, steps=4), model).run(batches_of(4))
    apply_delta(fresh, delta_of(run.method.result(), {}, {"base_sha256": "b" * 64}), "b" * 64).revert()
    assert all(torch.equal(parameter, base[name]) for name, parameter in fresh.named_parameters())


def test_a_delta_holds_all_entries_of_the_biases() -> None:
    model, fresh = tiny_bert(), tiny_bert()
    run = Training(make(BitFit, model, steps=4), model).run(batches_of(4))
    metadata = {"base_sha256": "b" * 64}
    delta = delta_of(run.method.result(), {}, metadata)
    assert delta.count == BitFit.size(architecture_of(model), BitFit.Config())
    apply_delta(fresh, delta, "b" * 64)
    ours = weights(run.model)
    assert all(torch.equal(p, ours[name]) for name, p in fresh.named_parameters() if "classifier" not in name)
