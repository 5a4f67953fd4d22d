"""Methods that choose whole layers or tensors by what they measure: which, when, and what stays as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import BudgetError, DataError, Diverged, SpecError
from engine.methods._examples import together
from engine.methods.contract import Method
from engine.methods.ist import IST
from engine.methods.lora import LoRA
from engine.methods.pafi import PaFi
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

EXAMPLES = batches_of(24, size=1)
BASES = {"bert": tiny_bert, "llama": tiny_llama}
ARCHITECTURE = architecture_of(tiny_bert(layers=4))
HEADS = ("classifier", "score")


def training(cls: type[Method], steps: int = 12, base: Any = tiny_bert, **settings: Any) -> Training:
    model = base(layers=4)
    how = {key: settings.pop(key) for key in ("weight_decay", "seed") if key in settings}
    fused = settings.pop("fused", False)
    method = make(cls, model, settings, steps=steps, **how)
    return Training(method, model, lr=5e-3, score_batches=EXAMPLES, fused=fused)


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Tensors, head apart, that are not bit for bit what they were."""
    now = weights(model)
    return {name for name in now if not torch.equal(now[name], before[name]) and not name.startswith(HEADS)}


def assert_resumes(cls: type[Method], at: int, steps: int = 12, **settings: Any) -> None:
    """Stopped after `at` steps and gone on, it is the run that never stopped, bit for bit."""
    straight = training(cls, steps, **settings).run(batches_of(steps))
    state = training(cls, steps, **settings).run(batches_of(steps)[:at]).state()
    resumed = training(cls, steps, **settings).load(state).run(batches_of(steps)[at:])
    assert straight.losses[at:] == resumed.losses
    now, then = weights(straight.model), weights(resumed.model)
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


# --- examples put together --------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_examples_put_together_answer_as_they_do_alone(base: str) -> None:
    model = BASES[base]()
    examples = [tiny_batch(1, length, seed=length) for length in (5, 9, 3)]
    joined = together(examples, 0)
    assert joined["input_ids"].shape == (3, 9)
    with torch.no_grad():
        alone = torch.cat([model(**example).logits for example in examples])
        torch.testing.assert_close(model(**joined).logits, alone)


# --- IST --------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_ist_moves_the_adapters_of_the_drawn_layers_alone(base: str) -> None:
    run = training(IST, 10, BASES[base], share=0.5, interval=3, weight_decay=0.1)
    method: Any = run.method
    layer_of = {row.name: row.layer for row in method.trainables(method.context.architecture, method.config)}
    seen = set()
    for step, batch in enumerate(batches_of(10)):
        before, drawn = weights(run.model), method.drawn(step)
        run.run([batch])
        found = moved(before, run.model)
        assert {layer_of[name] for name in found} == set(drawn)
        seen.add(tuple(drawn))
        assert len(drawn) == 2
    assert len(seen) > 1


def test_ist_that_trains_all_layers_is_lora_bit_for_bit() -> None:
    ours = training(IST, share=1.0, interval=4).run(batches_of(12))
    lora = training(LoRA).run(batches_of(12))
    assert ours.losses == lora.losses
    assert not moved(weights(lora.model), ours.model)


def test_a_response_left_whole_teaches_nothing_and_a_suppressed_one_does() -> None:
    whole: Any = training(IST, suppression=1.0, interval=2).run(batches_of(12)).method
    assert np.abs(whole.importance).max() < 1e-12
    less: Any = training(IST, suppression=0.25, interval=2).run(batches_of(12)).method
    assert np.abs(less.importance).max() > 1e-6


def test_importance_is_what_the_losses_without_the_layers_say() -> None:
    """The judgement computed another way: B scaled in a copy of the model."""
    run = training(IST, interval=5, suppression=0.25, share=1.0)
    method: Any = run.method
    run.run(batches_of(4))
    run.lr = 0.0  # so that the model that is judged after step 5 is the one here
    sets = method._draw(np.zeros(4), 0.5, [5, 1], 3)
    assert len({tuple(layers) for layers in sets}) == 3
    batch = together(EXAMPLES[16:32], 0)
    rewards = []
    for layers in sets:
        model = copy.deepcopy(run.model).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name and any(f"layer.{layer}." in name for layer in layers):
                    parameter.mul_(0.25)
            rewards.append(math.exp(-float(model(**batch).loss)))
    expected = np.zeros(4)
    for layers, reward in zip(sets, rewards, strict=True):
        expected[layers] -= 10 * 0.25 * (reward - np.mean(rewards))
    run.run(batches_of(5)[4:])
    assert np.abs(expected).max() > 1e-7
    np.testing.assert_allclose(method.importance, expected, rtol=1e-3, atol=1e-7)


def test_a_layer_that_matters_is_found() -> None:
    """Only layer 2's adapters do anything, and the loss is much lower with them."""
    run = training(IST, 200, interval=1, samples=4, rate=50.0)
    method: Any = run.method
    row = next(row for row in method.targets_of(ARCHITECTURE, method.config) if row.layer == 2 and row.role == "v")
    layer = method._layers[row.name]
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            layer.lora_B["default"].weight.copy_(sign * 5 * torch.ones_like(layer.lora_B["default"].weight))
        losses.append(sum(method._loss_without([], group) for group in method._groups))
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(1 if losses[1] < losses[0] else -1)
    for done in range(1, 60):
        method._judge(done)
    assert int(method.importance.argmax()) == 2


@pytest.mark.parametrize("at", [3, 6, 7])
def test_ist_resumes_bit_for_bit(at: int) -> None:
    assert_resumes(IST, at, interval=3, suppressed=0.25)


def test_ist_compares_no_more_sets_than_there_are() -> None:
    model = tiny_bert(layers=1)
    run = Training(make(IST, model, {"interval": 1}, steps=4), model, score_batches=EXAMPLES)
    run.run(batches_of(4))
    assert run.method.importance.tolist() == [0.0]  # type: ignore[attr-defined]


def test_ist_says_what_it_cannot_do() -> None:
    model = tiny_bert(layers=4)
    method: Any = make(IST, model, {"interval": 1})
    attached = method.attach(model)
    with pytest.raises(DataError, match="no training example"):
        method.score_pass(attached, [], lambda done, total: None)
    method.score_pass(attached, EXAMPLES, lambda done, total: None)
    with torch.no_grad():
        method.parameters()[0][1].fill_(float("nan"))
    with pytest.raises(Diverged):
        method._judge(1)
    assert any("only draws at random" in text for text in IST.warnings(ARCHITECTURE, IST.Config(), 10))
    assert not IST.warnings(ARCHITECTURE, IST.Config(), 11)
    with pytest.raises(SpecError, match="cannot stand on"):
        make(PaFi, tiny_bert(), {"k": 5}, on=make(IST, tiny_bert()))
