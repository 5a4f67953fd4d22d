"""Invariants shared by the methods built on peft, on a BERT and a Llama."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn

from engine.errors import SpecError
from engine.methods.registry import methods
from tests.methods.driver import Batch, Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

BASES = {"bert": tiny_bert, "llama": tiny_llama}
NAMES = ("lora", "dora", "adalora")
STEPS = 12


@pytest.fixture(params=[(name, base) for name in NAMES for base in BASES], ids="-".join)
def case(request):
    """A method's class and a builder of its base model."""
    name, base = request.param
    return methods()[name], BASES[base]


def uneven(cls, build) -> dict:
    """Settings that give matrices different ranks, as a budget does."""
    architecture = architecture_of(build())
    fitted = cls.fit(architecture, cls.Config(), cls.size(architecture, cls.Config()) + 100)
    return fitted.model_dump(mode="json")


def trained(cls, build, settings=None, steps: int = STEPS, seed: int = 0) -> Training:
    model = build()
    method = make(cls, model, settings, steps=steps, seed=seed)
    return Training(method, model, lr=1e-2).run(batches_of(steps))


def logits(model: nn.Module, batch: Batch | None = None) -> torch.Tensor:
    inputs = {key: value for key, value in (batch or tiny_batch(seed=77)).items() if key != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def test_training_starts_exactly_at_the_base(case):
    cls, build = case
    model = build()
    assert torch.equal(logits(make(cls, model).attach(model)), logits(build()))


def test_nothing_but_adapter_and_head_changes(case):
    cls, build = case
    training = trained(cls, build)
    base, head = weights(build()), {row.name for row in training.method.context.architecture.head}
    for name, value in weights(training.model).items():
        if base_name(name) in base and name not in head:
            assert torch.equal(value, base[base_name(name)]), name
    assert all(not torch.equal(weights(training.model)[name], base[name]) for name in head)


def test_the_count_is_what_requires_a_gradient(case):
    cls, build = case
    model = build()
    method = make(cls, model, uneven(cls, build))
    method.attach(model)
    head = {row.name for row in method.context.architecture.head}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in head}
    assert list(own) == [name for name, _ in method.parameters()]
    rows = method.trainables(method.context.architecture, method.config)
    assert [(row.name, row.shape) for row in rows] == [(name, tuple(p.shape)) for name, p in own.items()]
    assert cls.peak(method.context.architecture, method.config) == sum(p.numel() for p in own.values())


def test_every_trained_tensor_gets_a_gradient(case):
    cls, build = case
    model = build()
    method = make(cls, model)
    method.attach(model)
    (model(**tiny_batch()).loss + (method.extra_loss() or 0)).backward()
    assert all(parameter.grad is not None for _, parameter in method.parameters())


def test_it_learns(case):
    cls, build = case
    model = build()
    training = Training(make(cls, model, {"alpha": 32}, steps=STEPS), model, lr=2e-2, schedule=False)
    training.run([tiny_batch()] * STEPS)
    assert training.losses[-1] < 0.9 * training.losses[0]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # peft, for AdaLoRA's own files
def test_the_exported_folder_loads_to_the_trained_model(case, tmp_path):
    cls, build = case
    training = trained(cls, build, uneven(cls, build))
    training.method.save_peft(training.model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build(), str(tmp_path / "adapter"))
    # AdaLoRA's file leaves out its triplets of zeros: sums of other lengths, which may round another way.
    slack = 1e-6 if cls.name == "adalora" else 0.0
    torch.testing.assert_close(logits(loaded), logits(training.model), rtol=0, atol=slack)
    assert not torch.equal(logits(loaded), logits(build()))


def test_merged_is_a_plain_model_that_answers_alike(case):
    cls, build = case
    training = trained(cls, build, uneven(cls, build))
    before = logits(training.model)
    merged = training.method.merged(training.model)
    assert list(weights(merged)) == list(weights(build()))
    assert torch.allclose(logits(merged), before, rtol=0, atol=1e-6)
    assert torch.equal(logits(training.model), before)


def test_the_change_is_merged_minus_base(case):
    cls, build = case
    training = trained(cls, build)
    base, merged = weights(build()), weights(training.method.merged(training.model))
    targets = training.method.targets_of(training.method.context.architecture, training.method.config)
    for row in targets:
        change = training.method.delta(row, base[row.name])
        assert change.abs().max() > 1e-6
        assert torch.allclose(change, merged[row.name] - base[row.name], atol=1e-7)
    for row in training.method.context.architecture.backbone:
        if row not in targets:
            assert training.method.delta(row, base[row.name]) is None


def test_the_change_is_exactly_zero_at_the_start(case):
    cls, build = case
    model, base = build(), weights(build())
    method = make(cls, model)
    method.attach(model)
    for row in method.targets_of(method.context.architecture, method.config):
        assert method.delta(row, base[row.name]).abs().max() == 0


def test_switched_off_it_is_the_base_with_the_trained_head(case):
    cls, build = case
    training = trained(cls, build)
    base = build()
    with torch.no_grad():
        for row in training.method.context.architecture.head:
            base.get_parameter(row.name).copy_(training.model.get_parameter(row.name))
    with training.method.peft.disable_adapter():
        assert torch.allclose(logits(training.model), logits(base), atol=1e-6)


def test_padding_does_not_change_the_answer(case):
    cls, build = case
    training = trained(cls, build)
    batch = tiny_batch(seed=5)
    padded = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 3)),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 3)),
    }
    assert torch.allclose(logits(training.model, padded), logits(training.model, batch), atol=1e-6)


def test_initialisation_depends_on_its_seed_alone(case):
    cls, build = case

    def attached(seed: int, noise: int) -> dict[str, torch.Tensor]:
        model = build()
        method = make(cls, model, seed=seed)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        method.attach(model)
        assert torch.equal(torch.get_rng_state(), before)
        return method.result()

    one, same, other = attached(1, 10), attached(1, 20), attached(2, 10)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_checkpointed_activations_change_nothing(case):
    cls, build = case

    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        model = build()
        method = make(cls, model)
        method.attach(model)
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()(**tiny_batch()).loss.backward()
        return [parameter.grad for _, parameter in method.parameters()]

    for plain, saved in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, saved, atol=1e-7)


def test_a_resumed_run_equals_an_uninterrupted_one(case):
    cls, build = case
    whole = trained(cls, build)
    model = build()
    first = Training(make(cls, model, steps=STEPS), model, lr=1e-2).run(batches_of(STEPS)[:7])
    model = build()
    rest = Training(make(cls, model, steps=STEPS), model, lr=1e-2).load(first.state()).run(batches_of(STEPS)[7:])
    assert first.losses + rest.losses == whole.losses
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(rest.model)[name]), name


def test_a_result_goes_into_a_fresh_model(case):
    cls, build = case
    training = trained(cls, build)
    model = build()
    method = make(cls, model, steps=STEPS)
    method.attach(model)
    method.install(training.method.result())
    with torch.no_grad():
        for row in method.context.architecture.head:
            model.get_parameter(row.name).copy_(training.model.get_parameter(row.name))
    assert torch.equal(logits(model), logits(training.model))


def test_a_missing_role_is_said_and_no_role_is_refused():
    cls, architecture = methods()["lora"], architecture_of(tiny_bert())
    assert "gate" in cls.warnings(architecture, cls.Config(targets=("q", "gate")), 10)[0]
    with pytest.raises(SpecError, match="Choose `targets` among: q, k, v, o, up, down"):
        cls.size(architecture, cls.Config(targets=("gate",)))
