"""SPIDER against its formulas in numpy, entry by entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import BudgetError, SpecError
from engine.methods.spider import Spider, importance
from engine.plan import make_plan
from engine.spec import parse_spec
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.test_promises import trained
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

MODELS = pytest.mark.parametrize("base", [tiny_bert, tiny_llama], ids=["bert", "llama"])
STEPS = 6


def spread(model: nn.Module) -> nn.Module:
    """Biases and norms that are not all equal, as in any trained model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def training(model: nn.Module, lr: float = 1e-3, **how: Any) -> Training:
    return Training(make(Spider, model, steps=STEPS, **how), model, lr=lr, schedule=False)


def ranked(values: np.ndarray) -> np.ndarray:
    if not values.any():
        return np.zeros_like(values)
    size = np.abs(values)
    return 1 / (1 + np.exp(-(size - size.mean()) / size.std(ddof=1)))


def freedom(base: np.ndarray, sums: np.ndarray) -> np.ndarray:
    old, new = ranked(base), ranked(sums)
    ahead = np.zeros_like(old)
    for place in np.ndindex(old.shape):
        if old[place] < new[place]:
            ahead[place] = new[place] / (old[place] + new[place])
    return np.minimum(1, ahead / ahead[ahead != 0].mean()) if ahead.any() else ahead


def by_hand(model: nn.Module, clip: float, lr: float = 1e-3) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Plain AdamW, and after each step the formulas; returns weights, and how free each was last."""
    model.train()
    rows = {row.name for row in architecture_of(model).backbone}
    base = {name: value.double().numpy().copy() for name, value in weights(model).items() if name in rows}
    sums, free = {name: np.zeros_like(value) for name, value in base.items()}, {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for batch in batches_of(STEPS):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name in rows and parameter.grad is not None:
                sums[name] += parameter.grad.double().numpy()
                free[name] = freedom(base[name], sums[name])
                moved = base[name] * (1 - free[name]) + parameter.detach().double().numpy() * free[name]
                parameter.data.copy_(torch.from_numpy(moved).float())
        optimizer.zero_grad()
    return {name: value.double().numpy() for name, value in weights(model).items()}, free


@MODELS
@pytest.mark.parametrize("clip", [1e9, 0.05])
def test_it_equals_its_formulas(base: Any, clip: float) -> None:
    model = spread(base())
    training(model, clip=clip).run(batches_of(STEPS))
    expected, free = by_hand(spread(base()), clip)
    for name, value in weights(model).items():
        if name.endswith("key.bias"):
            continue  # its gradients are rounding noise, whose signs AdamW follows
        wrong = np.abs(value.numpy() - expected[name]) > 2e-5
        assert wrong.mean() < 2e-3, name  # an entry on the edge may fall on either side
        if name in free and not name.endswith("embeddings.weight"):
            assert 0.2 < (free[name] > 0).mean() < 0.8, name


def test_a_weight_that_matters_more_to_pretraining_is_exactly_its_old_self() -> None:
    model, before = spread(tiny_bert()), weights(spread(tiny_bert()))
    run = training(model, lr=1e-2).run(batches_of(STEPS))
    method: Any = run.method
    moved = 0
    for row in method.context.architecture.backbone:
        now, free = weights(model)[row.name], method.freedom(row.name)
        assert torch.equal(now[free == 0], before[row.name][free == 0]), row.name
        assert float(free.min()) >= 0
        assert float(free.max()) <= 1
        moved += int((now != before[row.name]).sum())
        assert torch.equal(method.delta(row, before[row.name]), now - before[row.name])
    assert method.kept() == moved
    assert 0 < moved < sum(row.size for row in method.context.architecture.backbone)


def test_a_weight_that_could_move_has_to_go_back() -> None:
    """The sums of later gradients may take away what earlier ones gave."""
    run, ever = training(spread(tiny_bert()), lr=1e-2), None
    method: Any = run.method
    name = method.context.architecture.linears()[0].name
    for batch in batches_of(STEPS):
        run.run([batch])
        free = method.freedom(name) > 0
        ever = free if ever is None else ever | free
    gone = ever & ~free
    assert int(gone.sum()) > 0
    assert torch.equal(weights(run.model)[name][gone], weights(spread(tiny_bert()))[name][gone])


def test_importance_compares_within_a_tensor() -> None:
    values = torch.tensor([[0.1, -3.0], [0.5, 1.0]])
    found = importance(values)
    np.testing.assert_allclose(found.numpy(), ranked(values.double().numpy()), rtol=1e-5)
    torch.testing.assert_close(importance(100 * values), found)
    assert int(found.argmax()) == 1
    assert importance(torch.zeros(3)).tolist() == [0.0] * 3
    assert importance(torch.full((3,), 0.5)).tolist() == [0.5] * 3
    assert importance(torch.tensor([2.0])).tolist() == [0.5]


@MODELS
def test_tensors_whose_entries_are_all_alike_do_no_harm(base: Any) -> None:
    """Fresh biases are all 0, fresh norms all 1."""
    run = training(base(), lr=1e-2).run(batches_of(STEPS))
    assert all(bool(value.isfinite().all()) for value in weights(run.model).values())


@MODELS
def test_resuming_and_installing_are_bit_for_bit(base: Any) -> None:
    straight = training(spread(base())).run(batches_of(STEPS))
    resumed = training(spread(base())).load(training(spread(base())).run(batches_of(2)).state())
    resumed.run(batches_of(STEPS)[2:])
    assert resumed.losses == straight.losses[2:]
    other = training(spread(base()))
    other.method.install(straight.method.result())
    for row in architecture_of(base()).backbone:
        ours = weights(straight.model)[row.name]
        assert torch.equal(weights(resumed.model)[row.name], ours)
        assert torch.equal(weights(other.model)[row.name], ours)
    assert resumed.method.kept() == straight.method.kept()


def test_the_head_is_not_pulled_back() -> None:
    run, plain = training(spread(tiny_bert()), lr=1e-2), spread(tiny_bert()).train()
    run.run(batches_of(1))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    plain(**batches_of(1)[0]).loss.backward()
    optimizer.step()
    torch.testing.assert_close(run.model.classifier.weight, plain.classifier.weight, rtol=0, atol=1e-5)


def test_ragged_and_padded_batches_give_nearly_the_same_weights(home: Path, small: Path, tmp_path: Path) -> None:
    ends = []
    for execution in ("ragged", "padded"):
        built, _ = trained(spec_data(small, "spider", lr=0.002, execution=execution), tmp_path / execution)
        ends.append(built.model.classifier.weight.detach())
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3


def test_it_cannot_be_made_smaller_and_stands_alone(home: Path, small: Path) -> None:
    architecture = architecture_of(tiny_bert())
    with pytest.raises(BudgetError, match="cannot be made smaller"):
        Spider.fit(architecture, Spider.Config(), 100)
    for outer, inner in (("spider", "lora"), ("id3", "spider"), ("mezo", "spider")):
        with pytest.raises(SpecError, match="cannot"):
            make_plan(parse_spec(spec_data(small, {"name": outer, "on": {"name": inner}})))
    method = make(Spider, tiny_bert())
    model = tiny_bert()
    method.attach(model)
    assert method.kept() is None
    assert model(**tiny_batch()).logits.shape == (4, 2)
    assert method.optimizer_scalars() == 3 * Spider.size(architecture, Spider.Config())
