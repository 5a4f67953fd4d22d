"""MeZO and Sparse MeZO: two losses a step, a direction that comes back from its seed, and no gradient anywhere."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import BudgetError, SpecError
from engine.export.finished import opened
from engine.export.formats import export_run
from engine.export.rebuild import rebuild
from engine.methods._zeroth import ZerothOrder
from engine.methods.mezo import MeZO
from engine.methods.registry import method_named
from engine.methods.sparse_mezo import SparseMeZO
from engine.plan import make_plan
from engine.resolution import _execution
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches, build
from engine.training.execution import StepWork
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.small import spec_data
from tests.test_promises import trained
from tests.tiny import architecture_of, context_for, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import go_on, series, stop, submit

BOTH = pytest.mark.parametrize("cls", [MeZO, SparseMeZO], ids=lambda cls: cls.name)
MODELS = pytest.mark.parametrize("base", [tiny_bert, tiny_llama], ids=["bert", "llama"])


def training(cls: type[ZerothOrder], model: nn.Module, settings: dict[str, Any] | None = None, **how: Any) -> Training:
    lr = how.pop("lr", 1e-2)
    return Training(make(cls, model, settings, **how), model, lr=lr, schedule=False)


def on(inner: str, model: nn.Module, settings: dict[str, Any] | None = None, **how: Any) -> Training:
    below = make(method_named(inner), model, settings)
    return Training(make(MeZO, model, on=below), model, lr=how.pop("lr", 1e-2), schedule=False)


def largest_change(model: nn.Module, before: dict[str, torch.Tensor]) -> float:
    return max(float((now - before[name]).abs().max()) for name, now in weights(model).items())


def directions(method: ZerothOrder) -> dict[str, torch.Tensor]:
    """The direction of the last step, each tensor whole, by name."""
    found = {}
    for number, entries, direction in method.directions():
        row, tensor = method._tensors[number]
        whole = torch.zeros_like(tensor).detach()
        if entries is None:
            whole.copy_(direction)
        else:
            whole.view(-1)[entries] = direction
        found[row.name] = whole
    return found


def slope_by_gradients(model: nn.Module, batch: dict[str, torch.Tensor], z: dict[str, torch.Tensor]) -> float:
    """The derivative of the loss along a direction, from a backward pass."""
    named = {name: parameter for name, parameter in model.named_parameters() if name in z}
    found = torch.autograd.grad(model(**batch).loss, list(named.values()), allow_unused=True)
    pairs = zip(named, found, strict=True)
    return float(sum((gradient * z[name]).sum() for name, gradient in pairs if gradient is not None))


# --- the step ---------------------------------------------------------------------------------


@BOTH
@MODELS
def test_the_slope_is_the_derivative_along_the_direction(cls: type[ZerothOrder], base: Any) -> None:
    model = base()
    run = training(cls, model, {"epsilon": 1e-3}, lr=0.0)
    for batch in batches_of(3):
        run.run([batch])
        expected = slope_by_gradients(base(), batch, directions(run.method))
        assert float(run.method._slope) == pytest.approx(expected, rel=2e-2, abs=1e-3)
        assert run.norms[-1] == pytest.approx(abs(float(run.method._slope)))


@BOTH
def test_the_weights_come_back(cls: type[ZerothOrder]) -> None:
    model = tiny_bert()
    before = weights(model)
    training(cls, model, lr=0.0).run(batches_of(1))
    assert 0 < largest_change(model, before) <= 1e-6, "but for rounding"


@BOTH
@MODELS
def test_a_step_walks_down_the_slope_along_the_direction(cls: type[ZerothOrder], base: Any) -> None:
    """The history of slopes and directions replays the weights."""
    model = base()
    expected = weights(model)
    run = training(cls, model, clip=1e9)
    for batch in batches_of(5):
        run.run([batch])
        for name, z in directions(run.method).items():
            expected[name] -= 1e-2 * run.method._slope * z
    assert max(float((now - expected[name]).abs().max()) for name, now in weights(model).items()) < 5e-6
    assert largest_change(model, weights(base())) > 1e-3


@BOTH
def test_nothing_is_kept_for_a_backward_pass(cls: type[ZerothOrder], home: Path, small: Path, tmp_path: Path) -> None:
    """No tensor is saved by any operation of a step, none has a gradient, and no optimizer has moments."""

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a graph was built")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda tensor: tensor):
        built, loop = trained(spec_data(small, cls.name, lr=0.01), tmp_path)
    assert all(parameter.grad is None for parameter in built.model.parameters())
    assert loop.steps.optimizer is not None
    assert not loop.steps.optimizer.state
    assert built.method.optimizer_scalars() == 0
    base = dict(built.base.named_parameters())
    assert all(not torch.equal(parameter, base[name]) for name, parameter in built.head), "the head learns too"


def test_two_losses_a_step_and_their_mean_is_reported() -> None:
    model, seen = tiny_bert(), []
    method = make(MeZO, model)
    run = Training(method, model, lr=0.0)
    model.register_forward_hook(lambda module, given, output: seen.append(float(output.loss)))
    run.run(batches_of(1))
    assert len(seen) == 2
    assert run.losses == [pytest.approx(sum(seen) / 2)]
    assert float(method._slope) == pytest.approx((seen[0] - seen[1]) / 2e-3, rel=1e-4)


def test_the_executor_reports_the_means_and_the_slope(home: Path, small: Path) -> None:
    built = build(make_plan(parse_spec(spec_data(small, "mezo"))).spec, Caches())
    seen = []

    def forward(batch: Any) -> torch.Tensor:
        seen.append(built.model(**batch).logits)
        return seen[-1]

    batch = tiny_batch()
    labels = batch.pop("labels")
    work = StepWork(built, forward)
    loss, accuracy = work.estimate(3, batch, labels)
    losses = [nn.functional.cross_entropy(logits, labels) for logits in seen]
    assert float(loss) == pytest.approx(float(sum(losses)) / 2)
    assert float(accuracy) == pytest.approx(np.mean([float((x.argmax(1) == labels).float().mean()) for x in seen]))
    assert float(work.apply(3, 0.0)) == pytest.approx(abs(float(losses[0] - losses[1]) / 2e-3), rel=1e-3)


@BOTH
def test_dropout_is_off_on_both_sides_and_on_again_after(cls: type[ZerothOrder]) -> None:
    slopes = []
    for dropout in (0.0, 0.5):
        model = tiny_bert()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        run = training(cls, model, lr=0.0).run(batches_of(1))
        slopes.append(float(run.method._slope))
        assert model.training
    assert slopes[0] == slopes[1]


def test_the_bound_on_gradients_holds_for_the_slope() -> None:
    models = {clip: tiny_bert() for clip in (1e9, 1e-3)}
    runs = {clip: training(MeZO, model, lr=1.0, clip=clip).run(batches_of(1)) for clip, model in models.items()}
    slope = abs(float(runs[1e9].method._slope))
    assert slope > 1e-2
    free, bound = (largest_change(models[clip], weights(tiny_bert())) for clip in (1e9, 1e-3))
    assert bound / free == pytest.approx(1e-3 / slope, rel=2e-2)


@BOTH
def test_decay_is_of_what_is_trained_but_for_biases_and_norms(cls: type[ZerothOrder]) -> None:
    """A rate so small that only a huge decay shows."""
    model, before = tiny_bert(), weights(tiny_bert())
    run = training(cls, model, lr=1e-6, weight_decay=1e5).run(batches_of(1))
    chosen = {name: z != 0 for name, z in directions(run.method).items()}
    for row in run.method.context.architecture.parameters:
        now, mask = weights(model)[row.name], chosen[row.name]
        factor = 1.0 if row.part == "bias" or row.role.startswith("norm") else 0.9
        torch.testing.assert_close(now[mask], factor * before[row.name][mask], rtol=0, atol=2e-5)
        assert torch.equal(now[~mask], before[row.name][~mask])


# --- directions -------------------------------------------------------------------------------


@BOTH
def test_directions_are_standard_normal_and_differ_by_step_and_seed(cls: type[ZerothOrder]) -> None:
    found = {}
    for seed in (0, 1):
        run = training(cls, tiny_bert(), seed=seed, lr=0.0)
        for step, batch in enumerate(batches_of(2)):
            run.run([batch])
            found[seed, step] = torch.cat([z.flatten() for z in directions(run.method).values()])
    drawn = found[0, 0][found[0, 0] != 0]
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    vectors = list(found.values())
    for number, one in enumerate(vectors):
        for other in vectors[number + 1 :]:
            assert abs(float(torch.cosine_similarity(one, other, dim=0))) < 0.05
    parts = [z.flatten()[:16] for z in directions(run.method).values() if z.numel() >= 16]
    assert len({tuple(part.tolist()) for part in parts}) == len(parts), "no two tensors move alike"


def test_slopes_times_directions_are_the_gradient_on_average() -> None:
    """With few weights: the head alone. And the squared slope is its squared norm, so that clipping compares."""
    model, batch = tiny_bert(), batches_of(1)[0]
    model.classifier.requires_grad_(True)
    loss = model(**batch).loss
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.classifier.parameters()))])
    run = on("linear_probe", model, lr=0.0)
    total, squares = torch.zeros_like(gradient), []
    for _ in range(600):
        run.run([batch])
        z = torch.cat([part.flatten() for part in directions(run.method).values()])  # type: ignore[arg-type]
        total += run.method._slope * z  # type: ignore[attr-defined]
        squares.append(run.norms[-1] ** 2)
    assert float(torch.cosine_similarity(total, gradient, dim=0)) > 0.9
    assert float(total @ gradient) / 600 == pytest.approx(float(gradient.square().sum()), rel=0.2)
    assert np.mean(squares) == pytest.approx(float(gradient.square().sum()), rel=0.25)


def test_it_learns() -> None:
    model, batch = tiny_bert(), tiny_batch(8)
    run = on("bitfit", model, lr=0.1).run([batch] * 300)
    assert np.mean(run.losses[-20:]) < 0.7 * run.losses[0]


# --- what trains --------------------------------------------------------------------------------


@pytest.mark.parametrize(("inner", "settings"), [("lora", {"rank": 2}), ("dora", {"rank": 2}), ("bitfit", {})])
def test_on_another_method_only_its_tensors_move(inner: str, settings: dict[str, Any]) -> None:
    model = tiny_bert()
    run = on(inner, model, settings)
    before = weights(run.model)
    run.run(batches_of(3))
    added = {name for name, _ in run.method.inner.parameters()}  # type: ignore[union-attr]
    heads = {row.name for row in architecture_of(tiny_bert()).head}
    moved = {name for name, now in weights(run.model).items() if not torch.equal(now, before[name])}
    assert moved == added | heads
    assert MeZO.size(run.method.context.architecture, run.method.config) == sum(
        p.numel()
        for _, p in run.method.inner.parameters()  # type: ignore[union-attr]
    )


def test_on_lora_a_result_is_loras_and_merges() -> None:
    run = on("lora", tiny_bert(), {"rank": 2}).run(batches_of(3))
    assert run.method.result() == {}
    fresh = tiny_bert()
    other = on("lora", fresh, {"rank": 2})
    other.method.inner.install(run.method.inner.result())  # type: ignore[union-attr]
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(weights(run.model)[name]) if name.startswith("classifier") else None
    assert torch.equal(fresh.eval()(**tiny_batch()).logits, run.model.eval()(**tiny_batch()).logits)
    plain = run.method.merged(run.model).eval()
    torch.testing.assert_close(plain(**tiny_batch()).logits, run.model(**tiny_batch()).logits, atol=1e-5, rtol=0)
    row = run.method.context.architecture.parameters[0]
    base = architecture_of(tiny_bert()).find(f"{row.module.rpartition('.lora_A')[0]}.weight")
    change = run.method.delta(base, weights(tiny_bert())[base.name])
    assert change is not None
    assert float(change.abs().max()) > 0


@pytest.mark.parametrize("inner", ["adalora", "id3", "lisa", "smt", "gmt"])
def test_it_stands_on_no_method_that_works_by_gradients(inner: str, home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="cannot stand on"):
        make_plan(parse_spec(spec_data(small, {"name": "mezo", "on": {"name": inner}})))


@pytest.mark.parametrize("outer", ["id3", "mezo"])
def test_nothing_stands_on_it(outer: str, home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="works without gradients") as caught:
        make_plan(parse_spec(spec_data(small, {"name": outer, "on": {"name": "mezo"}})))
    assert "Put it on" in caught.value.todo


def test_sparse_mezo_stands_on_nothing(home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="cannot be put on top"):
        make_plan(parse_spec(spec_data(small, {"name": "sparse_mezo", "on": {"name": "lora"}})))


# --- Sparse MeZO ----------------------------------------------------------------------------------


def spread(model: nn.Module) -> nn.Module:
    """The model with biases and norms that are not all equal, as in any trained model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def test_the_smallest_of_every_tensor_are_perturbed_and_nothing_else() -> None:
    model, before = spread(tiny_bert()), weights(spread(tiny_bert()))
    run = training(SparseMeZO, model, {"share": 0.25}, lr=1e-4).run(batches_of(1))
    for name, z in directions(run.method).items():
        if name.startswith("classifier"):
            assert bool((z != 0).all())
            continue
        size = before[name].abs().flatten()
        count = int((z != 0).sum())
        assert abs(count - 0.25 * len(size)) <= 1, name
        assert set((z.flatten() != 0).nonzero().flatten().tolist()) == set(size.argsort()[:count].tolist()), name
        assert torch.equal(weights(model)[name][z == 0], before[name][z == 0]), name


def test_a_weight_past_its_threshold_stops_for_good() -> None:
    model = spread(tiny_bert())
    run = training(SparseMeZO, model, {"share": 0.3}, lr=1e-2)
    before, stopped = weights(model), None
    for batch in batches_of(6):
        run.run([batch])
        below = torch.cat(run.method._below)  # type: ignore[attr-defined]
        if stopped is not None:
            assert not bool((below & stopped).any())
        stopped = ~below
    assert 0 < int(stopped.sum()) < len(stopped)
    for number, row in enumerate(run.method.rows):  # type: ignore[attr-defined]
        limit = run.method._thresholds[number]  # type: ignore[attr-defined]
        chosen = run.method._entries[number]  # type: ignore[attr-defined]
        assert float(before[row.name].abs().flatten()[chosen].max()) == float(limit)


def test_perturbing_everything_is_mezo_but_for_the_stop() -> None:
    """In the first step all are below the largest of them; the same stream gives the same direction."""
    models = [spread(tiny_bert()), spread(tiny_bert())]
    for cls, settings, model in ((MeZO, {}, models[0]), (SparseMeZO, {"share": 1.0}, models[1])):
        training(cls, model, settings).run(batches_of(1))
    assert all(torch.equal(weights(models[0])[name], now) for name, now in weights(models[1]).items())


@pytest.mark.parametrize("k", [1, 37, 5_000])
def test_a_budget_is_met_exactly(k: int) -> None:
    model = spread(tiny_bert())
    context = context_for(model)
    marked = context.architecture.with_frozen_rows(max_length=8, pairs=False)
    config = SparseMeZO.fit(marked, SparseMeZO.Config(), k)
    assert SparseMeZO.size(marked, config) == k
    method = make(SparseMeZO, model, config.model_dump(), context=replace(context, architecture=marked))
    method.attach(model)
    selection = method.selection()
    assert selection is not None
    pairs = set(zip(selection.tensor.tolist(), selection.index.tolist(), strict=True))
    assert len(pairs) == len(selection.index) == k
    for number, row in enumerate(selection.parameters):
        width = row.size // row.shape[0]
        dead = {entry for start, stop in row.frozen_rows for entry in range(start * width, stop * width)}
        assert not dead & {index for tensor, index in pairs if tensor == number}


def test_budgets_out_of_reach_are_refused() -> None:
    architecture = architecture_of(tiny_bert())
    total = sum(row.size for row in architecture.backbone)
    with pytest.raises(BudgetError, match="perturbs no weight"):
        SparseMeZO.fit(architecture, SparseMeZO.Config(), 0)
    assert SparseMeZO.size(architecture, SparseMeZO.fit(architecture, SparseMeZO.Config(), total + 1)) == total
    with pytest.raises(BudgetError, match="cannot be made smaller"):
        MeZO.fit(architecture, MeZO.Config(), total - 1)
    assert MeZO.size(architecture, MeZO.Config()) == total
    assert "less than one weight" in SparseMeZO.warnings(architecture, SparseMeZO.Config(share=1e-9), 5_000)[0]
    assert not SparseMeZO.warnings(architecture, SparseMeZO.Config(), 5_000)


def test_a_delta_applied_to_the_base_is_the_trained_model(tmp_path: Path) -> None:
    run = training(SparseMeZO, tiny_bert(), {"share": 0.1}).run(batches_of(4))
    head = {name: p for name, p in run.model.named_parameters() if name.startswith("classifier")}
    metadata = {"method": "sparse_mezo", "eligibility": "{}", "spec_hash": "s", "base_sha256": "b" * 64}
    write_delta(tmp_path / "d.safetensors", delta_of(run.method.result(), head, metadata))
    fresh = tiny_bert()
    apply_delta(fresh, read_delta(tmp_path / "d.safetensors"), "b" * 64)
    assert all(torch.equal(now, weights(run.model)[name]) for name, now in weights(fresh).items())


# --- whole runs -------------------------------------------------------------------------------


@BOTH
@MODELS
def test_resuming_and_installing_are_bit_for_bit(cls: type[ZerothOrder], base: Any) -> None:
    straight = training(cls, base()).run(batches_of(8))
    state = training(cls, base()).run(batches_of(8)[:3]).state()
    resumed = training(cls, base()).load(state).run(batches_of(8)[3:])
    assert resumed.losses == straight.losses[3:]
    ours = weights(straight.model)
    assert all(torch.equal(now, ours[name]) for name, now in weights(resumed.model).items())
    fresh = training(cls, base())
    fresh.method.install(straight.method.result())
    for row in architecture_of(base()).backbone:
        assert torch.equal(weights(fresh.model)[row.name], ours[row.name])
        change = straight.method.delta(row, weights(base())[row.name])
        assert torch.equal(change, ours[row.name] - weights(base())[row.name])


def test_on_lora_a_stopped_run_resumes_as_if_never_stopped_and_is_an_adapter(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    data = spec_data(small, {"name": "mezo", "on": {"name": "lora", "rank": 2}}, lr=0.02, steps=20)
    straight, stopped = submit(home, data), submit(home, data)
    assert run_job(home, straight, Caches()) == "finished", Runs(home).get(straight).error
    stop(home, stopped, 8, monkeypatch)
    go_on(home, stopped)
    runs = Runs(home)
    assert series(home, stopped) == series(home, straight)
    summary = runs.get(straight).summary
    assert summary is not None
    assert summary["optimizer_state_scalars"] == summary["head_optimizer_scalars"] == 0
    export_run(home, straight, "peft", tmp_path / "adapter")
    with opened(home, straight) as run:
        built = rebuild(run)
    plain = PeftModel.from_pretrained(copy.deepcopy(built.base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(plain(**tiny_batch()).logits, built.model(**tiny_batch()).logits)


@pytest.mark.parametrize("method", ["mezo", "sparse_mezo", {"name": "mezo", "on": {"name": "lora", "rank": 2}}])
def test_ragged_and_padded_batches_give_nearly_the_same_losses(
    method: Any, home: Path, small: Path, tmp_path: Path
) -> None:
    ends = []
    for execution in ("ragged", "padded"):
        data = spec_data(small, method, lr=0.005, execution=execution)
        built, _ = trained(data, tmp_path / execution)
        ends.append(torch.cat([p.detach().flatten() for p in built.model.parameters()]))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4
    assert not torch.equal(ends[0], torch.cat([p.detach().flatten() for p in built.base.parameters()][: len(ends[0])]))


@BOTH
def test_on_a_gpu_its_steps_are_eager(cls: type[ZerothOrder], home: Path, small: Path) -> None:
    plan = make_plan(parse_spec(spec_data(small, cls.name)))
    built = build(plan.spec, Caches())
    family, train = built.setting.source.family, plan.spec.train.model_copy(update={"execution": "auto"})
    assert cls.captured == ""
    assert _execution(train, "cuda", family, drops=False, captured=bool(cls.captured), packs=False) == "padded"
    assert plan.spec.train.execution == "ragged"


@BOTH
def test_the_plan_counts_no_gradients_and_no_moments(cls: type[ZerothOrder], home: Path, small: Path) -> None:
    data = spec_data(small, cls.name)
    data["train"]["steps"] = 10
    full = make_plan(parse_spec(data | {"method": "full"}))
    ours = make_plan(parse_spec(data))
    assert full.memory_bytes - ours.memory_bytes >= 12 * full.params.model
    assert any("are few" in text for text in ours.warnings)
    assert "peft" not in cls.export_formats
