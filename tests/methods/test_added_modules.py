"""Methods that put modules of our own into the model: SSF and LoFiT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config

from engine.errors import BudgetError
from engine.methods.contract import Method
from engine.methods.id3 import ID3
from engine.methods.ssf import SSF
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

STEPS = 12
Build = Callable[[], nn.Module]


def tiny_gpt2() -> nn.Module:
    """A GPT-2 classifier, whose weights are stored as (in, out) and whose q, k and v are one matrix."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=32, num_labels=2, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def biased_bert() -> nn.Module:
    """A BERT whose biases are not zero, as those of a fresh one are."""
    model = tiny_bert()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


BASES: dict[str, Build] = {"bert": biased_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}
every_base = pytest.mark.parametrize("build", BASES.values(), ids=BASES)


def logits(model: nn.Module) -> torch.Tensor:
    inputs = {key: value for key, value in tiny_batch(seed=77).items() if key != "labels"}
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(**inputs).logits
    return answer


def trained(cls: type[Method], model: nn.Module, settings: dict[str, Any] | None = None) -> Training:
    method = make(cls, model, settings, steps=STEPS)
    return Training(method, model, lr=1e-2, score_batches=batches_of(4, size=1)).run(batches_of(STEPS))


def assert_base_frozen(training: Training, base: dict[str, torch.Tensor]) -> None:
    heads = {row.name for row in training.method.context.architecture.head}
    found = {name.replace(".base_layer.", "."): value for name, value in weights(training.model).items()}
    for name, value in base.items():
        assert torch.equal(found[name], value) != (name in heads), name


def assert_changes_are_merged_minus_base(training: Training, base: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors whose change the method reports."""
    merged, reported = weights(training.method.merged(training.model)), set()
    for row in training.method.context.architecture.backbone:
        change = training.method.delta(row, base[row.name])
        if change is None:
            assert torch.equal(merged[row.name], base[row.name]), row.name
            continue
        reported.add(row.name)
        assert change.any(), row.name
        torch.testing.assert_close(base[row.name] + change, merged[row.name], rtol=0, atol=1e-7)
    return reported


# --- SSF ---------------------------------------------------------------------------------------


@every_base
def test_ssf_without_spread_starts_exactly_at_the_base(build: Build) -> None:
    model = build()
    assert torch.equal(logits(make(SSF, model, {"std": 0.0}).attach(model)), logits(build()))


@every_base
def test_ssf_starts_around_one_and_zero(build: Build) -> None:
    model = build()
    method = make(SSF, model)
    assert not torch.equal(logits(method.attach(model)), logits(build()))
    for part, centre in (("scale", 1.0), ("shift", 0.0)):
        drawn = [parameter.detach() for name, parameter in method.parameters() if name.endswith(part)]
        if drawn:
            values = torch.cat(drawn)
            assert abs(float(values.mean()) - centre) < 0.003
            assert 0.015 < float(values.std()) < 0.025


def test_ssf_counts_two_numbers_per_feature_of_a_layer_with_a_bias_and_one_of_others() -> None:
    bert, llama = architecture_of(tiny_bert()), architecture_of(tiny_llama())
    block = 4 * 32 + 64 + 32 + 2 * 32  # q k v o, up, down, two norms
    assert SSF.size(bert, SSF.Config()) == 2 * (2 * block + 32)  # norm of the embeddings
    assert SSF.size(bert, SSF.Config(places=("pooler",))) == 2 * 32
    assert SSF.size(bert, SSF.Config(layers=1)) == 2 * block
    block = 32 + 16 + 16 + 32 + 64 + 64 + 32 + 2 * 32  # half as many heads for keys and values; a gate
    assert SSF.size(llama, SSF.Config()) == 2 * block + 32  # final norm
    assert SSF.size(llama, SSF.Config(layers=1)) == block + 32
    assert "no offsets" in SSF.warnings(llama, SSF.Config(), 10)[0]
    assert SSF.warnings(bert, SSF.Config(), 10) == []
    assert "no pooler" in SSF.warnings(llama, SSF.Config(places=("norms", "pooler")), 10)[0]


def test_ssf_meets_a_budget_by_leaving_out_the_first_layers() -> None:
    architecture = architecture_of(tiny_bert(layers=4))
    whole = SSF.size(architecture, SSF.Config())
    assert SSF.fit(architecture, SSF.Config(layers=2), whole) == SSF.Config()
    smaller = SSF.fit(architecture, SSF.Config(), whole - 1)
    assert smaller == SSF.Config(layers=4)
    one = SSF.size(architecture, SSF.Config(layers=1))
    assert SSF.fit(architecture, SSF.Config(), 2 * one - 1) == SSF.Config(layers=1)
    with pytest.raises(BudgetError, match=f"at least {one:,}"):
        SSF.fit(architecture, SSF.Config(), one - 1)


@every_base
def test_ssf_changes_nothing_but_itself_and_the_head(build: Build) -> None:
    assert_base_frozen(trained(SSF, build()), weights(build()))


@every_base
def test_ssf_merged_is_a_plain_model_that_answers_alike(build: Build) -> None:
    training = trained(SSF, build(), {"places": ["attention", "feed_forward", "norms", "pooler"]})
    before = logits(training.model)
    merged = training.method.merged(training.model)
    assert list(weights(merged)) == list(weights(build()))
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=2e-6)
    assert torch.equal(logits(training.model), before)
    reported = assert_changes_are_merged_minus_base(training, weights(build()))
    assert {name for name in reported if name.endswith("weight")} == {
        row.name for row in SSF.scaled(training.method.context.architecture, training.method.config)
    }


def test_ssf_lengthens_rows_and_never_turns_them() -> None:
    training = trained(SSF, tiny_bert())
    base, merged = weights(tiny_bert()), weights(training.method.merged(training.model))
    for row in training.method.context.architecture.linears():
        cosine = nn.functional.cosine_similarity(base[row.name], merged[row.name], dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_ssf_learns() -> None:
    model = tiny_bert()
    training = Training(make(SSF, model, steps=30), model, lr=2e-2, schedule=False).run([tiny_batch()] * 30)
    assert training.losses[-1] < 0.5 * training.losses[0]


def test_a_sparse_method_on_ssf_trains_some_of_its_numbers() -> None:
    model = tiny_bert()
    inner = make(SSF, model, {"std": 0.0}, steps=STEPS)
    training = Training(make(ID3, model, {"k": 40}, steps=STEPS, on=inner), model, lr=1e-2).run(batches_of(STEPS))
    moved = sum(
        int((parameter != (1.0 if name.endswith("scale") else 0.0)).sum()) for name, parameter in inner.parameters()
    )
    assert 0 < moved <= 40
    merged = training.method.merged(training.model)
    torch.testing.assert_close(logits(merged), logits(training.model), rtol=0, atol=2e-6)


# --- both --------------------------------------------------------------------------------------

METHODS: list[tuple[type[Method], dict[str, Any]]] = [(SSF, {})]
every_method = pytest.mark.parametrize(("cls", "settings"), METHODS, ids=[cls.name for cls, _ in METHODS])


@every_base
@every_method
@pytest.mark.parametrize("at", [0, 3, 6, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(
    build: Build, cls: type[Method], settings: dict[str, Any], at: int
) -> None:
    whole = trained(cls, build(), settings)
    model = build()
    first = Training(make(cls, model, settings, steps=STEPS), model, lr=1e-2).run(batches_of(STEPS)[:at])
    model = build()
    rest = Training(make(cls, model, settings, steps=STEPS), model, lr=1e-2).load(first.state())
    rest.run(batches_of(STEPS)[at:])
    assert first.losses + rest.losses == whole.losses
    ours = weights(whole.model)
    assert all(torch.equal(value, ours[name]) for name, value in weights(rest.model).items())


@every_base
@every_method
def test_a_result_goes_into_a_fresh_model(build: Build, cls: type[Method], settings: dict[str, Any]) -> None:
    training = trained(cls, build(), settings)
    model = build()
    method = make(cls, model, settings, steps=STEPS)
    method.attach(model)
    method.install(training.method.result())
    with torch.no_grad():
        for row in method.context.architecture.head:
            model.get_parameter(row.name).copy_(training.model.get_parameter(row.name))
    assert torch.equal(logits(model), logits(training.model))
    for row in method.context.architecture.backbone:
        ours, theirs = (m.delta(row, torch.zeros(row.shape)) for m in (method, training.method))
        assert (ours is None) == (theirs is None), row.name
        assert ours is None or torch.equal(ours, theirs), row.name


@every_method
def test_what_is_drawn_depends_on_its_seed_alone(cls: type[Method], settings: dict[str, Any]) -> None:
    def drawn(seed: int, noise: int) -> dict[str, torch.Tensor]:
        model = tiny_bert()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        training = Training(make(cls, model, settings, steps=STEPS, seed=seed), model, lr=0.0)
        training.run(batches_of(STEPS))
        assert torch.equal(torch.get_rng_state(), before)
        return training.method.result()

    one, same, other = drawn(1, 10), drawn(1, 20), drawn(2, 10)
    assert one
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(name not in other or not torch.equal(one[name], other[name]) for name in one)
