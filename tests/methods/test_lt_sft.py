"""LT-SFT's own oracles: full fine-tuning first, exactly back to the start, then what moved most and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.methods.full import FullFineTuning
from engine.methods.lt_sft import LTSFT
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from tests.methods import reference
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_bert

STEPS = 10


def training(cls: type[Any] = LTSFT, weight_decay: float = 0.0, **settings: Any) -> Training:
    model = tiny_bert()
    return Training(make(cls, model, settings, steps=STEPS, weight_decay=weight_decay), model, lr=2e-3, fused=True)


def test_the_first_phase_is_full_fine_tuning() -> None:
    ours, full = (
        training(cls, **how).run(batches_of(STEPS)[:4]) for cls, how in ((LTSFT, {"k": 50}), (FullFineTuning, {}))
    )
    assert ours.losses == full.losses
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), full.model.parameters(), strict=True))
    assert ours.method.optimizer_scalars() == 2 * sum(row.size for row in architecture_of(tiny_bert()).backbone)
    assert len(ours.method.selection().index) == 0  # type: ignore[union-attr]


def test_then_everything_is_back_and_what_moved_most_is_selected() -> None:
    base = weights(tiny_bert())
    full = training(FullFineTuning).run(batches_of(STEPS)[:5])
    rows = architecture_of(tiny_bert()).backbone
    named = weights(full.model)
    scores = [(named[row.name] - base[row.name]).abs().flatten() for row in rows]
    expected = reference.top(scores, [torch.ones(len(part), dtype=torch.bool) for part in scores], 80)
    ours = training(k=80).run(batches_of(STEPS)[:5])
    now = weights(ours.model)
    assert all(torch.equal(now[row.name], base[row.name]) for row in rows)
    selection = ours.method.selection()
    assert selection is not None
    assert set(selection.step.tolist()) == {5}
    for number, mask in enumerate(expected):
        own = sorted(selection.index[selection.tensor == number].tolist())
        assert own == mask.nonzero().flatten().tolist()


def test_in_the_end_only_these_have_moved_whatever_the_decay() -> None:
    base = weights(tiny_bert())
    run = training(k=80, weight_decay=0.1).run(batches_of(STEPS))
    selection, now = run.method.selection(), weights(run.model)
    assert selection is not None
    for number, row in enumerate(selection.parameters):
        moved = (now[row.name] != base[row.name]).flatten().nonzero().flatten().tolist()
        assert set(moved) <= set(selection.index[selection.tensor == number].tolist())
    assert run.method.optimizer_scalars() == 160


def test_resumed_in_either_phase_it_is_the_run_that_never_stopped() -> None:
    straight = training(k=80).run(batches_of(STEPS))
    for stop in (3, 7):
        state = training(k=80).run(batches_of(STEPS)[:stop]).state()
        resumed = training(k=80).load(state).run(batches_of(STEPS)[stop:])
        assert straight.losses[stop:] == resumed.losses
        ours = zip(straight.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in ours)


def test_a_difference_can_be_applied_and_taken_back(tmp_path: Path) -> None:
    run = training(k=40).run(batches_of(STEPS))
    head = {name: p for name, p in run.model.named_parameters() if name.startswith("classifier")}
    metadata = {"method": "lt_sft", "eligibility": "{}", "spec_hash": "s", "base_sha256": "b" * 64}
    write_delta(tmp_path / "d.safetensors", delta_of(run.method.result(), head, metadata))
    fresh, base, trained = tiny_bert(), weights(tiny_bert()), weights(run.model)
    applied = apply_delta(fresh, read_delta(tmp_path / "d.safetensors"), "b" * 64)
    assert all(torch.equal(parameter, trained[name]) for name, parameter in fresh.named_parameters())
    applied.revert()
    assert all(torch.equal(parameter, base[name]) for name, parameter in fresh.named_parameters())


def test_a_first_phase_that_leaves_nothing_is_warned_of() -> None:
    architecture = architecture_of(tiny_bert())
    assert any("nothing is left" in text for text in LTSFT.warnings(architecture, LTSFT.Config(probe=0.99), 10))
    assert not any("nothing is left" in text for text in LTSFT.warnings(architecture, LTSFT.Config(k=10), 10))
