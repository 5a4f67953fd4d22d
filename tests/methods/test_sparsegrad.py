"""SparseGrad: turns that are orthogonal and gather the gradient, k entries a step, and Adam in the turned basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import BudgetError, DataError, SpecError
from engine.methods.sparsegrad import SparseGrad
from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_bert, tiny_llama
from tests.training.test_run import series, submit

EXAMPLES = batches_of(6, size=1)
MODELS = pytest.mark.parametrize("base", [tiny_bert, tiny_llama], ids=["bert", "llama"])
EVERYTHING = 10**9


def training(base: Any = tiny_bert, lr: float = 1e-3, examples: Any = EXAMPLES, **settings: Any) -> Training:
    model = base()
    how = {key: settings.pop(key) for key in ("weight_decay", "clip") if key in settings}
    return Training(make(SparseGrad, model, settings, **how), model, lr=lr, schedule=False, score_batches=examples)


def plain_gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = architecture_of(model).linears(["gate", "up", "down"])
    named = dict(model.named_parameters())
    found = torch.autograd.grad(model(**batch).loss, [named[row.name] for row in rows])
    return {row.name: gradient for row, gradient in zip(rows, found, strict=True)}


def in_turned_basis(run: Training, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    method: Any = run.method
    return {row.name: method.turned(row, weights(run.model)[row.name] - before[row.name]) for row in method.rows}


# --- the turns --------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["rotated", "code", "plain"])
@MODELS
def test_turns_are_orthogonal_and_keep_the_norm(base: Any, basis: str) -> None:
    method: Any = training(base, basis=basis).method
    for sides in method._bases.values():
        for side in sides:
            torch.testing.assert_close(side.T @ side, torch.eye(len(side)), rtol=0, atol=1e-5)
    for row in method.rows:
        matrix = torch.randn(row.shape, generator=torch.Generator().manual_seed(1))
        turned = method.turned(row, matrix)
        assert float(turned.norm()) == pytest.approx(float(matrix.norm()), rel=1e-5)
        torch.testing.assert_close(method.turned_back(row, turned), matrix, rtol=0, atol=1e-5)
        assert torch.equal(turned, matrix) == (basis == "plain")


@MODELS
def test_the_turns_are_the_singular_vectors_of_all_gradients_side_by_side(base: Any) -> None:
    method: Any = training(base).method
    stacks: dict[str, list[torch.Tensor]] = {}
    for example in EXAMPLES:
        for name, gradient in plain_gradients(base(), example).items():
            stacks.setdefault(architecture_of(base()).find(name).role, []).append(gradient)
    for row in method.rows:
        stack = torch.stack(stacks[row.role]).double()
        for side, axis in zip(method._bases[f"{row.role}.{row.shape[0]}x{row.shape[1]}"], (1, 2), strict=True):
            unfolded = stack.movedim(axis, 0).flatten(1)
            vectors, sizes, _ = torch.linalg.svd(unfolded, full_matrices=False)
            leading = sizes > 1e-2 * sizes[0]
            along = (side[:, : len(sizes)].double() * vectors).sum(0).abs()[leading]
            assert int(leading.sum()) > 3
            assert float(along.min()) > 0.99, "the same directions, in the same order"


def test_the_gradient_gathers_in_the_turned_basis_and_not_in_that_of_the_code() -> None:
    """Gradients of low rank on both sides: the specification's synthetic check, through the method's own code."""
    generator = torch.Generator().manual_seed(0)
    shape = architecture_of(tiny_bert()).linears(["up"])[0].shape
    left, right = (torch.linalg.qr(torch.randn(n, 4, generator=generator)).Q for n in shape)
    held = {}
    for basis in ("plain", "rotated", "code"):
        method: Any = make(SparseGrad, tiny_bert(), {"basis": basis})
        model = tiny_bert()
        method.attach(model)
        row = method.rows[0]
        batches = [left @ torch.randn(4, 4, generator=generator) @ right.T for _ in range(20)]

        class Linear(nn.Module):
            def forward(self, gradient: torch.Tensor, weight: nn.Parameter = method._tensors[row.name]) -> Any:
                rest = sum(p.sum() * 0 for p in method._tensors.values())  # noqa: B023 (used at once)
                return type("Out", (), {"loss": (weight * gradient).sum() + rest})

        method.score_pass(Linear(), [{"gradient": gradient} for gradient in batches], lambda done, total: None)
        turned = method.turned(row, batches[0]).square().flatten().sort(descending=True).values
        held[basis] = float(turned[: round(0.01 * len(turned))].sum() / turned.sum())
    assert held["rotated"] > 0.95
    assert held["plain"] < 0.3
    assert held["code"] < 0.6


def test_without_an_example_it_says_so() -> None:
    with pytest.raises(DataError, match="no training example"):
        training(examples=[])


# --- the step ---------------------------------------------------------------------------------


@MODELS
@pytest.mark.parametrize("k", [7, 300])
def test_exactly_k_entries_of_the_turned_matrices_change_in_a_step(base: Any, k: int) -> None:
    before = weights(base())
    run = training(base, k=k, lr=0.1).run(batches_of(1))
    changes = in_turned_basis(run, before)
    assert sum(int((change.abs() > 0.05).sum()) for change in changes.values()) == k
    assert max(float(change[change.abs() <= 0.05].abs().max()) for change in changes.values()) < 1e-5
    rows = {row.name for row in run.method.rows}  # type: ignore[attr-defined]
    for name, now in weights(run.model).items():
        if name not in rows and name not in {row.name for row in architecture_of(base()).head}:
            assert torch.equal(now, before[name]), name


def test_the_entries_are_the_largest_of_each_turned_gradient() -> None:
    before, batch = weights(tiny_bert()), batches_of(1)[0]
    run = training(k=400, lr=0.1).run([batch])
    method: Any = run.method
    for name, change in in_turned_basis(run, before).items():
        turned = method.turned(method._row(name), plain_gradients(tiny_bert(), batch)[name]).flatten()
        moved = set((change.flatten().abs() > 0.05).nonzero().flatten().tolist())
        assert len(moved) == 100, "a quarter in each of four equal matrices"
        assert moved == set(turned.abs().argsort(descending=True)[:100].tolist())


def plain_steps(basis: str, batches: list[Any], lr: float, decay: float, k: int) -> dict[str, torch.Tensor]:
    """The same in layers that are turned themselves, by PyTorch's own Adams; of four equal matrices."""
    run = training(basis=basis)
    method: Any = run.method
    model, head = tiny_bert(), []
    turned: dict[str, nn.Parameter] = {}
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_("classifier" in name)
        if "classifier" in name:
            head.append(parameter)
    for row in method.rows:
        turned[row.name] = nn.Parameter(method.turned(row, named[row.name].detach()))
        module = model.get_submodule(row.module)
        module.forward = lambda x, m=module, r=row: nn.functional.linear(
            x, method.turned_back(r, turned[r.name]), m.bias
        )
    whole = k >= sum(row.size for row in method.rows)
    parameters = list(turned.values())
    sparse = torch.optim.AdamW(parameters, lr, weight_decay=decay) if whole else torch.optim.SparseAdam(parameters, lr)
    dense = torch.optim.AdamW(head, lr, weight_decay=decay)
    for batch in batches:
        model.train()(**batch).loss.backward()
        for parameter in turned.values():
            if not whole:
                gradient = parameter.grad.flatten()  # type: ignore[union-attr]
                kept = gradient.abs().argsort(descending=True)[: k // 4]
                mask = torch.zeros_like(gradient)
                mask[kept] = 1
                parameter.grad = (gradient * mask).view_as(parameter).to_sparse()
        sparse.step()
        dense.step()
        sparse.zero_grad()
        dense.zero_grad()
    return {row.name: method.turned_back(row, turned[row.name].detach()) for row in method.rows}


@pytest.mark.parametrize("basis", ["rotated", "plain"])
def test_it_equals_layers_that_are_turned_themselves_with_sparse_adam(basis: str) -> None:
    """Which is PyTorch's: entries without a gradient neither move nor forget."""
    k = 68  # so few that the last chosen gradients stand clear of the next: processors round differently
    expected = plain_steps(basis, batches_of(4), 1e-3, 0.0, k)
    run = training(basis=basis, k=k, clip=1e9).run(batches_of(4))
    for name, value in expected.items():
        torch.testing.assert_close(weights(run.model)[name], value, rtol=0, atol=2e-5)
        assert float((value - weights(tiny_bert())[name]).abs().max()) > 2e-4


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_all_entries_in_the_plain_basis_are_adamw(decay: float) -> None:
    expected = plain_steps("plain", batches_of(4), 1e-3, decay, EVERYTHING)
    run = training(basis="plain", k=EVERYTHING, clip=1e9, weight_decay=decay).run(batches_of(4))
    for name, value in expected.items():
        torch.testing.assert_close(weights(run.model)[name], value, rtol=0, atol=1e-6)


def test_all_entries_in_the_turned_basis_are_not_adamw() -> None:
    """A step along the gradient is the same in any basis; one of Adam is not."""
    one, other = (training(basis=basis, k=EVERYTHING, clip=1e9).run(batches_of(2)) for basis in ("plain", "rotated"))
    name = one.method.rows[0].name  # type: ignore[attr-defined]
    assert float((weights(one.model)[name] - weights(other.model)[name]).abs().max()) > 1e-4


def test_with_all_entries_the_norm_of_the_gradient_is_the_same_in_any_basis() -> None:
    norms = [training(basis=basis, k=EVERYTHING).run(batches_of(1)).norms[0] for basis in ("plain", "rotated", "code")]
    assert norms[1:] == [pytest.approx(norms[0], rel=1e-4)] * 2


# --- budgets, state, whole runs ------------------------------------------------------------------


def test_budgets() -> None:
    architecture = architecture_of(tiny_bert())
    most = sum(row.size for row in architecture.linears(["up", "down"]))
    assert SparseGrad.size(architecture, SparseGrad.fit(architecture, SparseGrad.Config(), 123)) == 123
    assert SparseGrad.size(architecture, SparseGrad.fit(architecture, SparseGrad.Config(), most + 5)) == most
    with pytest.raises(BudgetError, match="updates no entry"):
        SparseGrad.fit(architecture, SparseGrad.Config(), 0)
    assert SparseGrad.warnings(architecture, SparseGrad.Config(k=most + 1), 10)
    assert not SparseGrad.warnings(architecture, SparseGrad.Config(k=most), 10)


def test_a_llama_trains_its_gates_too() -> None:
    roles = {row.role for row in SparseGrad.trainables(architecture_of(tiny_llama()), SparseGrad.Config())}
    assert roles == {"gate", "up", "down"}


@MODELS
def test_resuming_and_installing_are_bit_for_bit(base: Any) -> None:
    """The turns of the checkpoint count, not those that other examples would give."""
    straight = training(base, k=300, weight_decay=0.1).run(batches_of(8))
    state = training(base, k=300, weight_decay=0.1).run(batches_of(8)[:3]).state()
    resumed = training(base, k=300, weight_decay=0.1, examples=batches_of(9, size=1)[6:]).load(state)
    resumed.run(batches_of(8)[3:])
    assert resumed.losses == straight.losses[3:]
    other = training(base, k=300)
    other.method.install(straight.method.result())
    for row in straight.method.rows:  # type: ignore[attr-defined]
        ours = weights(straight.model)[row.name]
        assert torch.equal(weights(resumed.model)[row.name], ours)
        assert torch.equal(weights(other.model)[row.name], ours)
        base_weight = weights(base())[row.name]
        assert torch.equal(straight.method.delta(row, base_weight), ours - base_weight)


def test_its_optimizer_holds_what_it_says() -> None:
    run = training(k=50).run(batches_of(2))
    held = sum(moment.numel() for moments in run.method._moments.values() for moment in moments)  # type: ignore[attr-defined]
    assert run.method.optimizer_scalars() == held == 2 * run.method.peak(run.method.context.architecture, None)
    assert all(tensor.grad is None for _, tensor in run.method.streamed()), "each gradient is dropped at once"


def test_ragged_and_padded_batches_give_nearly_the_same_losses(home: Path, small: Path) -> None:
    losses = []
    for method, execution in (("rotated", "ragged"), ("rotated", "padded"), ("plain", "padded")):
        data = spec_data(small, {"name": "sparsegrad", "k": 300, "basis": method}, lr=0.005, execution=execution)
        run_id = submit(home, data)
        assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
        losses.append([value for _, value in series(home, run_id)["train/loss"]])
    assert max(abs(one - other) for one, other in zip(losses[0], losses[1], strict=True)) < 1e-4
    assert max(abs(one - other) for one, other in zip(losses[1], losses[2], strict=True)) > 1e-4


def test_it_stands_on_nothing_and_nothing_on_it(home: Path, small: Path) -> None:
    for outer, inner in (("sparsegrad", "lora"), ("id3", "sparsegrad"), ("mezo", "sparsegrad")):
        with pytest.raises(SpecError, match="cannot"):
            make_plan(parse_spec(spec_data(small, {"name": outer, "on": {"name": inner}})))
