"""meProp against a linear layer with its backward pass written out, and against full fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import BudgetError, SpecError
from engine.methods.full import FullFineTuning
from engine.methods.meprop import MeProp
from engine.plan import make_plan
from engine.spec import parse_spec
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.test_promises import trained
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

MODELS = pytest.mark.parametrize("base", [tiny_bert, tiny_llama], ids=["bert", "llama"])
SCOPES = pytest.mark.parametrize("scope", ["token", "batch"])
Gradients = dict[str, torch.Tensor]


class Written(torch.autograd.Function):
    """A linear layer whose backward pass keeps the k largest output gradients, by sorting."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any, share: float, scope: str) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.share, ctx.scope, ctx.biased = share, scope, bias is not None
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows, flat = gradient.flatten(0, -2).clone(), x.flatten(0, -2)
        k = max(1, round(ctx.share * rows.shape[1]))
        for row in [rows] if ctx.scope == "batch" else rows[:, None]:
            order = row.abs().sum(0).argsort(descending=True, stable=True)
            row[:, order[k:]] = 0
        bias = rows.sum(0) if ctx.biased else None
        return (rows @ weight).view_as(x), rows.T @ flat, bias, None, None


def by_hand(model: nn.Module, batch: dict[str, torch.Tensor], share: float, scope: str) -> Gradients:
    for row in architecture_of(model).linears():
        module = model.get_submodule(row.module)
        module.forward = lambda x, m=module: Written.apply(x, m.weight, m.bias, share, scope)
    model.train()(**batch).loss.backward()
    return gradients(model)


def gradients(model: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(base: Any, batch: dict[str, torch.Tensor], **settings: Any) -> Gradients:
    model = base()
    make(MeProp, model, settings).attach(model)
    model.train()(**batch).loss.backward()
    return gradients(model)


@SCOPES
@MODELS
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_all_gradients_are_those_of_the_written_backward_pass(base: Any, scope: str, share: float) -> None:
    batch = tiny_batch()
    found, expected = ours(base, batch, share=share, scope=scope), by_hand(base(), batch, share, scope)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-8, msg=name)
    whole = ours(base, batch, share=1.0)
    first = architecture_of(base()).linears()[0].name
    assert not torch.allclose(found[first], whole[first], rtol=0.1), "the cut shows in the lowest layer"


@MODELS
def test_for_the_batch_all_but_k_rows_of_every_matrix_have_no_gradient(base: Any) -> None:
    found = ours(base, tiny_batch(), share=0.1, scope="batch")
    for row in architecture_of(base()).linears():
        assert int((found[row.name] != 0).any(1).sum()) == max(1, round(0.1 * row.shape[0])), row.name


def test_a_token_keeps_its_own_largest() -> None:
    """Ties go one way or the other, never both."""
    method: Any = make(MeProp, tiny_bert(), {"share": 0.25})
    gradient = torch.tensor([[[3.0, -4.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0], [1.0] * 8]])
    cut = method._cut(gradient)
    assert cut[0, 0].tolist() == [3.0, -4.0] + [0.0] * 6
    assert int(cut[0, 1].count_nonzero()) == 2
    assert int(make(MeProp, tiny_bert(), {"share": 0.001})._cut(gradient).count_nonzero()) == 2, "one each"  # type: ignore[attr-defined]


@SCOPES
def test_keeping_all_is_full_fine_tuning(scope: str) -> None:
    models = [tiny_bert(), tiny_bert()]
    methods = (
        make(FullFineTuning, models[0], weight_decay=0.1),
        make(MeProp, models[1], {"share": 1.0, "scope": scope}, weight_decay=0.1),
    )
    runs = [Training(method, model).run(batches_of(5)) for method, model in zip(methods, models, strict=True)]
    assert runs[0].losses == runs[1].losses
    assert all(torch.equal(now, weights(models[0])[name]) for name, now in weights(models[1]).items())


def test_a_merged_model_is_plain_again() -> None:
    model, batch = tiny_bert(), tiny_batch()
    run = Training(make(MeProp, model, {"share": 0.05}), model).run(batches_of(2))
    fresh = tiny_bert()
    fresh.load_state_dict(model.state_dict())
    plain = run.method.merged(run.model)
    for one in (plain, fresh):
        one.zero_grad()
        one.eval()(**batch).loss.backward()
    assert all(torch.equal(g, gradients(fresh)[name]) for name, g in gradients(plain).items())


@MODELS
def test_resuming_and_installing_are_bit_for_bit(base: Any) -> None:
    def fresh() -> Training:
        model = base()
        return Training(make(MeProp, model, {"share": 0.1}), model)

    straight = fresh().run(batches_of(8))
    resumed = fresh().load(fresh().run(batches_of(8)[:3]).state()).run(batches_of(8)[3:])
    assert resumed.losses == straight.losses[3:]
    other = fresh()
    other.method.install(straight.method.result())
    for row in architecture_of(base()).backbone:
        trained_ = weights(straight.model)[row.name]
        assert torch.equal(weights(resumed.model)[row.name], trained_)
        assert torch.equal(weights(other.model)[row.name], trained_)


@SCOPES
def test_ragged_and_padded_batches_give_nearly_the_same_losses(
    scope: str, home: Path, small: Path, tmp_path: Path
) -> None:
    losses = []
    for execution in ("ragged", "padded"):
        data = spec_data(small, {"name": "meprop", "scope": scope, "share": 0.2}, lr=0.005, execution=execution)
        built, _ = trained(data, tmp_path / execution)
        losses.append(built.model.classifier.weight.detach())
    assert float((losses[0] - losses[1]).abs().max()) < 1e-4


def test_its_size_is_the_whole_model_and_it_stands_on_nothing(home: Path, small: Path) -> None:
    architecture = architecture_of(tiny_bert())
    total = sum(row.size for row in architecture.backbone)
    assert MeProp.size(architecture, MeProp.Config()) == total == MeProp.dense_gradients(architecture, MeProp.Config())
    with pytest.raises(BudgetError, match="cannot be made smaller"):
        MeProp.fit(architecture, MeProp.Config(), total - 1)
    with pytest.raises(SpecError, match="cannot be put on top"):
        make_plan(parse_spec(spec_data(small, {"name": "meprop", "on": {"name": "lora"}})))
