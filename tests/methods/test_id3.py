"""ID3's own oracles: how many are unmasked when, by which score, and what clipping sees."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from engine.methods.id3 import ID3
from tests.methods.driver import Training, batches_of, make
from tests.tiny import architecture_of, tiny_bert


def training(k: int, steps: int, *, clip: float = 1.0, loss_scale: float = 1.0, **settings: Any) -> Training:
    model = tiny_bert()
    method = make(ID3, model, {"k": k, **settings}, steps=steps, clip=clip)
    return Training(method, model, lr=5e-3, loss_scale=loss_scale)


def entries(run: Training) -> list[tuple[int, int, int]]:
    selection = run.method.selection()
    assert selection is not None
    return list(zip(selection.tensor.tolist(), selection.index.tolist(), selection.step.tolist(), strict=True))


@pytest.mark.parametrize(("k", "steps"), [(103, 10), (40, 8), (3, 7), (10, 10)])
def test_the_mask_grows_by_the_plan_and_only_grows(k: int, steps: int) -> None:
    run = training(k, steps)
    sizes, before = [], []
    for batch in batches_of(steps + 3):  # three more steps than planned
        run.run([batch])
        now = entries(run)
        assert now[: len(before)] == before
        assert len({(tensor, index) for tensor, index, _ in now}) == len(now)
        before = now
        sizes.append(len(now))
        assert run.method.optimizer_scalars() == 2 * len(now)
    q, r = divmod(k, steps)
    assert sizes[:steps] == [q * t + min(t, r) for t in range(1, steps + 1)]
    assert sizes[steps:] == [k, k, k]
    # The number of weight updates in the whole plan, which the paper compares with K T.
    assert sum(sizes[:steps]) == q * steps * (steps + 1) // 2 + r * (r + 1) // 2 + r * (steps - r)
    assert [step for _, _, step in before] == sorted(step for _, _, step in before)


def first_gradients(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rows = architecture_of(model).backbone
    tensors = [dict(model.named_parameters())[row.name] for row in rows]
    model(**batches_of(1)[0]).loss.backward()
    return [tensor.grad.flatten() for tensor in tensors], [tensor.detach().flatten() for tensor in tensors]


@pytest.mark.parametrize(
    ("p", "exp", "eps"),
    [(1.0, 1.0, 1e-3), (1.0, 0.0, 1e-3), (2.0, 1.5, 0.1), (1.0, -1.0, 1e-3), (1.0, 10.0, 1e-3), (1.0, 4.0, 1e-8)],
)
def test_one_planned_step_selects_the_highest_scores_of_the_first_gradient(p: float, exp: float, eps: float) -> None:
    run = training(200, 1, p=p, exp=exp, eps=eps).run(batches_of(1))
    gradients, weights = first_gradients(tiny_bert())
    pairs = [(g.double(), w.double()) for g, w in zip(gradients, weights, strict=True)]
    scores = [g.abs() ** p / (w.abs() + eps) ** exp for g, w in pairs]
    best = torch.cat(scores).topk(200).indices.tolist()
    offsets = torch.tensor([0, *(len(score) for score in scores)]).cumsum(0).tolist()
    assert {offsets[tensor] + index for tensor, index, _ in entries(run)} == set(best)


@pytest.mark.parametrize(("exp", "eps"), [(16.0, 1e-3), (8.0, 1e-8)])
def test_powers_that_leave_single_precision_are_refused(exp: float, eps: float) -> None:
    """The denominator would be 0, every score infinite, and the first entries would win."""
    with pytest.raises(ValidationError, match="too small to divide by"):
        ID3.Config(exp=exp, eps=eps)


def test_only_the_ratio_of_the_powers_matters() -> None:
    """The slide's squared gradient with twice the exponent ranks as the authors' code does."""
    squared, plain = (training(60, 1, p=p, exp=exp).run(batches_of(1)) for p, exp in ((2.0, 2.0), (1.0, 1.0)))
    assert set(entries(squared)) == set(entries(plain))


@pytest.mark.parametrize("scope", ["dense", "selected"])
def test_clipping_sees_the_norm_it_promises(scope: str) -> None:
    run = training(30, 3, clip_scope=scope).run(batches_of(1))
    model = tiny_bert()
    gradients, _ = first_gradients(model)
    head = [parameter.grad for name, parameter in model.named_parameters() if name.startswith("classifier")]
    if scope == "selected":
        gradients = [gradients[tensor][index].view(1) for tensor, index, _ in entries(run)]
    expected = torch.cat([*gradients, *(gradient.flatten() for gradient in head)]).norm()
    assert run.norms[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("k", [50, 10_000])
def test_later_norms_count_the_selected_weights_too(k: int) -> None:
    """Selected gradients are taken out before ranking; the dense norm must hold them all the same."""
    run = training(k, 4).run(batches_of(2))
    plain = copy.deepcopy(run.model)
    plain.zero_grad()
    plain(**batches_of(3)[2]).loss.backward()
    gradients = [p.grad.to_dense().flatten() for p in plain.parameters() if p.grad is not None]
    run.run(batches_of(3)[2:])
    assert run.norms[2] == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)


def test_entries_unmasked_late_may_start_at_their_own_age() -> None:
    late, own = (training(20, 10, bias_correction=mode).run(batches_of(10)) for mode in ("global", "entry"))
    assert late.losses[:2] == own.losses[:2]
    assert late.losses[-1] != own.losses[-1]


def test_what_cannot_work_is_said_before() -> None:
    architecture = architecture_of(tiny_bert())
    assert ID3.warnings(architecture, ID3.Config(k=500), 100) == []
    (text,) = ID3.warnings(architecture, ID3.Config(k=50), 100)
    assert "first 50" in text


def test_a_static_schedule_takes_everything_at_the_first_step_by_the_same_score() -> None:
    run = training(120, steps=6, schedule="static")
    gradients, values = first_gradients(tiny_bert())
    run.run(batches_of(6))
    found = entries(run)
    assert len(found) == 120
    assert {step for _, _, step in found} == {0}
    scores = torch.cat([g.abs() / (w.abs() + 1e-3) for g, w in zip(gradients, values, strict=True)])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    starts = torch.tensor([0, *(len(g) for g in gradients)]).cumsum(0).tolist()
    for tensor, index, _ in found:
        chosen[starts[tensor] + index] = True
    assert scores[chosen].min() >= scores[~chosen].max() * (1 - 1e-5)
