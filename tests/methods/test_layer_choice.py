"""Methods that choose whole layers or tensors by what they measure: which, when, and what stays as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import BudgetError, DataError, Diverged, SpecError
from engine.methods._active import block
from engine.methods._examples import together
from engine.methods._polyline import tolerances
from engine.methods.cofitune import CoFiTune, standing_out
from engine.methods.contract import Method
from engine.methods.ist import IST
from engine.methods.lora import LoRA
from engine.methods.pafi import PaFi
from engine.methods.rdp import RdpLoRA
from engine.methods.spafit import SPAFIT
from engine.methods.subtuning import SubTuning
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import go_on, series, stop, submit

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
        for _, parameter in method.parameters():  # attention may hide those of its queries alone
            parameter.fill_(float("nan"))
    with pytest.raises(Diverged):
        method._judge(1)
    assert any("only draws at random" in text for text in IST.warnings(ARCHITECTURE, IST.Config(), 10))
    assert not IST.warnings(ARCHITECTURE, IST.Config(), 11)
    with pytest.raises(SpecError, match="cannot stand on"):
        make(PaFi, tiny_bert(), {"k": 5}, on=make(IST, tiny_bert()))


# --- SubTuning ----------------------------------------------------------------------------------

TRIALS = {"samples": 12, "trial_steps": 2, "trial_batch": 4}


@pytest.mark.parametrize("base", BASES)
def test_subtuning_moves_the_layers_it_chose_and_trials_leave_no_trace(base: str) -> None:
    before = weights(BASES[base](layers=4))
    run = training(SubTuning, 8, BASES[base], layers=2, weight_decay=0.1, **TRIALS)
    assert all(torch.equal(value, before[name]) for name, value in weights(run.model).items())
    method: Any = run.method
    run.run(batches_of(8))
    best = [min(losses, key=losses.__getitem__) for losses in method.profile]
    assert len(set(best)) == 2
    architecture = method.context.architecture
    chosen = {row.name for layer in best for row in block(architecture, layer)}
    assert method.active == chosen
    assert moved(before, run.model) <= chosen
    assert {row.layer for row in architecture.backbone if row.name in moved(before, run.model)} == set(best)


def test_a_trial_is_a_short_training_of_these_layers_and_the_head() -> None:
    """The first round's losses, computed by a plain loop on fresh models."""
    run = training(SubTuning, 8, layers=1, **TRIALS)
    method: Any = run.method
    fit = [together(EXAMPLES[0:4], 0), together(EXAMPLES[4:6], 0)]
    for layer, loss in method.profile[0].items():
        model = tiny_bert(layers=4)
        own = [p for name, p in model.named_parameters() if f"layer.{layer}." in name or name.startswith(HEADS)]
        optimizer = torch.optim.AdamW(own, lr=1e-3, weight_decay=0.0)
        for batch in fit:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        with torch.no_grad():
            assert loss == pytest.approx(float(model(**together(EXAMPLES[6:12], 0)).loss), rel=1e-6)


def test_the_search_is_greedy_and_counts_its_trials() -> None:
    method: Any = make(SubTuning, tiny_bert(layers=4), {"layers": 3})
    worth = {(2,): 1.0, (2, 0): 0.5, (2, 0, 3): 0.4}
    steps: list[tuple[int, int]] = []
    assert method._search(lambda layers: worth.get(tuple(layers), 2.0), lambda *at: steps.append(at)) == [2, 0, 3]
    assert steps == [(number, 9) for number in range(1, 10)]


def test_subtuning_resumes_and_installs_bit_for_bit() -> None:
    assert_resumes(SubTuning, 5, layers=2, **TRIALS)
    run = training(SubTuning, layers=2, **TRIALS).run(batches_of(12))
    model = tiny_bert(layers=4)
    method = make(SubTuning, model, {"layers": 2})
    method.attach(model)
    method.install(run.method.result())
    assert not moved(weights(run.model), model)


def test_subtuning_says_what_it_cannot_do() -> None:
    model = tiny_bert(layers=4)
    method = make(SubTuning, model)
    with pytest.raises(DataError, match="cannot be divided"):
        method.score_pass(method.attach(model), EXAMPLES[:1], lambda done, total: None)
    one = sum(row.size for row in block(ARCHITECTURE, 0))
    assert SubTuning.fit(ARCHITECTURE, SubTuning.Config(), 3 * one).layers == 3  # type: ignore[attr-defined]
    with pytest.raises(BudgetError, match=f"{one:,}"):
        SubTuning.fit(ARCHITECTURE, SubTuning.Config(), one - 1)


# --- SPAFIT -------------------------------------------------------------------------------------

GROUPS = {"biases_from": 0.25, "adapters_from": 0.5}


def test_three_groups_are_frozen_nudged_and_adapted() -> None:
    before = weights(tiny_bert(layers=4))
    run = training(SPAFIT, steps=8, weight_decay=0.1, **GROUPS).run(batches_of(8))
    after = run.method.merged(run.model)
    found = moved(before, after)
    rows = {row.name: row for row in ARCHITECTURE.backbone}
    by_layer = {layer: {name for name in found if rows[name].layer == layer} for layer in range(-1, 5)}
    assert by_layer[-1] == by_layer[0] == by_layer[4] == set()
    assert by_layer[1]
    assert all(rows[name].part == "bias" for name in by_layer[1])
    for layer in (2, 3):
        assert {rows[name].role for name in by_layer[layer] if rows[name].part == "weight"} == {"q", "v"}
        biases = {rows[name].role for name in by_layer[layer] if rows[name].part == "bias"}
        assert {"up", "down", "o", "norm_1"} <= biases
        assert not biases & {"q", "v"}
    for name, row in rows.items():
        change = run.method.delta(row, before[name])
        assert (change is not None and bool(change.any())) == (name in found)
        if change is not None:
            torch.testing.assert_close(before[name] + change, dict(after.named_parameters())[name])


def test_a_budget_of_spafit_sets_ranks_beside_the_biases() -> None:
    config = SPAFIT.Config(**GROUPS)
    biases = sum(row.size for row in SPAFIT.biases_of(ARCHITECTURE, config))
    per_rank = 4 * 64  # two matrices of 32 by 32 in each of two layers
    fitted: Any = SPAFIT.fit(ARCHITECTURE, config, biases + 3 * per_rank + 64)
    assert fitted.rank == 3
    assert SPAFIT.size(ARCHITECTURE, fitted) == biases + 3 * per_rank + 64
    with pytest.raises(BudgetError, match=f"{biases + per_rank:,}"):
        SPAFIT.fit(ARCHITECTURE, config, biases + per_rank - 1)


def test_spafit_resumes_and_installs_bit_for_bit() -> None:
    assert_resumes(SPAFIT, 5, **GROUPS)
    run = training(SPAFIT, **GROUPS).run(batches_of(12))
    model = tiny_bert(layers=4)
    method = make(SPAFIT, model, GROUPS)
    method.attach(model)
    method.install(run.method.result())
    assert not moved(weights(run.model), model)


def test_spafit_without_biases_or_with_one_layer() -> None:
    llama = architecture_of(tiny_llama(layers=4))
    assert "no biases" in SPAFIT.warnings(llama, SPAFIT.Config(), 10)[-1]
    assert {row.layer for row in SPAFIT.trainables(llama, SPAFIT.Config(**GROUPS))} == {2, 3}
    single = architecture_of(tiny_bert(layers=1))
    assert SPAFIT.borders(single, SPAFIT.Config(biases_from=1, adapters_from=1)) == (0, 0)
    assert SPAFIT.targets_of(single, SPAFIT.Config())
    with pytest.raises(ValueError, match="follow each other"):
        SPAFIT.Config(biases_from=0.6, adapters_from=0.5)


# --- RDP LoRA -----------------------------------------------------------------------------------

PATH = np.random.default_rng(3).normal(size=(12, 5)).cumsum(0)


def simplified(points: np.ndarray, epsilon: float) -> list[int]:
    """The textbook recursion with a tolerance: indices of the points that stay."""

    def distance(index: int, first: int, last: int) -> float:
        line = points[last] - points[first]
        share = min(1.0, max(0.0, float((points[index] - points[first]) @ line / (line @ line))))
        return float(np.linalg.norm(points[index] - points[first] - share * line))

    def between(first: int, last: int) -> list[int]:
        far = max(range(first + 1, last), key=lambda index: distance(index, first, last), default=None)
        if far is None or distance(far, first, last) <= epsilon:
            return []
        return [*between(first, far), far, *between(far, last)]

    return [0, *between(0, len(points) - 1), len(points) - 1]


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 10.0])
def test_tolerances_are_those_of_the_textbook_algorithm(epsilon: float) -> None:
    stays = np.flatnonzero(tolerances(PATH) > epsilon).tolist()
    assert stays == simplified(PATH, epsilon)


def test_a_straight_path_has_ends_only_and_turning_it_changes_nothing() -> None:
    straight = np.outer(np.arange(6.0), [1.0, 2.0, -1.0])
    assert np.abs(tolerances(straight)[1:-1]).max() < 1e-12
    assert np.abs(tolerances(np.ones((4, 3)))[1:-1]).max() == 0
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    np.testing.assert_allclose(tolerances(PATH @ rotation + 7.0), tolerances(PATH))
    np.testing.assert_allclose(tolerances(3 * PATH), 3 * tolerances(PATH))


@pytest.mark.parametrize("base", BASES)
def test_the_path_is_that_of_the_base_models_hidden_states(base: str) -> None:
    method: Any = training(RdpLoRA, 4, BASES[base], samples=5).method
    model = BASES[base](layers=4)
    states: list[Any] = []
    with torch.no_grad():
        for example in EXAMPLES[:5]:
            states.append(torch.stack(model(**example, output_hidden_states=True).hidden_states)[:, 0])
    mean = torch.cat(states, 1).double().mean(1).numpy()
    known = slice(0, 4 if base == "llama" else 5)  # a Llama's last one is given out after its final norm
    np.testing.assert_allclose(method.polyline.points[known], mean[known], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("last", [True, False])
def test_only_the_chosen_layers_have_adapters_and_move(base: str, last: bool) -> None:
    before = weights(BASES[base](layers=4))
    run = training(RdpLoRA, 6, BASES[base], layers=2, last=last, weight_decay=0.1)
    method: Any = run.method
    line = method.polyline
    assert len(line.layers) == 2
    assert (3 in line.layers) == last
    others = set(range(3)) - set(line.layers)
    assert min(line.tolerance[layer + 1] for layer in line.layers) >= max(line.tolerance[layer + 1] for layer in others)
    run.run(batches_of(6))
    architecture = method.context.architecture
    targets = {row.name: row for row in method.targets_of(architecture, method.config)}
    found = moved(before, method.merged(run.model))
    assert found == {name for name, row in targets.items() if row.layer in line.layers}
    assert {
        name for name in before if (row := targets.get(name)) and method.delta(row, before[name]) is not None
    } == found
    assert method.kept() == RdpLoRA.size(architecture, method.config)
    assert sum("lora_A" in name for name in weights(run.model)) == 4


def test_rdp_resumes_installs_and_exports(tmp_path: Any) -> None:
    from peft import PeftModel

    assert_resumes(RdpLoRA, 5, layers=2)
    run = training(RdpLoRA, layers=2).run(batches_of(12))
    model = tiny_bert(layers=4)
    method: Any = make(RdpLoRA, model, {"layers": 2})
    model = method.attach(model)
    method.install(run.method.result())
    assert not moved(weights(run.model), model)
    run.method.save_peft(run.model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(layers=4), str(tmp_path)).eval()
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 4
    run.model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch()).logits, run.model(**tiny_batch()).logits)


def test_a_budget_of_rdp_is_met_by_ranks() -> None:
    config = RdpLoRA.Config(layers=2)
    per_rank = 2 * 2 * 64
    fitted: Any = RdpLoRA.fit(ARCHITECTURE, config, 3 * per_rank + 128)
    assert RdpLoRA.size(ARCHITECTURE, fitted) == 3 * per_rank + 128
    assert RdpLoRA.size(ARCHITECTURE, RdpLoRA.Config(layers=9)) == LoRA.size(ARCHITECTURE, LoRA.Config())
    assert "all of them" in RdpLoRA.warnings(ARCHITECTURE, RdpLoRA.Config(layers=9), 5)[-1]
    with pytest.raises(BudgetError, match=f"{per_rank:,}"):
        RdpLoRA.fit(ARCHITECTURE, config, per_rank - 1)


# --- CoFiTune -----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("soft", ["gradient", "update", "off"])
def test_only_the_range_moves_and_factors_are_shares(base: str, soft: str) -> None:
    before = weights(BASES[base](layers=4))
    run = training(CoFiTune, 6, BASES[base], soft=soft, start=0.25, end=0.75, weight_decay=0.1, samples=6)
    assert not moved(before, run.model)
    method: Any = run.method
    factors = torch.cat(list(method.factors.values()))
    assert 0 <= float(factors.min()) < float(factors.max()) <= 1
    run.run(batches_of(6))
    rows = {row.name: row for row in method.context.architecture.backbone}
    found = {(rows[name].layer, rows[name].role) for name in moved(before, run.model)}
    assert found == {(layer, role) for layer in (1, 2) for role in ("up", "down")}


def test_a_unit_stands_out_by_its_distance_from_the_mean() -> None:
    assert standing_out(torch.full((5,), 0.3)).abs().max() == 0
    found = standing_out(torch.tensor([0.0, 0.0, 0.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([1 / 3**0.5] * 3 + [3**0.5]).tanh())


def test_a_damped_update_is_the_plain_one_times_the_factor_and_adamw_undoes_a_damped_gradient() -> None:
    base = weights(tiny_bert(layers=4))

    def change(soft: str) -> tuple[Any, dict[str, torch.Tensor]]:
        run = training(CoFiTune, 1, soft=soft, samples=6).run(batches_of(1))
        return run.method, {name: value - base[name] for name, value in weights(run.model).items()}

    method, damped = change("update")
    plain, gradient = change("off")[1], change("gradient")[1]
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    factor = method.factors["bert.encoder.layer.1.intermediate.dense"][:, None]
    torch.testing.assert_close(damped[name], plain[name] * factor, rtol=1e-4, atol=1e-7)
    strong = (factor > 0.1).expand_as(plain[name]) & (plain[name].abs() > 4.99e-3)
    assert strong.any()
    torch.testing.assert_close(gradient[name][strong], plain[name][strong], rtol=0.02, atol=0)


def test_a_damped_gradient_is_the_rows_own_times_its_factor() -> None:
    run = training(CoFiTune, samples=6)
    method: Any = run.method
    run.model(**tiny_batch()).loss.backward()
    before = {name: parameter.grad.clone() for name, parameter in method.parameters()}
    method.before_step(0)
    for name, parameter in method.parameters():
        factor = method.factors[name.rpartition(".")[0]]
        assert torch.equal(parameter.grad, before[name] * (factor[:, None] if parameter.ndim == 2 else factor))


def test_cofitune_resumes_bit_for_bit_and_fits_whole_layers() -> None:
    for soft in ("gradient", "update"):
        assert_resumes(CoFiTune, 5, soft=soft, samples=6)
    config: Any = CoFiTune.Config()
    one = CoFiTune.size(ARCHITECTURE, config)
    assert CoFiTune.layers_of(ARCHITECTURE, config) == range(1, 2)
    assert CoFiTune.size(ARCHITECTURE, CoFiTune.fit(ARCHITECTURE, config, 2 * one + 5)) == 2 * one
    assert CoFiTune.size(ARCHITECTURE, CoFiTune.fit(ARCHITECTURE, config, 10**9)) == 3 * one
    with pytest.raises(BudgetError, match=f"{one:,}"):
        CoFiTune.fit(ARCHITECTURE, config, one - 1)
    assert "one layer" in CoFiTune.warnings(ARCHITECTURE, CoFiTune.Config(start=0.5, end=0.2), 5)[0]


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"name": "ist", "interval": 3},
        {"name": "subtuning", "layers": 1, "samples": 16, "trial_steps": 2},
        {"name": "spafit", "rank": 2},
        {"name": "rdp_lora", "layers": 1, "rank": 2},
        {"name": "cofitune", "samples": 8},
    ],
    ids=lambda method: method["name"],
)
def test_a_whole_run_that_was_stopped_goes_on_bit_for_bit(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    data = spec_data(small, method, lr=0.01, steps=12)
    straight, stopped = submit(home, data), submit(home, data)
    assert run_job(home, straight, Caches()) == "finished", Runs(home).get(straight).error
    stop(home, stopped, 7, monkeypatch)
    go_on(home, stopped)
    for key in ("train/loss", "gradient/norm", "validation/loss"):
        assert series(home, straight)[key] == series(home, stopped)[key]
