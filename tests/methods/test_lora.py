"""LoRA: its algebra, its budget, and parity with plain peft."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, BertConfig

from engine.errors import BudgetError, SpecError
from engine.methods.dora import DoRA
from engine.methods.lora import LoRA
from engine.models.architecture import Architecture
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.plain_peft import train_plainly
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

QUERY_0 = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def minilm() -> Architecture:
    """The map of a classifier with MiniLM's shapes."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    with torch.device("meta"):
        return architecture_of(AutoModelForSequenceClassification.from_config(config))


@pytest.fixture
def training() -> Training:
    model = tiny_bert()
    return Training(make(LoRA, model, {"rank": 3}, steps=10), model, lr=1e-2)


@pytest.mark.parametrize(("cls", "use_dora"), [(LoRA, False), (DoRA, True)])
def test_losses_equal_those_of_plain_peft(cls, use_dora):
    model = tiny_bert()
    ours = Training(make(cls, model, {"rank": 4, "alpha": 16}, seed=5, clip=1e9), model, lr=5e-3, schedule=False).run(
        batches_of(10)
    )
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["query", "value"], use_dora=use_dora)
    theirs, losses = train_plainly(tiny_bert(), config, batches_of(10), lr=5e-3, seed=5)
    assert ours.losses == losses
    tensors = dict(theirs.base_model.model.named_parameters())
    for name, parameter in ours.method.parameters():
        assert torch.equal(parameter, tensors[name]), name


def test_first_gradients(training):
    training.model(**tiny_batch()).loss.backward()
    for name, parameter in training.method.parameters():
        assert (parameter.grad.abs().max() == 0) == (".lora_A." in name), name


def test_the_rank_of_the_change_is_the_rank(training):
    training.run(batches_of(10))
    base = weights(tiny_bert())
    for row in training.method.targets_of(training.method.context.architecture, training.method.config):
        values = torch.linalg.svdvals(training.method.delta(row, base[row.name]).double())
        assert int((values > 1e-4 * values[0]).sum()) == 3


def _logits(training: Training) -> torch.Tensor:
    with torch.no_grad():
        return training.model.eval()(**tiny_batch(seed=9)).logits


def _pairs(training: Training) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    tensors = [parameter for _, parameter in training.method.parameters()]
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def test_another_basis_gives_the_same_answer_but_other_gradients(training):
    training.run(batches_of(5))
    before = _logits(training)

    def gradient() -> torch.Tensor:
        training.model(**tiny_batch()).loss.backward()
        found = _pairs(training)[0][0].grad.clone()
        training.model.zero_grad()
        return found

    original = gradient()
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(3)
    with torch.no_grad():
        for a, b in _pairs(training):
            a.copy_(mixing @ a)
            b.copy_(b @ torch.linalg.inv(mixing))
    assert torch.allclose(_logits(training), before, atol=1e-5)
    assert not torch.allclose(gradient(), original, rtol=0.1)


def test_twice_alpha_and_half_of_b_is_the_same(training):
    training.run(batches_of(5))
    model = tiny_bert()
    other = Training(make(LoRA, model, {"rank": 3, "alpha": 16}, steps=10), model)
    other.load(training.state())
    with torch.no_grad():
        for _, b in _pairs(other):
            b.mul_(0.5)
    assert torch.allclose(_logits(other), _logits(training), atol=1e-6)


def test_the_common_budget_is_reached_to_the_parameter(minilm):
    config = LoRA.fit(minilm, LoRA.Config(), 26_112)
    ranks = LoRA.ranks_of(minilm, config)
    assert sum(ranks.values()) == 34
    assert sorted(set(ranks.values())) == [2, 3]
    assert LoRA.size(minilm, config) == 34 * 768 == 26_112
    assert [module for module, rank in ranks.items() if rank == 2] == list(ranks)[-2:]


@pytest.mark.parametrize("cls", [LoRA, DoRA])
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "up", "down")])
def test_what_is_left_of_a_budget_buys_no_further_matrix(cls, build, targets):
    architecture, config = architecture_of(build()), cls.Config(targets=targets)
    for target in range(1_500, 5_000, 477):
        fitted = cls.fit(architecture, config, target)
        left = target - cls.size(architecture, fitted)
        ranks = cls.ranks_of(architecture, fitted)
        waiting = [sum(row.shape) for row in cls.targets_of(architecture, fitted) if ranks[row.module] == fitted.rank]
        assert 0 <= left < min(waiting)
        assert max(ranks.values()) - min(ranks.values()) <= 1


def test_a_budget_below_rank_one_is_refused(minilm):
    with pytest.raises(BudgetError, match="at least 9,216"):
        LoRA.fit(minilm, LoRA.Config(), 9_215)


def test_a_huge_budget_stops_at_full_rank(minilm):
    assert LoRA.fit(minilm, LoRA.Config(), 10**8).rank == 384


def test_all_matrices_keep_one_scale():
    model = tiny_bert(layers=12)
    one = QUERY_0.replace(".0.", ".1.")
    method = make(LoRA, model, {"rank": 2, "alpha": 8, "rank_pattern": {one: 3}})
    method.attach(model)
    layers = {row.module: model.get_submodule(row.module) for row in method.context.architecture.linears(("q", "v"))}
    assert {layer.scaling["default"] for layer in layers.values()} == {4.0}
    assert [module for module, layer in layers.items() if layer.r["default"] == 3] == [one]


def test_a_rank_for_a_matrix_without_adapter_is_refused():
    architecture = architecture_of(tiny_bert())
    with pytest.raises(SpecError, match="gets no adapter"):
        LoRA.size(architecture, LoRA.Config(rank_pattern={QUERY_0.replace("query", "key"): 2}))


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"targets": []}, {"targets": ["pooler"]}, {"rank_pattern": {"a": 0}}]
)
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(ValidationError):
        LoRA.Config.model_validate(settings)
