"""GMT's own oracles: exactly k per step, the largest, and what momentum does to those left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import BudgetError
from engine.methods.full import FullFineTuning
from engine.methods.gmt import GMT
from engine.sparse.selection import shares
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_bert

ROWS = architecture_of(tiny_bert()).backbone
MODEL = sum(row.size for row in ROWS)


def training(cls: type[Any] = GMT, steps: int = 8, **settings: Any) -> Training:
    model = tiny_bert()
    return Training(make(cls, model, settings, steps=steps), model, lr=1e-3, fused=True)


def moved(before: dict[str, torch.Tensor], run: Training) -> dict[str, torch.Tensor]:
    now = weights(run.model)
    return {row.name: now[row.name] != before[row.name] for row in ROWS}


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_at_the_first_step_exactly_the_largest_gradients_move(scope: str) -> None:
    model = tiny_bert()
    model(**batches_of(1)[0]).loss.backward()
    sizes = {row.name: dict(model.named_parameters())[row.name].grad.abs() for row in ROWS}
    run = training(k=900, scope=scope).run(batches_of(1))
    found = moved(weights(tiny_bert()), run)
    chosen = run.method._ever  # type: ignore[attr-defined]
    assert sum(int(mask.sum()) for mask in chosen.values()) == run.method.kept() == 900
    if scope == "tensor":
        assert [int(chosen[row.name].sum()) for row in ROWS] == shares([row.size for row in ROWS], 900)
    assert all(not bool((found[name] & ~chosen[name]).any()) for name in found)
    strength = {name: size.flatten() for name, size in sizes.items()}
    groups = [[row.name] for row in ROWS] if scope == "tensor" else [[row.name for row in ROWS]]
    for names in groups:
        picked = torch.cat([chosen[name].flatten() for name in names])
        values = torch.cat([strength[name] for name in names])
        if picked.any() and not picked.all():
            assert values[picked].min() >= values[~picked].max() * (1 - 1e-5)


def test_weight_decay_reaches_the_chosen_weights_alone() -> None:
    base, model = weights(tiny_bert()), tiny_bert()
    method = make(GMT, model, {"k": 300, "mask": "update"}, weight_decay=0.1)
    run = Training(method, model, lr=1e-3).run(batches_of(1))
    assert sum(int(part.sum()) for part in moved(base, run).values()) <= 300


@pytest.mark.parametrize("mask", ["gradient", "update"])
def test_momentum_moves_what_is_left_out_unless_the_update_is_masked(mask: str) -> None:
    run = training(k=300, mask=mask).run(batches_of(4))
    before = weights(run.model)
    run.run([batches_of(5)[4]])
    count = sum(int(part.sum()) for part in moved(before, run).values())
    assert (count > 300) == (mask == "gradient")


def test_more_and_more_weights_have_had_their_turn() -> None:
    run, kept = training(k=300), []
    for batch in batches_of(8):
        kept.append(run.run([batch]).method.kept())
    assert kept == sorted(kept)
    assert kept[-1] > 2 * 300


def test_all_of_them_is_full_fine_tuning() -> None:
    ours, full = (training(cls, **how).run(batches_of(5)) for cls, how in ((GMT, {"k": MODEL}), (FullFineTuning, {})))
    assert ours.losses == full.losses
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), full.model.parameters(), strict=True))
    assert ours.method.optimizer_scalars() == 2 * MODEL


def test_a_resumed_run_is_the_run_that_never_stopped() -> None:
    straight = training(k=300).run(batches_of(8))
    resumed = training(k=300).load(training(k=300).run(batches_of(8)[:3]).state()).run(batches_of(8)[3:])
    assert straight.losses[3:] == resumed.losses
    assert straight.method.kept() == resumed.method.kept()
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_budget_is_met_exactly() -> None:
    architecture = architecture_of(tiny_bert())
    assert GMT.size(architecture, GMT.fit(architecture, GMT.Config(), 777)) == 777
    with pytest.raises(BudgetError):
        GMT.fit(architecture, GMT.Config(), 0)
