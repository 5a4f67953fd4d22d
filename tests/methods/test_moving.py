"""SpIEL and LIFT: masks of constant size that move while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from engine.errors import BudgetError, Diverged, SpecError
from engine.export.budgets import budgets
from engine.methods._selective import Selective
from engine.methods.lift import LIFT
from engine.methods.shira import SHiRA
from engine.methods.spiel import SpIEL
from engine.probes.recorded import mask_of
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from engine.store.run_file import RunReader
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import submit

STEPS = 16
SETTINGS: dict[type[Selective], dict[str, Any]] = {
    SpIEL: {"k": 300, "every": 5, "window": 2, "rate": 0.5},
    LIFT: {"rank": 2, "filter": 4, "every": 4},
}
BOTH = pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.name)
Entries = set[tuple[int, int]]


def training(
    cls: type[Selective], model: nn.Module | None = None, weight_decay: float = 0.0, lr: float = 0.02, **settings: Any
) -> Training:
    model = model or tiny_bert()
    method = make(cls, model, SETTINGS[cls] | settings, steps=STEPS, weight_decay=weight_decay)
    return Training(method, model, lr=lr)


def entries(run: Training) -> Entries:
    selection = run.method.selection()
    assert selection is not None
    found = set(zip(selection.tensor.tolist(), selection.index.tolist(), strict=True))
    assert len(found) == len(selection.index), "each entry is selected once"
    return found


def changed(run: Training, base: dict[str, torch.Tensor]) -> Entries:
    """Entries that differ from the base, head apart; of tensors that cannot be selected in, number -1."""
    numbers = {row.name: number for number, row in enumerate(run.method.rows)}  # type: ignore[attr-defined]
    return {
        (numbers.get(name, -1), place)
        for name, now in weights(run.model).items()
        if name in base and not name.startswith(("classifier", "score"))
        for place in (now != base[name]).flatten().nonzero().flatten().tolist()
    }


def by_step(run: Training, steps: int = STEPS) -> list[Entries]:
    """The mask before the first step and after each."""
    masks = [entries(run)]
    for batch in batches_of(STEPS)[:steps]:
        run.run([batch])
        masks.append(entries(run))
    return masks


# --- both -----------------------------------------------------------------------------------------


@BOTH
def test_every_matrix_keeps_its_number_of_entries_while_they_move(cls: type[Selective]) -> None:
    run = training(cls)
    masks = by_step(run)
    counts = {tuple(np.bincount([tensor for tensor, _ in mask], minlength=12)) for mask in masks}
    assert len(counts) == 1
    assert run.method.optimizer_scalars() == 2 * len(masks[-1]) == 2 * run.method.k  # type: ignore[attr-defined]
    assert len(set().union(*masks)) > len(masks[0])
    assert run.method.parameters() == []


@BOTH
@pytest.mark.parametrize("base_model", [tiny_bert, tiny_llama])
def test_a_run_resumed_anywhere_is_the_run_that_never_stopped(cls: type[Selective], base_model: Any) -> None:
    straight = training(cls, base_model(), 0.1).run(batches_of(STEPS))
    for stop in range(1, STEPS, 2 if base_model is tiny_bert else 6):
        state = training(cls, base_model(), 0.1).run(batches_of(STEPS)[:stop]).state()
        resumed = training(cls, base_model(), 0.1).load(state).run(batches_of(STEPS)[stop:])
        assert resumed.losses == straight.losses[stop:]
        ours, theirs = weights(straight.model), weights(resumed.model)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        one, two = straight.method.selection(), resumed.method.selection()
        assert one is not None
        assert two is not None
        assert all((getattr(one, key) == getattr(two, key)).all() for key in ("tensor", "index", "step"))
        assert resumed.method.kept() == straight.method.kept()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_gives_the_trained_model_and_is_taken_back(
    cls: type[Selective], dtype: torch.dtype, tmp_path: Path
) -> None:
    run = training(cls, tiny_bert().to(dtype), 0.1).run(batches_of(STEPS))
    head = {name: p for name, p in run.model.named_parameters() if name.startswith("classifier")}
    metadata = {"method": cls.name, "eligibility": "{}", "spec_hash": "s", "base_sha256": "b" * 64}
    write_delta(tmp_path / "d.safetensors", delta_of(run.method.result(), head, metadata))
    delta = read_delta(tmp_path / "d.safetensors")
    assert delta.count == (run.method.kept() or run.method.k)  # type: ignore[attr-defined]
    fresh, base, trained = tiny_bert().to(dtype), weights(tiny_bert().to(dtype)), weights(run.model)
    applied = apply_delta(fresh, delta, "b" * 64)
    assert all(torch.equal(parameter, trained[name]) for name, parameter in fresh.named_parameters())
    applied.revert()
    assert all(torch.equal(parameter, base[name]) for name, parameter in fresh.named_parameters())


@BOTH
def test_a_result_installs_into_a_fresh_model(cls: type[Selective]) -> None:
    run = training(cls).run(batches_of(STEPS))
    fresh = training(cls)
    fresh.method.install(run.method.result())
    ours = weights(run.model)
    for name, parameter in fresh.model.named_parameters():
        assert name.startswith("classifier") or torch.equal(parameter, ours[name]), name


@BOTH
def test_the_change_of_a_matrix_counts_all_that_differs(cls: type[Selective]) -> None:
    base, run = weights(tiny_bert()), training(cls).run(batches_of(STEPS))
    now = weights(run.model)
    for row in architecture_of(run.model).linears():
        delta = run.method.delta(row, base[row.name])
        assert delta is not None
        assert torch.equal(delta, now[row.name] - base[row.name])


@BOTH
def test_a_gradient_that_is_not_finite_is_divergence(cls: type[Selective]) -> None:
    run = training(cls)
    with torch.no_grad():
        next(p for name, p in run.model.named_parameters() if "query.weight" in name)[0, 0] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        run.run(batches_of(STEPS))


@BOTH
def test_a_record_holds_the_last_mask_and_no_smaller_ones(cls: type[Selective], home: Path, small: Path) -> None:
    run_id = submit(home, spec_data(small, {"name": cls.name, **SETTINGS[cls]}, lr=0.02))
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
    runs = Runs(home)
    reader = RunReader(runs.folder(run_id).database)
    assert [step for _, step in reader.frame_index("selected")] == [12]
    recorded, summary = reader.selection(), runs.get(run_id).summary
    assert summary is not None
    assert len(set(recorded["step"].tolist())) > 1
    counted = reader.latest()["mask/selected"][1]
    assert counted == len(recorded["index"])
    assert mask_of("one", cls.name, reader.metas(), recorded, counted) is not None
    assert summary["params"]["method"] >= counted
    assert (summary["params"]["method"] > counted) == (cls is LIFT)
    with pytest.raises(SpecError, match="gives selected weights up"):
        budgets(home, run_id)


# --- SpIEL ----------------------------------------------------------------------------------------


def test_it_exchanges_when_the_window_closes_and_at_no_other_step() -> None:
    masks = by_step(training(SpIEL))
    moved = [done for done in range(1, STEPS + 1) if masks[done] != masks[done - 1]]
    assert moved == [2, 7, 12]


def test_the_share_follows_the_authors_schedule() -> None:
    method = make(SpIEL, tiny_bert(), {"every": 20, "window": 5}, steps=100)
    found = {done: method.share(done) for done in range(1, 101) if method.share(done)}  # type: ignore[attr-defined]
    expected = {5: 1.0, 25: 0.15, 45: 0.11, 65: 0.07, 85: 0.03}
    assert found == pytest.approx(expected)
    wave = make(SpIEL, tiny_bert(), {"every": 20, "window": 5, "decline": "cosine"}, steps=100)
    assert wave.share(5) == pytest.approx(0.1 * (1 + np.cos(np.pi * 0.05)))  # type: ignore[attr-defined]
    looks = [step for step in range(50) if method.looking(step)]  # type: ignore[attr-defined]
    assert looks == [0, 1, 2, 3, 4, 19, 20, 21, 22, 23, 24, 39, 40, 41, 42, 43, 44]


def test_what_was_dropped_is_the_base_again_whatever_the_decay() -> None:
    base, run = weights(tiny_bert()), training(SpIEL, weight_decay=0.1)
    masks = by_step(run)
    assert changed(run, base) <= masks[-1]
    assert len(changed(run, base)) > 0.9 * len(masks[-1])
    assert set().union(*masks) - masks[-1]


def exchanged_plainly(
    base: dict[str, torch.Tensor], run: Training, grads: list[dict[str, torch.Tensor]], share: float
) -> Entries:
    """The mask after an exchange, by sorting everything; `run` is as before the exchange."""
    now, mask = weights(run.model), entries(run)
    after: Entries = set()
    for number, row in enumerate(run.method.rows):  # type: ignore[attr-defined]
        own = sorted(place for tensor, place in mask if tensor == number)
        moved = (now[row.name] - base[row.name]).flatten().abs()
        leaving = sorted(own, key=lambda place: float(moved[place]))[: int(len(own) * share)]
        first = grads[0][row.name].flatten().abs()
        candidates = first.topk(len(own)).indices.tolist()
        total = torch.stack([gradient[row.name].flatten() for gradient in grads]).sum(0).abs()
        free = [place for place in candidates if place not in set(own) - set(leaving)]
        coming = sorted(free, key=lambda place: -float(total[place]))[: len(leaving)]
        gone = [place for place in leaving if place not in coming]
        new = [place for place in coming if place not in leaving]
        after |= {(number, place) for place in set(own) - set(gone[: len(new)]) | set(new)}
    return after


@pytest.mark.parametrize(("closes", "looks"), [(2, (0, 1)), (7, (4, 5, 6))])
def test_the_least_moved_go_and_the_hardest_pulled_come(closes: int, looks: tuple[int, ...]) -> None:
    base, run, grads = weights(tiny_bert()), training(SpIEL), []
    batches = batches_of(STEPS)
    for step in range(closes):
        if step in looks:
            twin = tiny_bert()
            twin.load_state_dict(run.model.state_dict())
            twin(**batches[step]).loss.backward()
            grads.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
        if step == closes - 1:
            run.method._exchange = lambda share: None  # type: ignore[attr-defined, method-assign]
        run.run([batches[step]])
    share = 1.0 if closes == 2 else 0.5 * (1 - 7 / STEPS)
    expected = exchanged_plainly(base, run, grads, share)  # type: ignore[arg-type]
    real = training(SpIEL).run(batches[:closes])
    assert entries(real) == expected
    assert entries(real) != entries(run)


def test_what_both_leaves_and_comes_keeps_its_state() -> None:
    """Where everything is selected, everything would leave and come: nothing changes."""
    model = tiny_bert()
    k = sum(row.size for row in architecture_of(model).linears())
    run = training(SpIEL, k=k, every=3, window=1)
    steps = {int(step) for step in run.run(batches_of(6)).method.selection().step}  # type: ignore[union-attr]
    assert steps == {0}
    alone = training(SpIEL, k=k, every=900, window=800).run(batches_of(6))
    assert run.losses == alone.losses


def test_the_budget_is_met_exactly_up_to_all_there_is() -> None:
    architecture = architecture_of(tiny_bert())
    most = sum(row.size for row in architecture.linears())
    for target in (1, 777, most):
        assert SpIEL.size(architecture, SpIEL.fit(architecture, SpIEL.Config(), target)) == target
    assert SpIEL.fit(architecture, SpIEL.Config(), most + 1).k == most  # type: ignore[attr-defined]
    with pytest.raises(BudgetError, match="selects no weight"):
        SpIEL.fit(architecture, SpIEL.Config(), 0)


def test_one_weight_is_enough_and_a_window_has_to_end() -> None:
    run = training(SpIEL, k=1)
    assert {len(mask) for mask in by_step(run)} == {1}
    with pytest.raises(ValidationError, match="smaller than `every`"):
        SpIEL.Config(every=5, window=5)
    architecture = architecture_of(tiny_bert())
    assert any("stays random" in text for text in SpIEL.warnings(architecture, SpIEL.Config(k=9), 5))
    assert not SpIEL.warnings(architecture, SpIEL.Config(k=9), 6)


# --- LIFT -----------------------------------------------------------------------------------------


def principal(matrix: torch.Tensor, rank: int, count: int) -> set[int]:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    reduced = sum(values[i] * torch.outer(left[:, i], right[i]) for i in range(rank))
    return set(reduced.abs().flatten().topk(count).indices.tolist())  # type: ignore[union-attr]


def test_the_mask_is_the_largest_of_the_reduced_matrix_as_it_is_at_each_look() -> None:
    run = training(LIFT)
    batches = batches_of(STEPS)
    for done in range(0, STEPS, 4):
        now, mask = weights(run.model), entries(run)
        for number, row in enumerate(run.method.rows):  # type: ignore[attr-defined]
            expected = principal(now[row.name], 4, min(2 * sum(row.shape), row.size))
            assert {place for tensor, place in mask if tensor == number} == expected, (done, row.name)
        run.run(batches[done : done + 4])


def test_it_looks_when_it_is_time_and_not_after_the_last_step() -> None:
    masks = by_step(training(LIFT))
    assert {done for done in range(1, STEPS + 1) if masks[done] != masks[done - 1]} <= {4, 8, 12}
    assert masks[4] != masks[3]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_has_left_keeps_its_value_and_is_counted(weight_decay: float) -> None:
    base, run = weights(tiny_bert()), training(LIFT, weight_decay=weight_decay)
    masks = by_step(run)
    ever = set().union(*masks)
    assert changed(run, base) <= ever
    assert len(changed(run, base) - masks[-1]) > 0
    assert run.method.kept() == len(ever) > len(masks[-1])


def test_what_stays_keeps_its_moments() -> None:
    run = training(LIFT).run(batches_of(STEPS)[:3])
    seen: list[dict[str, torch.Tensor]] = []
    renew = run.method._renew  # type: ignore[attr-defined]

    def watched(step: int) -> None:
        seen.append(run.state()["method"])
        renew(step)
        seen.append(run.state()["method"])

    run.method._renew = watched  # type: ignore[attr-defined]
    run.run(batches_of(STEPS)[3:4])
    before, after = seen
    pairs = [list(zip(s["tensor"].tolist(), s["index"].tolist(), strict=True)) for s in seen]
    stays = torch.tensor([one == two for one, two in zip(*pairs, strict=True)])
    assert 0 < int(stays.sum()) < len(stays)
    assert set(pairs[0]) & set(pairs[1]) == {pair for pair, same in zip(pairs[0], stays, strict=True) if same}
    for key in ("m", "v", "value", "step"):
        assert torch.equal(before[key][stays], after[key][stays])
    assert not after["m"][~stays].any()
    assert not after["v"][~stays].any()


def test_a_look_at_unchanged_weights_keeps_the_mask() -> None:
    run = training(LIFT, lr=0.0)
    assert len({frozenset(mask) for mask in by_step(run)}) == 1
    assert run.method.kept() == run.method.k  # type: ignore[attr-defined]


def test_without_a_look_it_is_a_fixed_mask() -> None:
    base, run = weights(tiny_bert()), training(LIFT, every=STEPS)
    masks = by_step(run)
    assert masks[0] == masks[-1]
    assert changed(run, base) <= masks[0]
    assert any("ends before that" in text for text in LIFT.warnings(architecture_of(tiny_bert()), LIFT.Config(), 200))


def test_at_full_rank_it_is_plain_magnitude() -> None:
    lift, shira = training(LIFT, filter=64), tiny_bert()
    method = make(SHiRA, shira, {"rank": 2, "mask": "magnitude"}, steps=STEPS)
    assert entries(lift) == entries(Training(method, shira, score_batches=[tiny_batch(1)]))
    assert any("plainly the largest" in text for text in LIFT.warnings(architecture_of(shira), LIFT.Config(), 900))
    assert entries(training(LIFT)) != entries(lift)


def test_the_smallest_are_what_the_released_code_takes() -> None:
    run, base = training(LIFT, which="smallest"), weights(tiny_bert())
    mask = entries(run)
    for number, row in enumerate(run.method.rows):  # type: ignore[attr-defined]
        others = principal(base[row.name], 4, row.size - min(2 * sum(row.shape), row.size))
        assert {place for tensor, place in mask if tensor == number} == set(range(row.size)) - others


def test_it_trains_as_many_as_lora_of_its_rank() -> None:
    architecture = architecture_of(tiny_bert())
    assert LIFT.size(architecture, LIFT.Config(rank=3)) == SHiRA.size(architecture, SHiRA.Config(rank=3))
    one = LIFT.size(architecture, LIFT.Config(rank=1))
    assert LIFT.fit(architecture, LIFT.Config(), 3 * one + 1).rank == 3  # type: ignore[attr-defined]
    with pytest.raises(BudgetError, match="rank 1"):
        LIFT.fit(architecture, LIFT.Config(), one - 1)
