"""Methods that put modules of our own into the model: SSF and LoFiT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, Qwen2Config

from engine.errors import BudgetError, SpecError
from engine.export.finished import opened
from engine.export.formats import export_run
from engine.export.rebuild import rebuild
from engine.methods.contract import Method
from engine.methods.id3 import ID3
from engine.methods.lofit import LoFiT
from engine.methods.ssf import SSF
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import go_on, series, stop, submit, wake

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


# --- LoFiT -------------------------------------------------------------------------------------


@every_base
def test_lofit_without_spread_starts_exactly_at_the_base(build: Build) -> None:
    model = build()
    assert torch.equal(logits(make(LoFiT, model, {"std": 0.0}).attach(model)), logits(build()))


def test_lofit_counts_one_vector_per_chosen_head() -> None:
    bert, llama = architecture_of(tiny_bert()), architecture_of(tiny_llama())
    assert LoFiT.size(bert, LoFiT.Config(heads=3)) == 3 * 16
    assert LoFiT.peak(bert, LoFiT.Config(heads=3)) == 2 * 2 * 16
    assert LoFiT.size(llama, LoFiT.Config(heads=100)) == 2 * 4 * 8
    assert LoFiT.fit(bert, LoFiT.Config(), 47).heads == 2
    assert LoFiT.fit(bert, LoFiT.Config(), 10**6).heads == 4
    with pytest.raises(BudgetError, match="at least 16"):
        LoFiT.fit(bert, LoFiT.Config(), 15)
    assert "all of them" in LoFiT.warnings(bert, LoFiT.Config(heads=5), 10)[0]
    assert "never trained" in LoFiT.warnings(bert, LoFiT.Config(heads=2), 1)[0]


@every_base
def test_lofit_scales_every_head_then_offsets_the_best_alone(build: Build) -> None:
    model = build()
    method = make(LoFiT, model, {"heads": 3}, steps=STEPS)
    training = Training(method, model, lr=1e-2).run(batches_of(STEPS)[:5])
    named = dict(training.model.named_parameters())
    scales = {row.name: named[row.name].detach().norm() for row in method.rows if row.part == "scale"}
    assert min(scales.values()) > 0
    assert all(not named[row.name].any() for row in method.rows if row.part == "offset")
    assert method.optimizer_scalars() == 2 * LoFiT.peak(method.context.architecture, method.config)
    ranked = [scales]
    after_step = method.after_step

    def note(step: int) -> None:  # the scales as the choice sees them, which are dropped with it
        ranked.append({name: named[name].detach().norm() for name in scales})
        after_step(step)

    method.after_step = note  # type: ignore[method-assign]
    training.run(batches_of(STEPS)[5:6])
    best = {name.replace(".scale.", ".offset.") for name in sorted(scales, key=lambda name: -ranked[1][name])[:3]}
    assert method.active == best
    training.run(batches_of(STEPS)[6:])
    assert all(not named[name].any() for name in scales)
    assert {row.name for row in method.rows if row.part == "offset" and named[row.name].any()} == best
    size = LoFiT.size(method.context.architecture, method.config)
    assert method.kept() == size
    assert method.optimizer_scalars() == 2 * size
    assert method.extra_loss() is None
    assert set(method.result()) == best
    assert_base_frozen(training, weights(build()))


def test_lofit_starts_its_second_phase_from_the_base() -> None:
    model = tiny_bert()
    settings = {"std": 0.0}
    method = make(LoFiT, model, settings, steps=STEPS)
    training = Training(method, model, lr=1e-2).run(batches_of(STEPS)[:5])
    base = tiny_bert()
    for row in method.context.architecture.head:
        base.get_parameter(row.name).data.copy_(model.get_parameter(row.name))
    assert not torch.equal(logits(model), logits(base))
    training.run(batches_of(STEPS)[5:6])
    for row in method.context.architecture.head:
        base.get_parameter(row.name).data.copy_(model.get_parameter(row.name))
    assert torch.equal(logits(model), logits(base))


def test_the_penalty_of_lofit_is_the_sum_of_the_scales_sizes() -> None:
    model = tiny_bert()
    method = make(LoFiT, model, {"sparsity": 0.25})
    method.attach(model)
    total = sum(float(p.detach().abs().sum()) for name, p in model.named_parameters() if ".scale." in name)
    penalty = method.extra_loss()
    assert penalty is not None
    assert total > 0
    assert float(penalty.detach()) == pytest.approx(0.25 * total, rel=1e-5)
    strong, weak = (trained_scales({"sparsity": value}) for value in (0.5, 0.0))
    assert strong < 0.5 * weak


def trained_scales(settings: dict[str, Any]) -> float:
    """Sum of the scales' sizes at the end of the first phase."""
    model = tiny_bert()
    method = make(LoFiT, model, {**settings, "probe": 0.99}, steps=40)
    Training(method, model, lr=1e-2, schedule=False).run(batches_of(39))
    return sum(float(p.detach().abs().sum()) for name, p in model.named_parameters() if ".scale." in name)


@every_base
@pytest.mark.parametrize("steps", [4, STEPS])
def test_lofit_merged_answers_alike_in_both_phases(build: Build, steps: int) -> None:
    model = build()
    method = make(LoFiT, model, {"heads": 3}, steps=STEPS)
    training = Training(method, model, lr=5e-2).run(batches_of(STEPS)[:steps])
    before, merged = logits(model), method.merged(model)
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=2e-6)
    assert torch.equal(logits(model), before)
    missing = set(weights(build())) - set(weights(merged))
    assert not missing
    reported = assert_changes_are_merged_minus_base(training, weights(build()))
    part = "weight" if steps == 4 else "bias"
    assert all(name.endswith(part) for name in reported)
    assert reported or build is tiny_llama


@every_base
def test_lofit_merged_can_be_saved_and_loaded(build: Build, tmp_path: Path) -> None:
    training = trained(LoFiT, build(), {"heads": 3})
    merged: Any = training.method.merged(training.model)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert list(weights(loaded)) == list(weights(merged)) or build is tiny_llama
    assert torch.equal(logits(loaded), logits(merged))
    torch.testing.assert_close(logits(loaded), logits(training.model), rtol=0, atol=2e-6)


def test_lofit_refuses_a_model_without_a_place_for_its_offsets() -> None:
    config = Qwen2Config(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, num_labels=2,
    )  # fmt: skip
    architecture = architecture_of(AutoModelForSequenceClassification.from_config(config))
    with pytest.raises(SpecError, match="qwen2 models have no bias"):
        LoFiT.size(architecture, LoFiT.Config())


# --- both --------------------------------------------------------------------------------------

METHODS: list[tuple[type[Method], dict[str, Any]]] = [(SSF, {}), (LoFiT, {"heads": 3})]
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


# --- the whole path ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssf", "lofit", "tuned_heads"])
@pytest.mark.parametrize("execution", ["padded", "ragged"])
def test_a_run_stopped_in_its_middle_ends_as_one_that_was_not(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, execution: str
) -> None:
    """From spec to merged model, through the checkpoint on disk, in both phases."""
    data = spec_data(small, {"name": name}, lr=0.01, steps=20, execution=execution)
    runs = Runs(home)
    whole, halted = submit(home, data), submit(home, data)
    assert run_job(home, whole, Caches()) == "finished", runs.get(whole).error
    stop(home, halted, 2, monkeypatch)
    wake(home, halted)
    stop(home, halted, 12, monkeypatch)
    go_on(home, halted)
    assert series(home, whole)["train/loss"] == series(home, halted)["train/loss"]
    folders = [export_run(home, run, "merged", tmp_path / run) for run in (whole, halted)]
    first, second = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders)
    assert torch.equal(logits(first), logits(second))
    with opened(home, whole) as finished:
        torch.testing.assert_close(logits(first), logits(rebuild(finished).model), rtol=0, atol=2e-6)
