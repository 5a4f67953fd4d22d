"""GreenTrainer: what a backward pass costs, what is worth its cost, and what really trains."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from engine.errors import BudgetError, DataError, Diverged, SpecError
from engine.export.formats import export_run
from engine.methods._backward import BackwardPass, Stage, backward_pass
from engine.methods._examples import together
from engine.methods.contract import Method
from engine.methods.full import FullFineTuning
from engine.methods.greentrainer import GreenTrainer
from engine.methods.pafi import PaFi
from engine.models.architecture import Parameter
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.test_added_modules import BASES, every_base, logits, tiny_gpt2
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import go_on, series, stop, submit

STEPS = 12
LENGTH = 8
EXAMPLES = [tiny_batch(1, length, seed=seed) for seed, length in enumerate((8, 5, 8, 3, 7, 6, 8, 4, 8, 8))]
SETTINGS = {"share": 0.3, "interval": 4, "samples": 4, "length": LENGTH}
HEADS = ("classifier", "score")


def training(settings: dict[str, Any] | None = None, model: nn.Module | None = None, **how: Any) -> Training:
    model = model or tiny_bert(layers=3)
    fused = how.pop("fused", False)
    method = make(GreenTrainer, model, {**SETTINGS, **(settings or {})}, steps=STEPS, **how)
    return Training(method, model, lr=5e-3, score_batches=EXAMPLES, fused=fused)


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Tensors, head apart, that are not bit for bit what they were."""
    now = weights(model)
    return {name for name in now if not torch.equal(now[name], before[name]) and not name.startswith(HEADS)}


# --- what it costs ----------------------------------------------------------------------------------


def measured(model: nn.Module, names: set[str], batch: dict[str, torch.Tensor]) -> float:
    """Multiplications of a real backward pass in which these tensors train, and the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names or name.startswith(HEADS))
        parameter.grad = None
    loss = model(**batch).loss
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return float(counter.get_total_flops()) / 2


def eager(build: Any) -> nn.Module:
    """A model whose attention is made of plain products, which can be counted on every device."""
    model = build()
    model.set_attn_implementation("eager")
    return model


@every_base
def test_computed_costs_are_those_of_real_backward_passes(build: Any) -> None:
    model = eager(build)
    architecture = architecture_of(model)
    costs, batch = backward_pass(architecture, LENGTH), tiny_batch(4, LENGTH)
    tokens = 4 * LENGTH
    head = measured(model, set(), batch)  # of its weight; once more for what it hands on
    names = [row.name for row in architecture.backbone]
    vectors = sum(stage.passing for stage in costs.stages if all(len(row.shape) == 1 for row in stage.tensors))
    vectors += sum(costs.own(row) for row in architecture.backbone if len(row.shape) == 1 or row.layer == -1)
    products = 4 * LENGTH * architecture.hidden
    draw = random.Random(0)
    sets = [{name} for name in names] + [set(draw.sample(names, draw.randint(1, 5))) for _ in range(30)] + [set(names)]
    for chosen in sets:
        real = (measured(model, chosen, batch) - 2 * head) / tokens
        told = costs.cost(chosen)
        assert real <= told + 1e-6, chosen
        deepest = next(s for s in reversed(costs.stages) if any(row.name in chosen for row in s.tensors))
        half = products if any(row.role in ("q", "k", "v") for row in deepest.tensors) else 0
        assert told - real <= vectors + half, chosen
    assert costs.cost(set(names)) == costs.whole
    assert costs.cost(set()) == 0


@every_base
def test_computed_forward_cost_is_that_of_a_real_forward_pass(build: Any) -> None:
    model = eager(build)
    architecture, batch = architecture_of(model), tiny_batch(4, LENGTH)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    told = backward_pass(architecture, LENGTH).forward * 4 * LENGTH
    head = sum(row.size for row in architecture.head) * 4 * LENGTH
    small = sum(row.size for row in architecture.backbone if len(row.shape) == 1) * 4 * LENGTH
    looked_up = 3 * architecture.hidden * 4 * LENGTH
    assert counter.get_total_flops() / 2 - head <= told <= counter.get_total_flops() / 2 + small + looked_up


@every_base
def test_every_tensor_is_at_one_depth(build: Any) -> None:
    architecture = architecture_of(build())
    stages = backward_pass(architecture, LENGTH).stages
    names = [row.name for stage in stages for row in stage.tensors]
    assert sorted(names) == sorted(row.name for row in architecture.backbone)
    layers = [row.layer for stage in stages for row in stage.tensors]
    assert layers == sorted(layers, reverse=True)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_gpt2])
def test_depths_are_those_at_which_gradients_arrive(build: Any) -> None:
    """What lies above does not feel what lies below: cut the way down, and exactly the tensors below lose theirs."""
    model = build()
    architecture = architecture_of(model)
    stages = backward_pass(architecture, LENGTH).stages
    place = {row.name: number for number, stage in enumerate(stages) for row in stage.tensors}
    arrived: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: arrived.append(name))
    model(**tiny_batch(4, LENGTH)).loss.backward()
    matrices = [place[name] for name in arrived if name in place and name.endswith("weight")]
    assert matrices == sorted(matrices), "autograd comes to them in this order"


# --- the best choice --------------------------------------------------------------------------------


def made_up(seed: int) -> tuple[BackwardPass, dict[str, float]]:
    """Four depths with two or three tensors each, of whole-numbered costs, and what each is worth."""
    draw = random.Random(seed)
    stages, worth = [], {}
    for depth in range(4):
        rows = []
        for number in range(draw.randint(2, 3)):
            row = Parameter(f"{depth}.{number}.weight", (draw.randint(1, 9),), depth, "other", "weight")
            worth[row.name] = draw.choice([-1.0, 0.0, draw.random(), 5 * draw.random()])
            rows.append(row)
        stages.append(Stage(tuple(rows), draw.randint(0, 9)))
    return BackwardPass(tuple(stages), 1, 0.0), worth


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.02, 0.2, 0.37, 0.5, 0.81, 1.0])
def test_no_set_of_tensors_within_the_share_is_worth_more(seed: int, share: float) -> None:
    costs, worth = made_up(seed)
    subsets = itertools.chain.from_iterable(itertools.combinations(worth, count) for count in range(len(worth) + 1))
    within = [subset for subset in subsets if costs.cost(subset) <= share * costs.whole + 1e-9]
    best = max(sum(worth[name] for name in subset) for subset in within)
    found = costs.best(worth, share)
    assert costs.cost(found) <= share * costs.whole + 1e-9
    # Costs are rounded up to parts of the whole, so what just fits may be missed; what is less by as much is not.
    slack = 12 / 20_000 * costs.whole
    less = max(sum(worth[n] for n in s) for s in within if costs.cost(s) <= share * costs.whole - slack or not s)
    assert less - 1e-9 <= sum(worth[name] for name in found) <= best + 1e-9
    assert all(worth[name] > 0 for name in found)


def test_a_choice_by_hand() -> None:
    a, b, c = (Parameter(name, (size,), 0, "other", "weight") for name, size in (("a", 4), ("b", 2), ("c", 10)))
    costs = BackwardPass((Stage((a, b), 4), Stage((c,), 100)), 1, 0.0)
    assert (costs.whole, costs.cost({"a"}), costs.cost({"c"}), costs.cost({"b", "c"})) == (20, 4, 14, 16)
    worth = {"a": 1.0, "b": 2.0, "c": 5.0}
    assert costs.best(worth, 0.05) == set()
    assert costs.best(worth, 0.2) == {"b"}
    assert costs.best(worth, 0.3) == {"a", "b"}
    assert costs.best(worth, 0.69) == {"a", "b"}, "the way down and c are 14 of 20"
    assert costs.best(worth, 0.7) == {"c"}
    assert costs.best(worth, 0.8) == {"b", "c"}
    assert costs.best(worth, 1.0) == {"a", "b", "c"}
    assert costs.best({**worth, "c": -5.0, "a": 0.0}, 1.0) == {"b"}


def test_a_larger_share_is_never_worth_less_nor_smaller() -> None:
    architecture = architecture_of(tiny_bert(layers=3))
    costs, draw = backward_pass(architecture, LENGTH), random.Random(1)
    worth = {row.name: draw.random() for row in architecture.backbone}
    gains, sizes = [], []
    for share in [step / 40 for step in range(1, 41)]:
        found = costs.best(worth, share)
        assert costs.cost(found) <= share * costs.whole
        gains.append(sum(worth[name] for name in found))
        sizes.append(GreenTrainer.size(architecture, GreenTrainer.Config(share=share, length=LENGTH)))
        assert sum(architecture.find(name).size for name in found) <= sizes[-1]
    assert gains == sorted(gains)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 10
    assert sizes[-1] == sum(row.size for row in architecture.backbone)


# --- what tensors are worth -------------------------------------------------------------------------


def test_worth_is_how_far_the_loss_falls() -> None:
    model = tiny_bert(layers=2).double()
    method: Any = make(GreenTrainer, model, {**SETTINGS, "trial_rate": 1e-6})
    method.attach(model)
    batch = tiny_batch(4, LENGTH)
    worth = method.worth(batch)
    named, start = dict(model.named_parameters()), float(model(**batch).loss.detach())
    gradients = dict(zip(named, torch.autograd.grad(model(**batch).loss, list(named.values())), strict=True))
    for name in worth:
        kept = named[name].detach().clone()
        with torch.no_grad():
            named[name].sub_(1e-6 * gradients[name].sign() * (gradients[name].abs() > 1e-7))
            fell = start - float(model(**batch).loss)
            named[name].copy_(kept)
        if worth[name] > 1e-8:
            assert fell == pytest.approx(worth[name], rel=0.02), name
    with torch.no_grad():
        for name in worth:
            named[name].sub_(1e-6 * gradients[name] / (gradients[name].abs() + 1e-8))
        assert start - float(model(**batch).loss) == pytest.approx(sum(worth.values()), rel=1e-2)


@every_base
def test_a_trial_leaves_no_trace(build: Any) -> None:
    model = build()
    run = training({}, model)
    method: Any = run.method
    base = weights(build())
    assert not moved(base, run.model), "the first choice has been made"
    run.run(batches_of(3))
    before, gradients = weights(run.model), {n: p.requires_grad for n, p in run.model.named_parameters()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = method.worth(method._groups[0])
    assert method.worth(method._groups[0]) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in weights(run.model).items())
    assert gradients == {n: p.requires_grad for n, p in run.model.named_parameters()}
    assert run.model.training
    assert method.optimizer_scalars() == 2 * sum(
        p.numel() for n, p in run.model.named_parameters() if n in method.touched
    )


# --- what trains ------------------------------------------------------------------------------------


@every_base
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_only_what_was_chosen_moves_until_the_next_choice(build: Any, share: float) -> None:
    run = training({"share": share}, build(), weight_decay=0.1)
    method: Any = run.method
    seen = []
    for start in range(0, STEPS, 4):
        groups = [together(EXAMPLES[at : at + 4], 0) for at in (0, 4, 8)]
        expected = method.costs.best(method.worth(groups[start // 4 % 3]), share)
        assert method.active == expected
        assert expected
        assert method.costs.cost(method.active) <= share * method.costs.whole
        free = {n for n, p in run.model.named_parameters() if p.requires_grad and not n.startswith(HEADS)}
        assert free == method.active
        before = weights(run.model)
        run.run(batches_of(STEPS)[start : start + 4])
        found = moved(before, run.model)
        assert found <= (before_active := set(expected))
        assert {name for name in before_active - found if not name.endswith("key.bias")} == set()
        seen.append(frozenset(expected))
    assert method.kept() == sum(p.numel() for n, p in run.model.named_parameters() if n in frozenset().union(*seen))
    assert method.kept() <= GreenTrainer.peak(method.context.architecture, method.config)
    for row in method.context.architecture.backbone:
        base = dict(build().named_parameters())[row.name].detach()
        change = method.delta(row, base)
        assert (change is None) == (row.name not in method.touched)


@every_base
def test_the_work_that_is_saved_is_really_saved(build: Any) -> None:
    model, batch = eager(build), tiny_batch(4, LENGTH)
    everything = {row.name for row in architecture_of(model).backbone}
    head, whole = measured(model, set(), batch), measured(model, everything, batch)
    method: Any = training({"share": 0.25}, model).method
    assert 0 < measured(model, method.active, batch) - 2 * head <= 0.26 * (whole - 2 * head)


def test_choices_change_and_the_share_sets_the_depth() -> None:
    run = training({"interval": 1, "share": 0.4})
    method: Any = run.method
    seen = {method.active}
    for batch in batches_of(STEPS):
        run.run([batch])
        seen.add(method.active)
    assert len(seen) > 1
    architecture = method.context.architecture
    shallow: Any = training({"share": 0.1}).method
    assert {architecture.find(name).layer for name in shallow.active} <= {2, 3}
    assert not any(architecture.find(name).layer == -1 for name in shallow.active)


@pytest.mark.parametrize("fused", [True])
def test_where_everything_is_worth_it_all_of_it_is_full_fine_tuning(fused: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(GreenTrainer, "worth", lambda self, batch: dict.fromkeys(self._tensors, 1.0))
    ours = training({"share": 1.0}, weight_decay=0.1, fused=fused).run(batches_of(STEPS))
    model = tiny_bert(layers=3)
    full = make(FullFineTuning, model, {}, steps=STEPS, weight_decay=0.1)
    plain = Training(full, model, lr=5e-3, fused=fused).run(batches_of(STEPS))
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(plain.losses), rtol=1e-5, atol=1e-6)
    for name, value in weights(plain.model).items():
        if not name.endswith("key.bias"):  # their gradients are rounding noise
            torch.testing.assert_close(weights(ours.model)[name], value, rtol=1e-3, atol=1e-4)


def test_where_nothing_is_worth_it_the_head_alone_trains(monkeypatch: Any) -> None:
    monkeypatch.setattr(GreenTrainer, "worth", lambda self, batch: dict.fromkeys(self._tensors, -1.0))
    run = training().run(batches_of(STEPS))
    assert moved(weights(tiny_bert(layers=3)), run.model) == set()
    assert run.method.active_now() == frozenset()
    assert run.losses[-1] != run.losses[0]


@every_base
@pytest.mark.parametrize("at", [0, 3, 4, 9])
def test_a_resumed_run_is_the_run_that_never_stopped(build: Any, at: int) -> None:
    straight = training({}, build(), weight_decay=0.1).run(batches_of(STEPS))
    state = training({}, build(), weight_decay=0.1).run(batches_of(STEPS)[:at]).state()
    for scored in (True, False):
        model = build()
        method = make(GreenTrainer, model, SETTINGS, steps=STEPS, weight_decay=0.1)
        if not scored:  # a resumed run is not scored again
            method.scores_first = False  # type: ignore[misc]
        resumed = Training(method, model, lr=5e-3, score_batches=EXAMPLES).load(state).run(batches_of(STEPS)[at:])
        assert resumed.losses == straight.losses[at:]
        ours, theirs = weights(resumed.model), weights(straight.model)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert method.active_now() == straight.method.active_now()
        assert method.optimizer_scalars() == straight.method.optimizer_scalars()


@pytest.mark.parametrize("base", BASES)
def test_a_result_installs_into_a_fresh_model(base: str) -> None:
    run = training({}, BASES[base]()).run(batches_of(STEPS))
    model = BASES[base]()
    method = make(GreenTrainer, model, SETTINGS, steps=STEPS)
    method.attach(model)
    method.install(run.method.result())
    assert not moved(weights(run.model), model)


# --- what it cannot do ------------------------------------------------------------------------------


def test_it_says_what_it_cannot_do() -> None:
    model = tiny_bert(layers=3)
    method: Any = make(GreenTrainer, model, SETTINGS)
    attached = method.attach(model)
    with pytest.raises(DataError, match="no training example"):
        method.score_pass(attached, [], lambda done, total: None)
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.0.output.dense.weight").fill_(float("nan"))
    with pytest.raises(Diverged):
        method.score_pass(attached, EXAMPLES, lambda done, total: None)
    outer: list[type[Method]] = [PaFi]
    for cls in outer:
        with pytest.raises(SpecError, match="cannot stand on"):
            make(cls, tiny_bert(), {"k": 5}, on=make(GreenTrainer, tiny_bert()))
    assert not GreenTrainer.composes


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_gpt2])
def test_a_budget_of_parameters_sets_the_share(build: Any) -> None:
    architecture = architecture_of(build())
    config = GreenTrainer.Config(length=LENGTH)
    whole = sum(row.size for row in architecture.backbone)
    assert GreenTrainer.fit(architecture, config, whole).share == 1  # type: ignore[attr-defined]
    for target in (whole // 3, whole // 7):
        fitted: Any = GreenTrainer.fit(architecture, config, target)
        assert 0 < GreenTrainer.size(architecture, fitted) <= target
        more = fitted.model_copy(update={"share": fitted.share + 0.001})
        assert GreenTrainer.size(architecture, more) > target
    with pytest.raises(BudgetError, match="at the smallest share"):
        GreenTrainer.fit(architecture, config, 1)


def test_the_plan_says_how_much_work_is_left() -> None:
    architecture = architecture_of(tiny_bert(layers=3))
    told = GreenTrainer.warnings(architecture, GreenTrainer.Config(share=0.25, length=LENGTH), 1000)
    assert len(told) == 1
    assert "at most 50%" in told[0]
    assert "25.0%" in told[0]
    assert any("chooses once" in text for text in GreenTrainer.warnings(architecture, GreenTrainer.Config(), 200))
    tiny = GreenTrainer.Config(share=1e-5, length=LENGTH)
    assert any("pays for no tensor" in text for text in GreenTrainer.warnings(architecture, tiny, 1000))
    assert GreenTrainer.size(architecture, tiny) == 0


@pytest.mark.parametrize("execution", ["padded", "ragged"])
def test_a_run_stopped_in_its_middle_ends_as_one_that_was_not(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    """From spec to merged model, through the checkpoint on disk, with a choice before the stop and one after."""
    method = {"name": "greentrainer", "share": 0.4, "interval": 6, "samples": 8, "length": 16}
    data = spec_data(small, method, lr=0.01, steps=20, execution=execution)
    whole, halted = submit(home, data), submit(home, data)
    assert run_job(home, whole, Caches()) == "finished", Runs(home).get(whole).error
    stop(home, halted, 8, monkeypatch)
    go_on(home, halted)
    assert series(home, whole)["train/loss"] == series(home, halted)["train/loss"]
    folders = [export_run(home, run, "merged", tmp_path / run) for run in (whole, halted)]
    first, second = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders)
    assert torch.equal(logits(first), logits(second))
