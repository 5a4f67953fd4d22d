"""SPT and SPT-LoRA: what is sensitive, who gets LoRA, what it costs, and that nothing else moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from engine.errors import BudgetError, DataError, RunFailed, SpecError
from engine.export.finished import opened
from engine.export.formats import export_run
from engine.export.rebuild import rebuild
from engine.methods._beside import has_room, size_beside
from engine.methods.contract import Method
from engine.methods.fish import FishMask
from engine.methods.lora import LoRA
from engine.methods.mezo import MeZO
from engine.methods.pafi import PaFi
from engine.methods.spt import SPT
from engine.methods.spt_lora import Offer, SptLoRA, spend
from engine.sparse.delta import apply_delta, delta_of, read_delta, write_delta
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.test_added_modules import assert_changes_are_merged_minus_base, biased_bert, every_base, logits
from tests.small import spec_data
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama
from tests.training.test_run import go_on, series, stop, submit

STEPS = 10
EXAMPLES = [tiny_batch(1, length, seed=seed) for seed, length in enumerate((8, 5, 8, 3, 7, 6, 8, 4, 8))]
FEW = {"batches": 2, "batch_examples": 4}
MIXED = {**FEW, "k": 1500, "rank": 2, "matrix_ease": 4.0}
"""Settings with which every tiny model has some LoRA, some whole vectors and some single weights."""


def training(
    cls: type[Method], model: nn.Module, settings: dict[str, Any], *, seed: int = 0, weight_decay: float = 0.1
) -> Training:
    method = make(cls, model, settings, steps=STEPS, seed=seed, weight_decay=weight_decay)
    return Training(method, model, lr=5e-3, score_batches=EXAMPLES)


def chosen(method: Method) -> dict[str, set[int]]:
    """Flat positions of the selected entries, by tensor."""
    selection = method.selection()
    assert selection is not None
    found: dict[str, set[int]] = {}
    for tensor, index in zip(selection.tensor.tolist(), selection.index.tolist(), strict=True):
        found.setdefault(selection.parameters[tensor].name, set()).add(index)
    assert sum(map(len, found.values())) == len(selection.index)
    return found


def changed(model: nn.Module, base: dict[str, torch.Tensor]) -> dict[str, set[int]]:
    """Flat positions of what is not bit for bit as before, head apart."""
    now = weights(model)
    found = {name: set((now[name] != base[name]).flatten().nonzero().flatten().tolist()) for name in base}
    return {name: places for name, places in found.items() if places and not name.startswith(("classifier", "score"))}


def sensitivity(model: nn.Module, names: list[str], batch: int, count: int) -> dict[str, torch.Tensor]:
    """Squares of the gradient of each batch's mean loss, added up; the loss example by example, without padding."""
    named = dict(model.named_parameters())
    totals = {name: torch.zeros(named[name].numel()) for name in names}
    for start in range(0, min(len(EXAMPLES), batch * count), batch):
        part = EXAMPLES[start : start + batch][: batch * count - start]
        model.zero_grad()
        loss = torch.stack([model(**example).loss for example in part]).mean()
        loss.backward()
        for name in names:
            if (gradient := named[name].grad) is not None:
                totals[name] += gradient.flatten().square()
    model.zero_grad()
    return totals


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- SPT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "count"), [(4, 2), (4, 9), (1, 3), (32, 8)])
def test_the_mask_is_what_sorting_all_sensitivities_gives(batch: int, count: int) -> None:
    model = tiny_bert()
    method = training(SPT, model, {"k": 700, "batches": count, "batch_examples": batch}).method
    names = [row.name for row in method.trainables(method.context.architecture, method.config)]
    totals = sensitivity(tiny_bert(), names, batch, count)
    everything = torch.cat(list(totals.values()))
    found = torch.zeros(len(everything), dtype=torch.bool)
    offsets = dict(zip(names, [0, *torch.tensor([len(t) for t in totals.values()]).cumsum(0).tolist()], strict=False))
    for name, places in chosen(method).items():
        found[torch.tensor(sorted(places)) + offsets[name]] = True
    assert int(found.sum()) == 700
    assert everything[found].min() >= everything[~found].max() * (1 - 1e-4)
    assert not {"token", "position", "type"} & {row.role for row in method.rows}  # type: ignore[attr-defined]


def test_single_examples_and_all_tensors_make_it_fish() -> None:
    settings = {"k": 900, "batches": 9, "batch_examples": 1, "exclude": ()}
    assert chosen(training(SPT, tiny_bert(), settings).method) == chosen(
        training(FishMask, tiny_bert(), {"k": 900, "samples": 9}).method
    )
    apart = chosen(training(SPT, tiny_bert(), {**settings, "batches": 1, "batch_examples": 9}).method)
    assert apart != chosen(training(SPT, tiny_bert(), settings).method)


@pytest.mark.parametrize("base", [tiny_bert, tiny_llama])
def test_exactly_k_train_and_a_delta_is_the_trained_model(base: Any, tmp_path: Path) -> None:
    run = training(SPT, base(), {**FEW, "k": 333}).run(batches_of(STEPS))
    moved, mask = changed(run.model, weights(base())), chosen(run.method)
    assert sum(map(len, mask.values())) == 333
    assert moved
    assert all(places <= mask[name] for name, places in moved.items())
    assert run.method.optimizer_scalars() == 666
    head = {row.name: dict(run.model.named_parameters())[row.name] for row in run.method.context.architecture.head}
    metadata = {"method": "spt", "eligibility": "{}", "spec_hash": "s", "base_sha256": "b" * 64}
    write_delta(tmp_path / "d.safetensors", delta_of(run.method.result(), head, metadata))
    fresh = base()
    apply_delta(fresh, read_delta(tmp_path / "d.safetensors"), "b" * 64)
    assert_same_weights(fresh, run.model)


@pytest.mark.parametrize("at", [1, 6])
def test_spt_resumes_bit_for_bit(at: int) -> None:
    settings = {**FEW, "k": 333}
    straight = training(SPT, tiny_bert(), settings).run(batches_of(STEPS))
    state = training(SPT, tiny_bert(), settings).run(batches_of(STEPS)[:at]).state()
    resumed = training(SPT, tiny_bert(), settings).load(state).run(batches_of(STEPS)[at:])
    assert resumed.losses == straight.losses[at:]
    assert_same_weights(resumed.model, straight.model)


def test_spt_on_lora_trains_some_of_its_weights() -> None:
    model = tiny_bert()
    inner = make(LoRA, model, {"rank": 4}, steps=STEPS)
    run = Training(make(SPT, model, {**FEW, "k": 60}, steps=STEPS, on=inner), model, score_batches=EXAMPLES, lr=1e-2)
    before = weights(run.model)
    run.run(batches_of(STEPS))
    moved = changed(run.model, before)
    assert 0 < sum(map(len, moved.values())) <= 60
    assert all(".lora_B." in name for name in moved), "while B is zero, A has no gradient"
    warned = SPT.warnings(run.method.context.architecture, run.method.config, STEPS)
    assert any("A has no gradient" in text for text in warned)


def test_what_was_seen_is_told() -> None:
    choice = training(SPT, biased_bert(), {**FEW, "k": 50}).method.choice()
    assert choice is not None
    assert (choice.examples, choice.squared) == (2, True)
    assert int(choice.chosen.sum()) == 50
    assert choice.threshold is not None
    assert choice.threshold > 0


@pytest.mark.parametrize("cls", [SPT, SptLoRA])
def test_bad_input_is_said_in_words(cls: type[Any]) -> None:
    model = tiny_bert()
    method = make(cls, model, FEW)
    attached = method.attach(model)
    with pytest.raises(DataError, match="no training example"):
        method.score_pass(attached, [], lambda done, total: None)
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.0.output.dense.weight").fill_(float("nan"))
    with pytest.raises(RunFailed, match="not finite"):
        method.score_pass(attached, EXAMPLES, lambda done, total: None)
    architecture = architecture_of(model)
    most = cls.size(architecture, cls.Config(k=10**9))
    assert cls.size(architecture, cls.fit(architecture, cls.Config(), most)) == most
    assert cls.size(architecture, cls.fit(architecture, cls.Config(), most + 1)) == most, "there is no more"
    with pytest.raises(BudgetError, match="selects no weight"):
        cls.fit(architecture, cls.Config(), 0)
    assert cls.warnings(architecture, cls.Config(k=10**9), 10)


# --- SPT-LoRA: who gets what ------------------------------------------------------------------------


def configuration(
    totals: dict[str, torch.Tensor], rows: dict[str, Any], sensitive: int, config: Any
) -> tuple[int, set[str], dict[str, set[int]]]:
    """The authors' rule for so many sensitive weights: what trains, the matrices with LoRA, the single weights."""
    everything = torch.cat(list(totals.values()))
    mask = torch.zeros(len(everything), dtype=torch.bool)
    mask[everything.argsort(descending=True, stable=True)[:sensitive]] = True
    count, adapted, single = 0, set(), {}
    for (name, total), part in zip(totals.items(), mask.split([len(t) for t in totals.values()]), strict=True):
        row, found = rows[name], int(part.sum())
        if len(row.shape) == 1 and found >= len(total) / config.vector_ease:
            part = torch.ones(len(total), dtype=torch.bool)
        elif len(row.shape) == 2 and found >= config.rank * sum(row.shape) / config.matrix_ease:
            adapted.add(name)
            count += config.rank * sum(row.shape)
            continue
        count += int(part.sum())
        if part.any():
            single[name] = set(part.nonzero().flatten().tolist())
    return count, adapted, single


@every_base
@pytest.mark.parametrize("sensitive", [1, 40, 150, 400, 900])
def test_it_is_the_authors_configuration_where_that_meets_the_budget(build: Any, sensitive: int) -> None:
    settings = {"rank": 2, "matrix_ease": 4.0, "vector_ease": 5.0, **FEW}
    probe: Any = make(SptLoRA, build(), settings)
    rows = {row.name: row for row in probe.rows}
    model = build()
    totals: dict[str, torch.Tensor] = {}
    original = SptLoRA.choose_by

    class Told(SptLoRA):  # the very sums it saw, so that rounding cannot order them otherwise
        def choose_by(self, sums: list[torch.Tensor]) -> None:
            totals.update(zip(rows, (total.clone() for total in sums), strict=True))
            count, *_ = configuration(totals, rows, sensitive, self.config)
            self.k = count
            original(self, sums)

    method: Any = training(Told, model, settings).method
    count, adapted, single = configuration(totals, rows, sensitive, method.config)
    assert set(method.beside.rows) == adapted
    assert chosen(method) == single
    assert method.kept() == count
    plain = sensitivity(build(), list(rows), 4, 2)
    for name, total in totals.items():
        torch.testing.assert_close(total, plain[name], rtol=1e-3, atol=1e-9)
    if sensitive == 900:
        assert adapted, "the oracle has seen a module"


@pytest.mark.parametrize("k", [1, 17, 100, 300, 640, 1000, 2222, 5000, 10**9])
def test_the_budget_is_never_passed_and_what_trains_is_counted(k: int) -> None:
    run = training(SptLoRA, tiny_bert(), {**MIXED, "k": k}, weight_decay=0.0)
    method: Any = run.method
    config, architecture = method.config, method.context.architecture
    thin = sum(size_beside(row, 2) for row in method.beside.rows.values())
    singles = sum(map(len, chosen(method).values()))
    assert method.kept() == thin + singles <= SptLoRA.size(architecture, config) <= k
    assert method.kept() == min(k, SptLoRA.eligible(architecture, config)), "single weights fill what modules leave"
    free = sum(p.numel() for name, p in run.model.named_parameters() if p.requires_grad and ".lora_" in name)
    assert free == thin
    run.run(batches_of(2))
    assert method.optimizer_scalars() == 2 * method.kept()


def test_a_walk_down_the_ranking_by_hand() -> None:
    # Two tensors: the first trains otherwise at 2 sensitive weights for 10, the second never.
    offers = [Offer(2, 10), Offer(99, 99)]
    assert spend([0, 1, 0, 1, 0], offers, 12) == ([1, 3], [0])
    assert spend([0, 1, 0, 1, 0], offers, 11) == ([1], [0])
    assert spend([0, 1, 0, 1, 0], offers, 10) == ([0, 1, 3], []), "the rest cannot pay for it: it keeps its one weight"
    assert spend([0, 1, 0, 1, 0], offers, 1) == ([0], [])
    assert spend([0], [Offer(1, 4)], 4) == ([], [0])
    assert spend([], offers, 5) == ([], [])


def test_thresholds_follow_alpha_and_beta() -> None:
    modules, vectors = [], []
    for ease in (1.0, 10.0):
        method: Any = training(SptLoRA, tiny_bert(), {**MIXED, "k": 1000, "matrix_ease": ease}).method
        modules.append(len(method.beside.rows))
    for ease in (1.0, 32.0):
        method = training(SptLoRA, tiny_bert(), {**MIXED, "k": 300, "vector_ease": ease}).method
        rows = {row.name: row for row in method.rows}
        vectors.append(sum(len(rows[n].shape) == 1 and len(p) == rows[n].size for n, p in chosen(method).items()))
    assert modules[0] < modules[1]
    assert vectors[0] < vectors[1]


def test_what_a_tensor_needs_is_exact_at_the_threshold() -> None:
    settings = {"rank": 2, "matrix_ease": 4.0, "vector_ease": 5.0, "exclude": ()}
    method: Any = make(SptLoRA, tiny_bert(), settings)
    offers = {(row.role, row.part): method.offer(row) for row in method.rows}
    assert offers["q", "weight"] == Offer(32, 128), "2 * (32 + 32), a quarter of it"
    assert offers["up", "weight"] == Offer(48, 192)
    assert offers["pooler", "weight"] == Offer(32, 128)
    assert offers["q", "bias"] == Offer(7, 32), "a fifth of 32, rounded up"
    assert offers["token", "weight"].need > 100 * 32, "embeddings train weight by weight"


def test_a_budget_below_one_module_is_spt_bit_for_bit() -> None:
    """With beta 1 a vector trains whole only when all of it is sensitive."""
    settings = {**FEW, "k": 100}
    ours = training(SptLoRA, tiny_bert(), {**settings, "rank": 2, "matrix_ease": 1.0, "vector_ease": 1.0})
    plain = training(SPT, tiny_bert(), settings)
    assert chosen(ours.method) == chosen(plain.method)
    assert ours.run(batches_of(STEPS)).losses == plain.run(batches_of(STEPS)).losses
    assert_same_weights(ours.model, plain.model)
    architecture = architecture_of(tiny_bert())
    assert any("single weights only" in text for text in SptLoRA.warnings(architecture, SptLoRA.Config(k=100), 10))


def test_a_matrix_not_larger_than_its_lora_trains_single_weights() -> None:
    settings = {**FEW, "k": 4000, "rank": 16}  # 16 * (32 + 32) is all of a matrix of attention
    method: Any = training(SptLoRA, tiny_bert(), settings).method
    assert {row.role for row in method.beside.rows.values()} <= {"up", "down"}
    narrow = {row.name for row in method.rows if row.shape == (32, 32)}
    assert not any(has_room(row, 16) for row in method.rows if row.name in narrow)
    assert narrow & set(chosen(method))
    architecture = method.context.architecture
    assert SptLoRA.size(architecture, SptLoRA.Config(rank=64, k=10**9)) == sum(row.size for row in method.rows)
    assert any("No matrix here" in text for text in SptLoRA.warnings(architecture, SptLoRA.Config(rank=64), 10))


# --- SPT-LoRA: how it trains ------------------------------------------------------------------------


@every_base
def test_there_are_all_three_and_only_they_move(build: Any) -> None:
    base = weights(build())
    run = training(SptLoRA, build(), MIXED)
    method: Any = run.method
    assert torch.equal(logits(run.model), logits(build())), "it starts at the base, bit for bit"
    run.run(batches_of(STEPS))
    rows = {row.name: row for row in method.rows}
    mask = chosen(method)
    assert method.beside.rows
    assert any(len(rows[name].shape) == 2 for name in mask)
    assert any(len(rows[name].shape) == 1 and len(places) == rows[name].size for name, places in mask.items())
    assert not set(method.beside.rows) & set(mask)
    moved = changed(run.model, base)
    assert set(moved) & set(mask)
    assert all(places <= mask.get(name, set()) for name, places in moved.items())
    for name, tensor in method.beside.tensors.items():
        assert tensor.detach().any(), name


@every_base
def test_merged_is_a_plain_model_that_answers_alike(build: Any, tmp_path: Path) -> None:
    run = training(SptLoRA, build(), MIXED).run(batches_of(STEPS))
    before = logits(run.model)
    merged: Any = run.method.merged(run.model)
    assert list(weights(merged)) == list(weights(build()))
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=2e-6)
    assert torch.equal(logits(run.model), before), "the trained model stays as it is"
    reported = assert_changes_are_merged_minus_base(run, weights(build()))
    assert set(run.method.beside.rows) <= reported  # type: ignore[attr-defined]
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(merged))


def test_its_modules_learn_as_lora_does() -> None:
    """Nothing but modules, from the same A, beside frozen vectors: peft's LoRA with scale 1."""
    exclude = ("token", "position", "type", "norm", "bias", "pooler")
    how: dict[str, Any] = {"steps": STEPS, "weight_decay": 0.1, "clip": 0.3}
    model = tiny_bert()
    own = make(SptLoRA, model, {**FEW, "k": 10**6, "rank": 4, "matrix_ease": 1e6, "exclude": exclude}, **how)
    ours = Training(own, model, lr=5e-3, score_batches=EXAMPLES)
    model = tiny_bert()
    lora: Any = make(LoRA, model, {"rank": 4, "alpha": 4.0, "targets": ("q", "k", "v", "o", "up", "down")}, **how)
    theirs = Training(lora, model, lr=5e-3)
    method: Any = ours.method
    assert set(method.beside.rows) == {row.name for row in architecture_of(tiny_bert()).linears()}
    assert not chosen(method)
    with torch.no_grad():
        for name, tensor in lora.parameters():
            tensor.copy_(method.beside.tensors[name.replace(".default.weight", "")])
    ours.run(batches_of(STEPS))
    theirs.run(batches_of(STEPS))
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(theirs.losses), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(ours.norms), torch.tensor(theirs.norms), rtol=1e-5, atol=1e-7)
    assert min(ours.norms) < 0.3 < max(ours.norms), "some steps are clipped and some are not"
    assert method.gradient_square() == 0, "gradients are dropped with the step"


def test_a_start_depends_on_its_seed_and_not_on_who_else_has_lora() -> None:
    def starts(k: int, seed: int) -> dict[str, torch.Tensor]:
        model = tiny_bert()
        torch.manual_seed(k)
        before = torch.get_rng_state()
        method: Any = training(SptLoRA, model, {**MIXED, "k": k}, seed=seed).method
        assert torch.equal(torch.get_rng_state(), before)
        return {name: tensor.detach().clone() for name, tensor in method.beside.tensors.items()}

    few, many, other = starts(1000, 1), starts(3000, 1), starts(3000, 2)
    assert set(few) < set(many)
    assert all(torch.equal(few[name], many[name]) for name in few)
    assert all(not many[name].any() for name in many if name.endswith("lora_B"))
    for name in many:
        if name.endswith("lora_A"):
            bound = 1 / math.sqrt(many[name].shape[1])
            assert 0.8 * bound < float(many[name].abs().max()) <= bound
            assert not torch.equal(many[name], other[name])


@every_base
@pytest.mark.parametrize("at", [0, 1, 6])
def test_spt_lora_resumes_bit_for_bit(build: Any, at: int) -> None:
    straight = training(SptLoRA, build(), MIXED).run(batches_of(STEPS))
    state = training(SptLoRA, build(), MIXED).run(batches_of(STEPS)[:at]).state()
    for scored in (True, False):
        model = build()
        method = make(SptLoRA, model, MIXED, steps=STEPS, weight_decay=0.1)
        if not scored:  # a resumed run is not scored again
            method.scores_first = False  # type: ignore[misc]
        resumed = Training(method, model, lr=5e-3, score_batches=EXAMPLES).load(state).run(batches_of(STEPS)[at:])
        assert resumed.losses == straight.losses[at:]
        assert_same_weights(resumed.model, straight.model)
        assert method.kept() == straight.method.kept()


@every_base
def test_a_result_goes_into_a_fresh_model(build: Any) -> None:
    run = training(SptLoRA, build(), MIXED).run(batches_of(STEPS))
    model = build()
    method = make(SptLoRA, model, MIXED, steps=STEPS)
    method.attach(model)
    method.install(run.method.result())
    with torch.no_grad():
        for row in method.context.architecture.head:
            model.get_parameter(row.name).copy_(run.model.get_parameter(row.name))
    assert torch.equal(logits(model), logits(run.model))


def test_half_precision_trains_too() -> None:
    run = training(SptLoRA, tiny_bert().to(torch.bfloat16), MIXED).run(batches_of(3))
    assert all(math.isfinite(loss) for loss in run.losses)
    assert {tensor.dtype for tensor in run.method.beside.tensors.values()} == {torch.bfloat16}  # type: ignore[attr-defined]


def test_nothing_stands_on_it_nor_it_on_anything() -> None:
    assert not SptLoRA.composes
    for outer in (PaFi, MeZO):
        with pytest.raises(SpecError, match="cannot stand on"):
            make(outer, tiny_bert(), on=make(SptLoRA, tiny_bert()))


@pytest.mark.parametrize("execution", ["padded", "ragged"])
def test_a_run_stopped_in_its_middle_ends_as_one_that_was_not(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    """From spec to merged model, through the checkpoint on disk."""
    method = {"name": "spt_lora", **{key: value for key, value in MIXED.items() if key != "k"}}
    data = {**spec_data(small, method, lr=0.01, steps=20, execution=execution), "budget": {"params": 1500}}
    whole, halted = submit(home, data), submit(home, data)
    assert run_job(home, whole, Caches()) == "finished", Runs(home).get(whole).error
    stop(home, halted, 7, monkeypatch)
    go_on(home, halted)
    assert series(home, whole)["train/loss"] == series(home, halted)["train/loss"]
    folders = [export_run(home, run, "merged", tmp_path / run) for run in (whole, halted)]
    first, second = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders)
    assert torch.equal(logits(first), logits(second))
    summary = Runs(home).get(whole).summary
    assert summary is not None
    assert 0 < summary["params"]["method"] <= 1500
    assert summary["optimizer_state_scalars"] == 2 * summary["params"]["method"]
    with opened(home, whole) as finished:
        torch.testing.assert_close(logits(first), logits(rebuild(finished).model), rtol=0, atol=2e-6)
