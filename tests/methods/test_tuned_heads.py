"""Localise-then-tune: the effect of a head is measured by switching it off, and its weights alone are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import BudgetError, DataError
from engine.methods.tuned_heads import TunedHeads, entries_of
from engine.probes.found import scores_of
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.test_added_modules import BASES, Build, every_base, logits
from tests.tiny import architecture_of, tiny_bert, tiny_llama

STEPS = 12
SWITCH = 4
EXAMPLES = batches_of(4, size=1)
SETTINGS: dict[str, Any] = {"heads": 2, "samples": 3, "warm": SWITCH / STEPS}


def started(model: nn.Module, **settings: Any) -> Training:
    method = make(TunedHeads, model, {**SETTINGS, **settings}, steps=STEPS)
    return Training(method, model, lr=1e-2, score_batches=EXAMPLES)


def test_a_head_has_its_share_of_each_matrix() -> None:
    bert, llama = architecture_of(tiny_bert()), architecture_of(tiny_llama())
    assert TunedHeads.of_one_head(bert, None) == 4 * 16 * 32 + 3 * 16
    assert TunedHeads.of_one_head(llama, None) == 2 * 8 * 32  # keys and values are shared
    assert {row.role for row in TunedHeads.trainables(llama, None)} == {"q", "o"}
    each = TunedHeads.of_one_head(bert, None)
    assert TunedHeads.fit(bert, TunedHeads.Config(), 2 * each + 1).heads == 2
    assert TunedHeads.fit(bert, TunedHeads.Config(), 10**7).heads == 4
    assert TunedHeads.size(bert, TunedHeads.Config(heads=100)) == 4 * each
    with pytest.raises(BudgetError, match=f"at least {each:,}"):
        TunedHeads.fit(bert, TunedHeads.Config(), each - 1)
    assert "all of them" in TunedHeads.warnings(bert, TunedHeads.Config(heads=9), 100)[0]
    assert "never trained" in TunedHeads.warnings(bert, TunedHeads.Config(), 1)[0]


@every_base
def test_heads_divide_their_matrices_without_rest_or_overlap(build: Build) -> None:
    architecture = architecture_of(build())
    for row in TunedHeads.trainables(architecture, None):
        parts = [entries_of(row, [head], architecture.heads) for head in range(architecture.heads)]
        assert len({len(part) for part in parts}) == 1
        assert torch.cat(parts).sort().values.tolist() == list(range(row.size)), row.name


@every_base
def test_the_effect_is_what_zeroing_the_heads_weights_does(build: Build) -> None:
    """A head without its part of the output matrix is as good as switched off."""
    training = started(build())
    method: Any = training.method
    effects = method.effects()
    architecture = method.context.architecture
    assert len(effects) == architecture.layers * architecture.heads
    training.model.eval()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(training.model(**example).loss) for example in EXAMPLES[:3]) / 3

    whole = loss()
    for (layer, head), effect in effects.items():
        row = next(row for row in architecture.linears(["o"]) if row.layer == layer)
        weight = training.model.get_parameter(row.name)
        kept = weight.detach().clone()
        weight.data.view(-1)[entries_of(row, [head], architecture.heads)] = 0.0
        assert effect == pytest.approx(loss() - whole, abs=1e-6)
        weight.data.copy_(kept)
    assert max(map(abs, effects.values())) > 1e-5


@every_base
def test_queries_of_another_head_do_not_matter_for_a_head(build: Build) -> None:
    """With all but one head cut off behind, what is not that head's own can be spoilt at will."""
    model = build()
    architecture = architecture_of(model)
    rest = list(range(1, architecture.heads))
    rows = TunedHeads.trainables(architecture, None)
    for row in architecture.linears(["o"]):
        model.get_parameter(row.name).data.view(-1)[entries_of(row, rest, architecture.heads)] = 0.0
    before = logits(model)
    for row in rows:
        if row.role != "o":
            model.get_parameter(row.name).data.view(-1)[entries_of(row, rest, architecture.heads)] = 7.0
    assert torch.equal(logits(model), before)
    for row in rows:
        if row.role != "o":
            model.get_parameter(row.name).data.view(-1)[entries_of(row, [0], architecture.heads)] *= -3.0
    assert not torch.equal(logits(model), before)


@every_base
def test_first_the_task_head_trains_alone_then_the_best_heads_and_nothing_else(build: Build) -> None:
    base = weights(build())
    training = started(build())
    method: Any = training.method
    names = [row.name for row in method.context.architecture.backbone]
    training.run(batches_of(STEPS)[: SWITCH - 1])
    assert all(torch.equal(training.model.get_parameter(name), base[name]) for name in names)
    assert method.optimizer_scalars() == 0
    measured: list[dict[Any, float]] = []
    effects = method.effects

    def noted() -> dict[Any, float]:
        measured.append(effects())
        return measured[0]

    method.effects = noted
    assert method.findings() == {}
    training.run(batches_of(STEPS)[SWITCH - 1 :])
    (found,) = measured
    best = sorted(found, key=lambda head: -found[head])[:2]
    shown = scores_of({"findings": method.findings()})
    assert shown is not None
    assert {(row.layer, row.part): row.value for row in shown.rows} == found
    assert [(row.layer, row.part) for row in shown.rows if row.chosen] == sorted(best)
    assert (shown.step, shown.examples) == (SWITCH, 3)
    size = method.size(method.context.architecture, method.config)
    assert len(method.selection().index) == size
    assert set(method.selection().step.tolist()) == {SWITCH}
    assert method.optimizer_scalars() == 2 * size
    allowed = {row.name: torch.zeros(row.size, dtype=torch.bool) for row in method.rows}
    for row in method.rows:
        own = [head for layer, head in best if layer == row.layer]
        if own:
            allowed[row.name][entries_of(row, own, method.context.architecture.heads)] = True
    moved = 0
    for name in names:
        differs = (training.model.get_parameter(name).detach() != base[name]).flatten()
        assert not (differs & ~allowed.get(name, torch.zeros_like(differs))).any(), name
        moved += int(differs.sum())
    assert 0.9 * size < moved <= size


def test_switching_heads_off_leaves_the_model_as_it_was() -> None:
    training = started(tiny_bert())
    before, mode = weights(training.model), training.model.training
    training.method.effects()  # type: ignore[attr-defined]
    assert training.model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in weights(training.model).items())
    assert not any(module._forward_pre_hooks for module in training.model.modules())


def test_no_example_is_said() -> None:
    model = tiny_bert()
    method = make(TunedHeads, model, SETTINGS)
    method.attach(model)
    with pytest.raises(DataError):
        method.score_pass(model, [], lambda done, total: None)


@every_base
@pytest.mark.parametrize("at", [0, 2, SWITCH, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(build: Build, at: int) -> None:
    whole = started(build()).run(batches_of(STEPS))
    first = started(build()).run(batches_of(STEPS)[:at])
    model = build()
    method = make(TunedHeads, model, SETTINGS, steps=STEPS)
    method.scores_first = False  # type: ignore[misc]  # a resumed run scores nothing
    rest = Training(method, model, lr=1e-2).load(first.state()).run(batches_of(STEPS)[at:])
    assert first.losses + rest.losses == whole.losses
    ours = weights(whole.model)
    assert all(torch.equal(value, ours[name]) for name, value in weights(rest.model).items())


@pytest.mark.parametrize("base", BASES)
def test_its_delta_gives_the_trained_model(base: str, tmp_path: Any) -> None:
    training = started(BASES[base]()).run(batches_of(STEPS))
    head = {
        row.name: training.model.get_parameter(row.name).detach() for row in training.method.context.architecture.head
    }
    metadata = {"base_sha256": "b" * 64, "method": "tuned_heads", "eligibility": "{}", "spec_hash": "test"}
    write_delta(tmp_path / "d.safetensors", delta_of(training.method.result(), head, metadata))
    fresh = BASES[base]()
    apply_delta(fresh, read_delta(tmp_path / "d.safetensors"), "b" * 64)
    ours = weights(training.model)
    assert all(torch.equal(value, ours[name]) for name, value in weights(fresh).items())
