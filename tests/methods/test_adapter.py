"""Bottleneck adapters: alone, and below the methods that select single weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers.pytorch_utils import Conv1D

from engine.errors import BudgetError, SpecError
from engine.export.finished import opened
from engine.export.rebuild import rebuild
from engine.methods.adapter import Adapter
from engine.methods.contract import Method
from engine.methods.id3 import ID3
from engine.methods.pafi import PaFi
from engine.methods.registry import methods
from engine.models.added import Bottleneck
from engine.models.families import FAMILIES
from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training import latency
from engine.training.build import Caches, build, encoded_splits
from engine.training.ragged import RaggedForward
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.models.saved import CONFIGS
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_ragged import batch_of, gradients
from tests.training.test_run import go_on, series, stop, submit

STEPS = 12
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "pooler_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
ADDED = ("down", "down bias", "up", "up bias")


def tiny(family: str) -> Any:
    """A tiny classifier of one family, without dropout, in eval mode; its biases are not zero."""
    model_type, settings = CONFIGS[family]
    torch.manual_seed(3)
    settings = {"pad_token_id": 0, **settings}
    if model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        settings["pad_token_id"] = 1
    config = AutoConfig.for_model(model_type, num_labels=3, **settings)
    for name in DROPOUTS:
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


every_family = pytest.mark.parametrize("family", CONFIGS)
some_families = pytest.mark.parametrize("family", ["bert", "deberta-v3", "gpt2", "llama"])


def logits(model: nn.Module, seed: int = 77) -> torch.Tensor:
    inputs = {key: value for key, value in tiny_batch(seed=seed).items() if key != "labels"}
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(**inputs).logits
    return answer


def attached(model: nn.Module, **settings: Any) -> Method:
    method = make(Adapter, model, {"bottleneck": 4, **settings}, steps=STEPS)
    method.attach(model)
    return method


def trained(model: nn.Module, **settings: Any) -> Training:
    method = make(Adapter, model, {"bottleneck": 4, **settings}, steps=STEPS)
    return Training(method, model, lr=1e-2).run(batches_of(STEPS))


def base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


# --- one adapter -------------------------------------------------------------------------------


def bent(values: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "gelu":
        return 0.5 * values * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
    return values.clamp(min=0) if activation == "relu" else values / (1 + torch.exp(-values))


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("base", [nn.Linear(5, 6), Conv1D(6, 5)], ids=["linear", "conv1d"])
def test_it_adds_what_the_formula_says(base: nn.Module, activation: Any) -> None:
    made = Bottleneck(base, 3, activation)
    made.start(1.0, torch.Generator().manual_seed(0))
    nn.init.normal_(made.down.bias)
    nn.init.normal_(made.up.bias)
    x = torch.randn(4, 5)
    h = base(x)
    narrow = h @ made.down.weight.T + made.down.bias
    expected = h + bent(narrow, activation) @ made.up.weight.T + made.up.bias
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_twice_as_wide_as_the_model_it_can_be_any_affine_map() -> None:
    """With a ReLU: z = relu(z) - relu(-z)."""
    base = nn.Linear(5, 6)
    made = Bottleneck(base, 12, "relu")
    change, offset = torch.randn(6, 6), torch.randn(6)
    with torch.no_grad():
        made.down.weight.copy_(torch.cat([torch.eye(6), -torch.eye(6)]))
        made.down.bias.zero_()
        made.up.weight.copy_(torch.cat([change, -change], 1))
        made.up.bias.copy_(offset)
    x = torch.randn(7, 5)
    torch.testing.assert_close(made(x), base(x) + base(x) @ change.T + offset)


def test_in_a_bert_it_stands_before_the_skip_connection_and_the_norm() -> None:
    model: Any = tiny("bert")
    attached(model, std=0.3)
    layer = model.bert.encoder.layer[1]
    for block, inputs in ((layer.attention.output, 16), (layer.output, 24)):
        states, skipped = torch.randn(1, 3, inputs), torch.randn(1, 3, 16)
        h = block.dense.base_layer(states)
        adapted = h + block.dense.up(functional.gelu(block.dense.down(h), approximate="tanh"))
        torch.testing.assert_close(block(states, skipped), block.LayerNorm(adapted + skipped))
        assert not torch.allclose(block(states, skipped), block.LayerNorm(h + skipped), atol=1e-3)


def test_in_a_llama_it_stands_on_the_branch_and_not_on_the_stream() -> None:
    model: Any = tiny("llama")
    plain: Any = tiny("llama")
    attached(model, std=0.3)
    states = torch.randn(1, 3, 16)
    mlp = model.model.layers[0].mlp
    h = plain.model.layers[0].mlp(states)
    adapted = h + mlp.down_proj.up(functional.gelu(mlp.down_proj.down(h), approximate="tanh"))
    torch.testing.assert_close(mlp(states), adapted)


# --- at the start ------------------------------------------------------------------------------


@every_family
def test_it_starts_nearly_at_the_base(family: str) -> None:
    model = tiny(family)
    attached(model)
    apart = (logits(model) - logits(tiny(family))).abs().max()
    assert 0 < apart < 1e-5
    far = tiny(family)
    attached(far, std=0.3)
    assert (logits(far) - logits(tiny(family))).abs().max() > 100 * apart


@every_family
def test_without_its_second_matrix_it_is_exactly_the_base(family: str) -> None:
    model = tiny(family)
    for name, parameter in attached(model, std=0.3).parameters():
        if name.endswith("up.weight"):
            nn.init.zeros_(parameter)
    assert torch.equal(logits(model), logits(tiny(family)))


def test_matrices_start_normal_cut_at_two_deviations_and_biases_at_zero() -> None:
    model = tiny_bert(hidden=64)
    method = make(Adapter, model, {"bottleneck": 64, "std": 0.01})
    method.attach(model)
    drawn = {name: p.detach() for name, p in method.parameters() if ".down." in name or ".up." in name}
    assert all(not tensor.any() for name, tensor in drawn.items() if name.endswith("bias"))
    values = torch.cat([tensor.flatten() for name, tensor in drawn.items() if name.endswith("weight")])
    assert len(values) == 4 * 2 * 64 * 64
    assert float(values.abs().max()) <= 0.02
    assert float(values.abs().max()) > 0.0199
    assert abs(float(values.mean())) < 2e-4
    # A normal cut at two deviations has 0.8796 of the deviation.
    assert float(values.std()) == pytest.approx(0.008796, rel=0.02)


def test_the_start_depends_on_its_seed_alone() -> None:
    def drawn(seed: int, noise: int) -> dict[str, torch.Tensor]:
        model = tiny_bert()
        method = make(Adapter, model, seed=seed)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        method.attach(model)
        assert torch.equal(torch.get_rng_state(), before)
        return method.result()

    one, same, other = drawn(1, 10), drawn(1, 20), drawn(2, 10)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in one if name.endswith(("down.weight", "up.weight")))


# --- the count ---------------------------------------------------------------------------------


def test_the_count_is_houlsbys() -> None:
    architecture = architecture_of(tiny_bert(layers=3, hidden=64))

    def size(**settings: Any) -> int:
        return Adapter.size(architecture, Adapter.Config(**settings))

    assert size(bottleneck=8, norms=False) == 2 * 3 * (2 * 64 * 8 + 64 + 8) == 6_576
    assert size(bottleneck=8) == 6_576 + 2 * 64 * (2 * 3 + 1)
    assert size(bottleneck=8, norms=False, places=("feed_forward",)) == 6_576 // 2
    assert size(bottleneck=8, norms=False, places=("attention",)) == 6_576 // 2


def test_of_a_bert_base_it_is_that_of_the_specification() -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig())
    architecture = architecture_of(model)
    assert Adapter.size(architecture, Adapter.Config(bottleneck=8, norms=False)) == 313_536
    assert Adapter.fit(architecture, Adapter.Config(norms=False), 313_536).bottleneck == 8
    assert Adapter.fit(architecture, Adapter.Config(norms=False), 313_535).bottleneck == 7


@every_family
@pytest.mark.parametrize("norms", [True, False])
def test_what_was_declared_is_what_trains(family: str, norms: bool) -> None:
    model = tiny(family)
    base = architecture_of(tiny(family))
    method = attached(model, norms=norms)
    heads = {row.name for row in base.head}
    free = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad and name not in heads}
    declared = {row.name: row.shape for row in Adapter.trainables(base, method.config)}
    assert free == declared
    assert list(free) == list(declared) == [name for name, _ in method.parameters()]
    adapters = [name for name in free if name.endswith("down.weight")]
    assert len(adapters) == 2 * base.layers
    every_norm = {row.name for row in base.backbone if row.role.startswith("norm")}
    assert every_norm & set(free) == (every_norm if norms else set())
    assert sum(math.prod(shape) for shape in free.values()) == Adapter.size(base, method.config)


@pytest.mark.parametrize("settings", [{}, {"norms": False}, {"places": ["feed_forward"], "norms": False}])
def test_a_budget_sets_the_widest_bottleneck(settings: dict[str, Any]) -> None:
    architecture, config = architecture_of(tiny_bert()), Adapter.Config(**settings)
    one, two = (Adapter.size(architecture, config.model_copy(update={"bottleneck": m})) for m in (1, 2))
    assert Adapter.fit(architecture, config, one).bottleneck == 1
    assert Adapter.fit(architecture, config, two - 1).bottleneck == 1
    assert Adapter.fit(architecture, config, two) == config.model_copy(update={"bottleneck": 2})
    count = 2 if settings.get("places") else 4
    for target in (1_000, 1_777, 5_000):
        norms = one - count * (3 * 32 + 1) if config.norms else 0
        expected = ((target - norms) // count - 32) // (2 * 32 + 1)
        assert Adapter.fit(architecture, config, target).bottleneck == expected
    with pytest.raises(BudgetError, match=f"at least {one:,}"):
        Adapter.fit(architecture, config, one - 1)


def test_a_bottleneck_that_is_none_is_said_to_be_none() -> None:
    architecture = architecture_of(tiny_bert())
    assert "no narrower" in Adapter.warnings(architecture, Adapter.Config(bottleneck=32), 10)[0]
    assert Adapter.warnings(architecture, Adapter.Config(bottleneck=31), 10) == []


def test_a_start_that_could_never_begin_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Adapter.Config(std=0)


# --- training ----------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("norms", [True, False])
def test_nothing_but_adapters_norms_and_head_moves(family: str, norms: bool) -> None:
    base, architecture = weights(tiny(family)), architecture_of(tiny(family))
    training = trained(tiny(family), norms=norms)
    roles = {row.name: row.role for row in architecture.parameters}
    for name, value in weights(training.model).items():
        role = roles.get(base_name(name))
        if role is None:
            continue
        free = role == "head" or (norms and role.startswith("norm"))
        assert torch.equal(value, base[base_name(name)]) != free, name
    start = tiny(family)
    before = attached(start, norms=norms).result()
    assert all(not torch.equal(value, before[name]) for name, value in training.method.result().items())
    for row in architecture.backbone:
        change = training.method.delta(row, base[row.name])
        assert (change is not None) == (norms and row.role.startswith("norm")), row.name
        if change is not None:
            torch.testing.assert_close(base[row.name] + change, training.model.get_parameter(row.name))


@pytest.mark.parametrize("build_model", [tiny_bert, tiny_llama])
def test_it_learns(build_model: Any) -> None:
    """With a frozen head, whose answers are loud enough to be turned: what is learned, the adapters have learned."""
    model = build_model()
    method = make(Adapter, model, {"bottleneck": 8, "norms": False}, steps=40)
    training = Training(method, model, lr=2e-2, schedule=False)
    for parameter in training.head:
        parameter.requires_grad_(False).mul_(30)
    training.run([tiny_batch()] * 40)
    assert training.losses[-1] < 0.5 * training.losses[0]


@some_families
@pytest.mark.parametrize("at", [0, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(family: str, at: int) -> None:
    def fresh() -> Training:
        model = tiny(family)
        return Training(make(Adapter, model, {"bottleneck": 4}, steps=STEPS), model, lr=1e-2)

    whole, first = fresh().run(batches_of(STEPS)), fresh().run(batches_of(STEPS)[:at])
    rest = fresh().load(first.state()).run(batches_of(STEPS)[at:])
    assert first.losses + rest.losses == whole.losses
    ours = weights(whole.model)
    assert all(torch.equal(value, ours[name]) for name, value in weights(rest.model).items())


@some_families
def test_a_result_goes_into_a_fresh_model(family: str) -> None:
    training = trained(tiny(family))
    model = tiny(family)
    method = attached(model)
    method.install(training.method.result())
    with torch.no_grad():
        for row in method.context.architecture.head:
            model.get_parameter(row.name).copy_(training.model.get_parameter(row.name))
    assert torch.equal(logits(model), logits(training.model))


@pytest.mark.parametrize("family", [name for name, (kind, _) in CONFIGS.items() if FAMILIES[kind].head_reads])
def test_ragged_batches_give_the_same_gradients(family: str) -> None:
    model = tiny(family)
    attached(model, std=0.3)
    batch = batch_of(model)
    padded = model(**batch).logits
    expected = gradients(model, padded)
    ragged = RaggedForward(model, FAMILIES[model.config.model_type])(batch)
    torch.testing.assert_close(ragged, padded, rtol=0, atol=1e-5)
    found = gradients(model, ragged)
    assert found.keys() == expected.keys()
    assert sum(".down." in name or ".up." in name for name in found) == 4 * 4
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_checkpointed_activations_change_nothing() -> None:
    def found(checkpointed: bool) -> list[torch.Tensor]:
        model: Any = tiny("bert")
        method = attached(model, std=0.3)
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()(**tiny_batch()).loss.backward()
        return [parameter.grad for _, parameter in method.parameters() if parameter.grad is not None]

    plain, saved = found(False), found(True)
    assert len(plain) == len(saved) == 4 * 4 + 2 * 5
    assert all(torch.allclose(one, two, atol=1e-7) for one, two in zip(plain, saved, strict=True))


# --- below another method ----------------------------------------------------------------------

COMPOSING = sorted(name for name, cls in methods().items() if cls.composes)


def composed(outer: type[Method], model: nn.Module, k: int, norms: bool = False, **settings: Any) -> Training:
    below = make(Adapter, model, {"bottleneck": 4, "norms": norms}, steps=STEPS)
    choice = {"k": k, **settings} if "k" in outer.Config.model_fields else settings
    method = make(outer, model, choice, steps=STEPS, on=below)
    return Training(method, model, lr=1e-2, score_batches=batches_of(4, size=1))


def chosen(method: Method) -> list[tuple[str, str, int]]:
    """Part, name and place of every selected entry."""
    selection = method.selection()
    assert selection is not None
    return [
        (selection.parameters[tensor].part, selection.parameters[tensor].name, index)
        for tensor, index in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True)
    ]


@pytest.mark.parametrize("build_model", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("name", COMPOSING)
def test_what_stands_on_it_moves_its_numbers_and_nothing_else(name: str, norms: bool, build_model: Any) -> None:
    fresh = build_model()
    make(Adapter, fresh, {"bottleneck": 4, "norms": norms}, steps=STEPS).attach(fresh)
    before = weights(fresh)
    run = composed(methods()[name], build_model(), 90, norms).run(batches_of(STEPS))
    inner = run.method.inner
    assert inner is not None
    heads = {row.name for row in architecture_of(build_model()).head}
    moved = {
        (key, int(index))
        for key, parameter in run.model.named_parameters()
        for index in (parameter.detach() != before[key]).flatten().nonzero().flatten()
        if key not in heads
    }
    assert moved
    assert {key for key, _ in moved} <= {key for key, _ in inner.parameters()}
    if run.method.selection() is not None:
        entries = {(key, index) for _, key, index in chosen(run.method)}
        assert moved <= entries
        assert len(entries) == 90
        assert {part for part, _, _ in chosen(run.method)} <= {*ADDED, *(("weight", "bias") if norms else ())}


def test_id3_unmasks_first_what_scores_best_by_a_dense_gradient() -> None:
    model = tiny_bert()
    method = make(Adapter, model, {"bottleneck": 4, "norms": False}, steps=STEPS)
    method.attach(model)
    model.train()(**batches_of(1)[0]).loss.backward()
    scores = torch.cat([(p.grad.abs() / (p.detach().abs() + 1e-3)).flatten() for _, p in method.parameters()])  # type: ignore[union-attr]
    names = [(name, index) for name, p in method.parameters() for index in range(p.numel())]
    best = {names[place] for place in scores.topk(10).indices.tolist()}
    run = composed(ID3, tiny_bert(), 10 * STEPS).run(batches_of(1))
    assert {(name, index) for _, name, index in chosen(run.method)} == best


def test_pafi_takes_the_zeros_of_the_biases_and_says_so() -> None:
    zeros = 4 * (32 + 4)
    all_zeros = composed(PaFi, tiny_bert(), zeros)
    assert {part for part, _, _ in chosen(all_zeros.method)} == {"down bias", "up bias"}
    more = composed(PaFi, tiny_bert(), zeros + 5)
    assert sum(part in ("down", "up") for part, _, _ in chosen(more.method)) == 5
    architecture = all_zeros.method.context.architecture
    (text,) = PaFi.warnings(architecture, PaFi.Config(k=60), STEPS)
    assert text.startswith("144 of the eligible entries start at exactly zero")
    without = composed(PaFi, tiny_bert(), 60, exclude=["bias"])
    assert {part for part, _, _ in chosen(without.method)} == {"down", "up"}
    assert PaFi.warnings(architecture, PaFi.Config(k=60, exclude=("bias",)), STEPS) == []
    values = torch.cat(
        [p.detach().flatten().abs() for name, p in without.method.inner.parameters() if "weight" in name]
    )  # type: ignore[union-attr]
    tensors = dict(without.method.inner.parameters())  # type: ignore[union-attr]
    picked = [float(tensors[name].detach().flatten()[index].abs()) for _, name, index in chosen(without.method)]
    assert max(picked) <= float(values.kthvalue(60).values)


@pytest.mark.parametrize("outer", [ID3, PaFi], ids=lambda cls: cls.name)
def test_on_it_training_as_a_gpu_does_is_the_same(outer: type[Method]) -> None:
    """There gradients are read in large parts, and all tensors lie in one buffer."""
    runs = []
    for flat in (True, False):
        model = tiny_bert()
        below = make(Adapter, model, {"bottleneck": 4}, steps=STEPS)
        method: Any = make(outer, model, {"k": 93}, steps=STEPS, clip=1e9, on=below)  # the norm's last bit may differ
        method.flat = flat
        runs.append(Training(method, model, lr=1e-2).run(batches_of(STEPS)))
    ours, plain = runs
    assert chosen(ours.method) == chosen(plain.method)
    assert ours.losses == plain.losses
    mine, theirs = weights(ours.method.merged(ours.model)), weights(plain.model)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("outer", [ID3, PaFi], ids=lambda cls: cls.name)
def test_on_it_resuming_and_installing_are_bit_for_bit(outer: type[Method], norms: bool) -> None:
    straight = composed(outer, tiny_bert(), 93, norms).run(batches_of(STEPS))
    state = composed(outer, tiny_bert(), 93, norms).run(batches_of(STEPS)[:4]).state()
    resumed = composed(outer, tiny_bert(), 93, norms).load(state).run(batches_of(STEPS)[4:])
    assert resumed.losses == straight.losses[4:]
    ours = weights(straight.model)
    assert all(torch.equal(parameter, ours[name]) for name, parameter in resumed.model.named_parameters())
    fresh = composed(outer, tiny_bert(), 93, norms)
    fresh.method.install(straight.method.result())
    for name, parameter in fresh.model.named_parameters():
        assert name.startswith("classifier") or torch.equal(parameter, ours[name]), name


def test_it_stands_on_nothing_itself(home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="cannot be put on top"):
        make_plan(parse_spec(spec_data(small, {"name": "adapter", "on": {"name": "lora"}})))


# --- whole runs --------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "adapter": {"name": "adapter", "bottleneck": 4},
    "pfeiffer": {
        "name": "adapter", "bottleneck": 4, "places": ["feed_forward"], "norms": False, "activation": "relu",
    },
    "id3-on": {"name": "id3", "k": 90, "on": {"name": "adapter", "bottleneck": 4}},
    "pafi-on": {"name": "pafi", "k": 90, "on": {"name": "adapter", "bottleneck": 4, "norms": False}},
    "mezo-on": {"name": "mezo", "on": {"name": "adapter", "bottleneck": 4}},
}  # fmt: skip
every_run = pytest.mark.parametrize("method", RUNS.values(), ids=RUNS)


def finished(home: Path, data: dict[str, Any]) -> str:
    run_id = submit(home, data)
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
    return run_id


@every_run
def test_ragged_and_padded_runs_have_nearly_the_same_losses(home: Path, small: Path, method: dict[str, Any]) -> None:
    losses = []
    for execution in ("ragged", "padded"):
        run_id = finished(home, spec_data(small, method, lr=0.005, steps=40, execution=execution))
        losses.append([value for _, value in series(home, run_id)["train/loss"]])
    assert np.abs(np.subtract(*losses)).max() < 1e-4


@every_run
def test_a_run_stopped_in_its_middle_ends_as_one_that_was_not(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    data = spec_data(small, method, lr=0.01, steps=20)
    whole, halted = finished(home, data), submit(home, data)
    stop(home, halted, 8, monkeypatch)
    go_on(home, halted)
    assert series(home, whole)["train/loss"] == series(home, halted)["train/loss"]
    models = []
    for run_id in (whole, halted):
        with opened(home, run_id) as run:
            models.append(weights(rebuild(run).model))
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_its_answers_take_time_that_no_merging_saves(home: Path, small: Path) -> None:
    spec, caches = make_plan(parse_spec(spec_data(small, RUNS["adapter"]))).spec, Caches()
    built = build(spec, caches)
    assert built.method.merged(built.model) is built.model
    found = latency.measure(built, encoded_splits(spec, built.setting, caches)["test"])
    assert found is not None
    assert "merged" not in found


def test_a_plan_counts_adapters_and_norms(home: Path, small: Path) -> None:
    data = spec_data(small, {"name": "adapter"}) | {"budget": {"params": 2_000}}
    plan = make_plan(parse_spec(data))
    width = plan.spec.method.settings["bottleneck"]
    assert plan.params.method == 4 * (2 * 32 * width + 32 + width) + 2 * 32 * 5
    assert plan.params.method <= 2_000 < plan.params.method + 4 * (2 * 32 + 1)
    outer = spec_data(small, {"name": "id3", "on": {"name": "adapter"}}) | {"budget": {"params": 777}}
    assert make_plan(parse_spec(outer)).params.method == 777
