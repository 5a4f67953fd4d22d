"""Methods that train whole tensors of their choice: which ones, when, and what stays exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import BudgetError, SpecError
from engine.methods._active import block, outside
from engine.methods.components import Components
from engine.methods.contract import Method
from engine.methods.hft import HalfFineTuning
from engine.methods.kappatune import KappaTune, condition
from engine.methods.lisa import LISA
from engine.methods.pafi import PaFi
from engine.methods.surgical import Surgical
from engine.models.catalogue import architecture_of as architecture_of_model
from engine.models.catalogue import resolve_model
from engine.probes.found import scores_of
from tests.methods import reference
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_bert, tiny_llama

EXAMPLES = batches_of(6, size=1)
ARCHITECTURE = architecture_of(tiny_bert(layers=4))


def training(cls: type[Method], steps: int = 12, **settings: Any) -> Training:
    model = tiny_bert(layers=4)
    keys = ("weight_decay", "seed")
    how = {key: settings.pop(key) for key in keys if key in settings}
    return Training(make(cls, model, settings, steps=steps, **how), model, lr=1e-3, score_batches=EXAMPLES)


def moved(before: dict[str, torch.Tensor], run: Training) -> set[str]:
    """Backbone tensors that are not bit for bit what they were."""
    now = weights(run.model)
    return {row.name for row in ARCHITECTURE.backbone if not torch.equal(now[row.name], before[row.name])}


def names(rows: list[Any]) -> set[str]:
    return {row.name for row in rows}


# --- surgical -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_only_the_layers_with_most_fisher_information_move(weight_decay: float) -> None:
    model = tiny_bert(layers=4)
    rows = [row for layer in range(4) for row in block(ARCHITECTURE, layer)]
    fisher = reference.fisher(model, [dict(model.named_parameters())[row.name] for row in rows], EXAMPLES)
    scores = [0.0] * 4
    for row, total in zip(rows, fisher, strict=True):
        scores[row.layer] += float(total.norm())
    best = sorted(range(4), key=lambda layer: -scores[layer])[:2]
    run = training(Surgical, layers=2, weight_decay=weight_decay).run(batches_of(12))
    chosen = names([row for layer in best for row in block(ARCHITECTURE, layer)])
    shown = scores_of({"findings": run.method.findings()})
    assert shown is not None
    assert [row.value for row in shown.rows] == pytest.approx(scores, rel=1e-4)
    assert [row.layer for row in shown.rows if row.chosen] == sorted(best)
    assert (shown.examples, shown.step) == (len(EXAMPLES), 0)
    assert run.method.active == chosen  # type: ignore[attr-defined]
    found = moved(weights(tiny_bert(layers=4)), run)
    assert found <= chosen
    assert chosen - found <= {name for name in chosen if name.endswith("key.bias")}
    assert run.method.optimizer_scalars() == 2 * sum(row.size for layer in best for row in block(ARCHITECTURE, layer))


def test_the_order_of_the_examples_does_not_matter() -> None:
    def chosen(examples: list[Any]) -> frozenset[str]:
        model = tiny_bert(layers=4)
        method = make(Surgical, model, {"layers": 2})
        method.score_pass(method.attach(model), examples, lambda done, total: None)
        return method.active  # type: ignore[attr-defined,no-any-return]

    assert chosen(EXAMPLES) == chosen(EXAMPLES[::-1])


def test_what_is_outside_the_layers_trains_when_asked() -> None:
    run = training(Surgical, layers=1, outside=True).run(batches_of(3))
    assert names(outside(ARCHITECTURE)) <= run.method.active  # type: ignore[attr-defined]
    size = Surgical.size(ARCHITECTURE, Surgical.Config(layers=1, outside=True))
    assert size == sum(row.size for row in (*block(ARCHITECTURE, 0), *outside(ARCHITECTURE)))


@pytest.mark.parametrize("cls", [Surgical, LISA])
def test_a_budget_is_met_in_whole_layers(cls: type[Any]) -> None:
    config = cls.Config(outside=False)
    one = sum(row.size for row in block(ARCHITECTURE, 0))
    assert cls.fit(ARCHITECTURE, config, 3 * one + 1).layers == 3
    assert cls.fit(ARCHITECTURE, config, 10**9).layers == 4
    with pytest.raises(BudgetError, match=f"{one:,}"):
        cls.fit(ARCHITECTURE, config, one - 1)


# --- half fine-tuning ---------------------------------------------------------------------


def test_the_card_of_half_fine_tuning_says_how_much_trains_with_and_without_embeddings() -> None:
    def shares(outside: bool) -> list[int]:
        config = HalfFineTuning.Config(outside=outside)
        maps = [architecture_of_model(resolve_model(name), 2) for name in ("minilm-l6", "nano-bert")]
        return [round(100 * HalfFineTuning.size(each, config) / sum(r.size for r in each.backbone)) for each in maps]

    (whole, whole_nano), (half, half_nano) = shares(True), shares(False)
    said = " ".join((HalfFineTuning.__doc__ or "").split())
    assert f"on MiniLM {whole} per cent train in all, on nano-bert {whole_nano}" in said
    assert f"and {half} and {half_nano} when it is off" in said


# --- LISA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_within_an_interval_exactly_the_drawn_layers_move(weight_decay: float) -> None:
    run = training(LISA, steps=12, layers=2, interval=3, weight_decay=weight_decay)
    visits = []
    for start in range(0, 12, 3):
        before = weights(run.model)
        run.run(batches_of(12)[start : start + 3])
        drawn = run.method.drawn(start)  # type: ignore[attr-defined]
        visits.append(drawn)
        allowed = names([row for layer in drawn for row in block(ARCHITECTURE, layer)] + outside(ARCHITECTURE))
        found = moved(before, run)
        assert found <= allowed
        assert {row.layer for row in ARCHITECTURE.backbone if row.name in found and 0 <= row.layer < 4} == set(drawn)
    assert all(len(set(drawn)) == 2 for drawn in visits)
    assert len({tuple(drawn) for drawn in visits}) > 1


def test_draws_are_uniform() -> None:
    method = make(LISA, tiny_bert(layers=4), {"layers": 2, "interval": 1}, steps=4000)
    counts = [0] * 4
    for step in range(4000):
        for layer in method.drawn(step):  # type: ignore[attr-defined]
            counts[layer] += 1
    assert all(abs(count - 2000) < 5 * (4000 * 0.25) ** 0.5 for count in counts)


@pytest.mark.parametrize("drop_state", [True, False])
def test_moments_of_frozen_layers_are_dropped_or_kept(drop_state: bool) -> None:
    run = training(LISA, steps=40, layers=1, interval=2, outside=False, drop_state=drop_state).run(batches_of(39))
    one = sum(row.size for row in block(ARCHITECTURE, 0))
    assert run.method.optimizer_scalars() == (2 * one if drop_state else 8 * one)
    assert run.method.kept() == 4 * one


def test_draws_that_cannot_reach_all_layers_are_warned_of() -> None:
    assert any("some never train" in text for text in LISA.warnings(ARCHITECTURE, LISA.Config(layers=1), 60))
    assert LISA.warnings(ARCHITECTURE, LISA.Config(layers=2), 60) == []


@pytest.mark.parametrize(
    ("cls", "settings"), [(Surgical, {}), (LISA, {"interval": 4}), (LISA, {"interval": 2, "drop_state": False})]
)
def test_a_resumed_run_is_the_run_that_never_stopped(cls: type[Method], settings: dict[str, Any]) -> None:
    straight = training(cls, **settings).run(batches_of(12))
    state = training(cls, **settings).run(batches_of(12)[:6]).state()
    resumed = training(cls, **settings).load(state).run(batches_of(12)[6:])
    assert straight.losses[6:] == resumed.losses
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize("cls", [Surgical, LISA, KappaTune])
def test_a_result_installs_into_a_fresh_model(cls: type[Method]) -> None:
    run = training(cls).run(batches_of(12))
    model = tiny_bert(layers=4)
    method = make(cls, model, {}, steps=12)
    attached = method.attach(model)
    method.install(run.method.result())
    assert not moved(weights(attached), run)


@pytest.mark.parametrize("cls", [Surgical, LISA, KappaTune])
def test_no_mask_stands_on_what_changes_its_tensors(cls: type[Method]) -> None:
    with pytest.raises(SpecError, match="cannot stand on"):
        make(PaFi, tiny_bert(), {"k": 5}, on=make(cls, tiny_bert(), {}))


# --- KappaTune ------------------------------------------------------------------------------


def test_the_condition_number_knows_no_scale_and_is_one_for_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 20, generator=generator)
    assert condition(matrix) >= 1
    assert condition(3.5 * matrix) == pytest.approx(condition(matrix), rel=1e-6)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    assert condition(rotation) == pytest.approx(1.0)
    assert condition(torch.zeros(3, 3)) == float("inf")


def test_the_best_conditioned_matrices_train_and_a_singular_one_never() -> None:
    model = tiny_bert(layers=4)
    with torch.no_grad():
        dict(model.named_parameters())["bert.encoder.layer.0.attention.self.query.weight"][0] = 0
        dict(model.named_parameters())["bert.encoder.layer.0.attention.self.query.weight"][1] = 0
    found = {row.name: condition(dict(model.named_parameters())[row.name]) for row in ARCHITECTURE.linears()}
    method = make(KappaTune, model, {"matrices": 5})
    method.score_pass(method.attach(model), [], lambda done, total: None)
    assert method.active == set(sorted(found, key=lambda name: found[name])[:5])  # type: ignore[attr-defined]
    assert "bert.encoder.layer.0.attention.self.query.weight" not in method.active  # type: ignore[attr-defined]


# --- components and halves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "roles"),
    [
        ("attention", {"q", "k", "v", "o"}),
        ("query_value", {"q", "v"}),
        ("feed_forward", {"up", "down"}),
        ("gate_up", {"up"}),
        ("norms", {"norm_in", "norm_1", "norm_2"}),
        ("embeddings", {"token", "position", "type"}),
        ("pooler", {"pooler"}),
    ],
)
def test_a_component_trains_in_every_layer_and_nothing_else_does(component: str, roles: set[str]) -> None:
    run = training(Components, train=(component,)).run(batches_of(4))
    found = {row.role for row in ARCHITECTURE.backbone if row.name in moved(weights(tiny_bert(layers=4)), run)}
    assert found == roles


def test_the_last_layer_can_train_alone() -> None:
    rows = Components.trainables(ARCHITECTURE, Components.Config(train=("last_layer",)))
    assert names(list(rows)) == names(block(ARCHITECTURE, 3))
    with pytest.raises(BudgetError, match="name smaller ones"):
        Components.fit(ARCHITECTURE, Components.Config(), 10)
    mixed = Components.Config(train=("attention", "pooler"))
    assert "has no pooler" in Components.warnings(architecture_of(tiny_llama()), mixed, 10)[0]
    assert Components.warnings(ARCHITECTURE, mixed, 10) == []
    assert "no gates" in Components.warnings(ARCHITECTURE, Components.Config(train=("gate_up",)), 10)[0]


@pytest.mark.parametrize("make_model", [tiny_bert, tiny_llama])
def test_half_of_the_matrices_of_every_kind_train(make_model: Any) -> None:
    architecture = architecture_of(make_model(layers=4))
    chosen = names(list(HalfFineTuning.trainables(architecture, HalfFineTuning.Config(outside=False))))
    for kinds in (("q", "k", "v", "o"), ("gate", "up", "down"), ("norm_1", "norm_2")):
        rows = [row for row in architecture.backbone if row.role in kinds and row.part == "weight"]
        assert sum(row.name in chosen for row in rows) == len(rows) / 2
    weights_of = {row.module for row in architecture.backbone if row.name in chosen and row.part == "weight"}
    assert all((row.module in weights_of) == (row.name in chosen) for row in architecture.backbone)
    other = names(list(HalfFineTuning.trainables(architecture, HalfFineTuning.Config(outside=False, draw=1))))
    assert chosen != other
