"""What every selective method must satisfy, and parity with plain dense masking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import BudgetError
from engine.methods._selective import Selective
from engine.methods.contract import Context, Method
from engine.methods.fish import FishMask
from engine.methods.id3 import ID3
from engine.methods.magnitude import LargestMagnitude
from engine.methods.pafi import PaFi
from engine.methods.random_mask import RandomMask
from engine.methods.speft import Speft
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from tests.methods import reference
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, context_for, tiny_bert

METHODS: list[type[Selective]] = [FishMask, ID3, LargestMagnitude, PaFi, RandomMask, Speft]
STEPS = 12
EXAMPLES = batches_of(6, size=1)
BASE_SHA256 = "b" * 64

pytestmark = pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)


def task_context(model: nn.Module, steps: int = STEPS, weight_decay: float = 0.0, clip: float = 1.0) -> Context:
    """A context whose map marks the rows that sentences of 8 tokens cannot reach."""
    context = context_for(model, steps, weight_decay=weight_decay)
    marked = context.architecture.with_frozen_rows(max_length=8, pairs=False)
    return replace(context, architecture=marked, clip=clip)


def trained(cls: type[Method], k: int, *, model: nn.Module | None = None, **settings: Any) -> Training:
    """A finished training of one method on the tiny model."""
    model = model or tiny_bert()
    keys = ("weight_decay", "clip", "steps")
    context = task_context(model, **{key: settings.pop(key) for key in keys if key in settings})
    training = Training(make(cls, model, {"k": k, **settings}, context=context), model, lr=5e-3, score_batches=EXAMPLES)
    return training.run(batches_of(context.steps))


def changed(model: nn.Module, base: dict[str, torch.Tensor]) -> dict[str, set[int]]:
    """Flat indices of changed entries by tensor, head apart."""
    return {
        name: set((parameter.detach() != base[name]).flatten().nonzero().flatten().tolist())
        for name, parameter in model.named_parameters()
        if not name.startswith("classifier")
    }


def selected(method: Method) -> dict[str, set[int]]:
    """Flat indices of selected entries by tensor."""
    selection = method.selection()
    assert selection is not None
    found: dict[str, set[int]] = {row.name: set() for row in selection.parameters}
    for tensor, index in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True):
        found[selection.parameters[tensor].name].add(index)
    return found


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("k", [7, 500])
def test_exactly_k_are_selected_and_nothing_else_moves_by_one_bit(
    cls: type[Selective], k: int, weight_decay: float
) -> None:
    base = weights(tiny_bert())
    training = trained(cls, k, weight_decay=weight_decay)
    chosen, moved = selected(training.method), changed(training.model, base)
    assert sum(map(len, chosen.values())) == k
    assert len(training.method.selection().index) == k  # type: ignore[union-attr]
    assert all(moved[name] <= chosen.get(name, set()) for name in moved)
    assert any(moved.values())


def test_optimizer_state_is_two_scalars_per_selected_entry(cls: type[Selective]) -> None:
    training = trained(cls, 60)
    assert training.method.optimizer_scalars() == 120
    state = training.method.state_dict()
    assert state["m"].numel() + state["v"].numel() == 120
    assert training.method.parameters() == []


def test_rows_no_example_reaches_are_never_selected(cls: type[Selective]) -> None:
    model = tiny_bert()
    context = task_context(model)
    k = cls.eligible(context.architecture, cls.Config())
    assert k < sum(row.size for row in context.architecture.backbone)
    training = trained(cls, k, steps=3)
    for row in training.method.rows:  # type: ignore[attr-defined]
        width = row.size // row.shape[0]
        dead = {index for start, stop in row.frozen_rows for index in range(start * width, stop * width)}
        chosen = selected(training.method)[row.name]
        assert not dead & chosen
        assert len(chosen) == row.eligible


def test_rows_marked_as_frozen_stay_frozen_even_with_a_gradient(cls: type[Selective]) -> None:
    model = tiny_bert()
    context = task_context(model)
    marked = [
        replace(row, frozen_rows=((0, 3), (10, row.shape[0]))) if row.role in ("token", "down") else row
        for row in context.architecture.parameters
    ]
    context = replace(context, architecture=replace(context.architecture, parameters=tuple(marked)))
    k = cls.eligible(context.architecture, cls.Config())
    method = make(cls, model, {"k": k}, context=context)
    Training(method, model, lr=5e-3, score_batches=EXAMPLES).run(batches_of(STEPS))
    for row in marked:
        if row.role in ("token", "down") and len(row.shape) == 2:
            width = row.shape[1]
            assert selected(method)[row.name] == set(range(3 * width, 10 * width))


def test_excluded_tensors_are_never_selected(cls: type[Selective]) -> None:
    groups = ("token", "position", "type", "norm", "bias", "pooler")
    training = trained(cls, 3000, exclude=groups)
    rows = {row.name: row for row in training.method.rows}  # type: ignore[attr-defined]
    assert {row.role for row in rows.values()} == {"q", "k", "v", "o", "up", "down"}
    assert {row.part for row in rows.values()} == {"weight"}
    assert sum(map(len, selected(training.method).values())) == 3000


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_masks_and_weights_agree_with_dense_masking(cls: type[Selective], clip: float, weight_decay: float) -> None:
    k = 401
    training = trained(cls, k, clip=clip, weight_decay=weight_decay)
    plain = run_reference(cls, k, clip, weight_decay, training)
    chosen = selected(training.method)
    for row, mask in zip(training.method.rows, plain.masks, strict=True):  # type: ignore[attr-defined]
        assert set(mask.nonzero().flatten().tolist()) == chosen[row.name], row.name
    assert largest_difference(training.model, plain.model) <= 1e-6


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest difference of any weight but key biases.

    The softmax cancels these, so that their gradients are rounding noise, which AdamW blows up to
    the size of the learning rate.
    """
    other = weights(theirs)
    names = [name for name in other if not name.endswith("key.bias")]
    own = weights(ours)
    return max(float((own[name] - other[name]).abs().max()) for name in names)


def chosen_plainly(
    cls: type[Selective],
    model: nn.Module,
    tensors: list[nn.Parameter],
    eligible: list[torch.Tensor],
    k: int,
    training: Training,
) -> list[torch.Tensor]:
    """A fixed mask by sorting everything; a random one has nothing to be sorted by and is taken over."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    if cls is PaFi:
        return reference.smallest(flat, eligible, k)
    if cls is LargestMagnitude:
        return reference.top([weight.abs() for weight in flat], eligible, k)
    if cls is RandomMask:
        chosen = selected(training.method).values()
        return [
            torch.zeros(len(w), dtype=torch.bool).index_fill_(0, torch.tensor(sorted(s), dtype=torch.int64), True)
            for w, s in zip(flat, chosen, strict=True)
        ]
    if cls is Speft:
        return reference.top([g.abs() for g in reference.gradients(model, tensors, EXAMPLES)], eligible, k)
    return reference.top(reference.fisher(model, tensors, EXAMPLES), eligible, k)


def run_reference(
    cls: type[Selective], k: int, clip: float, weight_decay: float, training: Training
) -> reference.Reference:
    """The same run by dense masking."""
    model = tiny_bert()
    rows = training.method.rows  # type: ignore[attr-defined]
    tensors = [dict(model.named_parameters())[row.name] for row in rows]
    eligible = []
    for row in rows:
        mask = torch.ones(row.shape, dtype=torch.bool)
        for start, stop in row.frozen_rows:
            mask[start:stop] = False
        eligible.append(mask.flatten())
    if cls is ID3:
        choose = reference.increment(k, STEPS, eligible, p=1.0, exp=1.0, eps=1e-3)
    else:
        choose = reference.static(chosen_plainly(cls, model, tensors, eligible, k, training))
    head = [row.name for row in architecture_of(model).head]
    plain = reference.Reference(
        model,
        [row.name for row in rows],
        head,
        choose,
        clip_first=cls is ID3,
        weight_decay=weight_decay,
        clip=clip,
    )
    for step, batch in enumerate(batches_of(STEPS)):
        plain.step(step, batch, training.lr_at(step))
    return plain


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_selecting_everything_at_once_is_dense_adamw(cls: type[Selective], weight_decay: float) -> None:
    """ID3 selects everything in its one planned step, and goes on training after it."""
    model = tiny_bert()
    context = context_for(model, 1 if cls is ID3 else 5, weight_decay=weight_decay)
    k = sum(row.size for row in context.architecture.backbone)
    training = Training(
        make(cls, model, {"k": k}, context=context), model, lr=1e-3, score_batches=EXAMPLES, schedule=False
    )
    training.run(batches_of(5))
    dense = tiny_bert()
    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3, weight_decay=weight_decay)
    for batch in batches_of(5):
        dense(**batch).loss.backward()
        nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert largest_difference(training.model, dense) <= 1e-6


def test_the_same_seed_gives_the_same_run(cls: type[Selective]) -> None:
    first, second = trained(cls, 200), trained(cls, 200)
    assert selected(first.method) == selected(second.method)
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_scaling_the_loss_does_not_change_the_first_choice(cls: type[Selective]) -> None:
    masks = []
    for scale in (1.0, 64.0):
        model = tiny_bert()
        method = make(cls, model, {"k": 300}, context=task_context(model, steps=1))
        training = Training(method, model, lr=5e-3, score_batches=EXAMPLES, loss_scale=scale)
        masks.append(selected(training.run(batches_of(1)).method))
    assert masks[0] == masks[1]


def test_clipping_does_not_change_the_first_choice(cls: type[Selective]) -> None:
    loose, tight = (trained(cls, 300, clip=clip, steps=1) for clip in (1e9, 1e-3))
    assert selected(loose.method) == selected(tight.method)


def test_export_applied_to_a_fresh_base_is_the_trained_model(cls: type[Selective], tmp_path: Path) -> None:
    training = trained(cls, 150, weight_decay=0.1)
    head = {name: p for name, p in training.model.named_parameters() if name.startswith("classifier")}
    metadata = {"method": cls.name, "eligibility": "{}", "spec_hash": "s", "base_sha256": BASE_SHA256}
    write_delta(tmp_path / "d.safetensors", delta_of(training.method.result(), head, metadata))
    delta = read_delta(tmp_path / "d.safetensors")
    assert delta.count == 150
    fresh, base = tiny_bert(), weights(tiny_bert())
    applied = apply_delta(fresh, delta, BASE_SHA256)
    ours = weights(training.model)
    assert all(torch.equal(parameter, ours[name]) for name, parameter in fresh.named_parameters())
    applied.revert()
    assert all(torch.equal(parameter, base[name]) for name, parameter in fresh.named_parameters())


def test_a_result_installs_into_a_fresh_model(cls: type[Selective]) -> None:
    training = trained(cls, 150)
    model = tiny_bert()
    method = make(cls, model, {"k": 150}, context=task_context(model))
    attached = method.attach(model)
    method.install(training.method.result())
    ours = weights(training.model)
    for name, parameter in attached.named_parameters():
        assert name.startswith("classifier") or torch.equal(parameter, ours[name]), name


def test_a_resumed_run_is_the_run_that_never_stopped(cls: type[Selective]) -> None:
    k = 195  # so that ID3's quota changes before the interruption
    straight = trained(cls, k, weight_decay=0.1)

    def fresh() -> Training:
        model = tiny_bert()
        method = make(cls, model, {"k": k}, context=task_context(model, weight_decay=0.1))
        return Training(method, model, lr=5e-3, score_batches=EXAMPLES)

    state = fresh().run(batches_of(STEPS)[:5]).state()
    resumed = fresh().load(state).run(batches_of(STEPS)[5:])
    assert straight.losses[5:] == resumed.losses
    first, second = straight.method.selection(), resumed.method.selection()
    assert first is not None
    assert second is not None
    assert all((getattr(first, key) == getattr(second, key)).all() for key in ("tensor", "index", "step"))
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True))


def test_half_precision_with_its_many_ties_still_selects_exactly_k(cls: type[Selective]) -> None:
    model = tiny_bert().to(torch.bfloat16)
    training = trained(cls, 400, model=model)
    assert sum(map(len, selected(training.method).values())) == 400
    assert len(training.method.selection().index) == 400  # type: ignore[union-attr]


def test_tensors_of_zeros_are_no_trouble(cls: type[Selective]) -> None:
    model = tiny_bert()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer.0" in name and "LayerNorm" not in name:
                parameter.zero_()
    training = trained(cls, 5000, model=model)
    assert sum(map(len, selected(training.method).values())) == 5000


def test_delta_is_what_changed_and_none_where_nothing_is_selected(cls: type[Selective]) -> None:
    base = weights(tiny_bert())
    training = trained(cls, 25)
    now = weights(training.model)
    for row in architecture_of(training.model).backbone:
        delta = training.method.delta(row, base[row.name])
        if selected(training.method)[row.name]:
            assert delta is not None
            assert torch.equal(delta, now[row.name] - base[row.name])
        else:
            assert delta is None
    assert training.method.merged(training.model) is training.model
    # A plain model again, which any optimizer can train.
    assert not any(module.sparse for module in training.model.modules() if isinstance(module, nn.Embedding))


def test_the_budget_is_met_exactly_or_refused(cls: type[Selective]) -> None:
    architecture = architecture_of(tiny_bert())
    eligible = cls.eligible(architecture, cls.Config())
    for target in (1, 777, eligible):
        assert cls.size(architecture, cls.fit(architecture, cls.Config(), target)) == target
    for target in (0, eligible + 1):
        with pytest.raises(BudgetError, match=f"{target:,}"):
            cls.fit(architecture, cls.Config(), target)
    assert cls.size(architecture, cls.Config(k=10**9)) == eligible
    assert any("all of them" in text for text in cls.warnings(architecture, cls.Config(k=10**9), 10))


def test_tensors_that_cannot_change_need_no_gradient(cls: type[Selective]) -> None:
    training = trained(cls, 20, exclude=("token", "norm"))
    chosen = selected(training.method)
    for name, parameter in training.model.named_parameters():
        if name.startswith("classifier"):
            assert parameter.requires_grad
        elif cls is ID3:
            assert parameter.requires_grad == (name in chosen)
        else:
            assert parameter.requires_grad == bool(chosen.get(name))
    assert all(p.grad is None for name, p in training.model.named_parameters() if not name.startswith("classifier"))
