"""Packs: several runs in one pass end as each would alone, and what befalls one reaches no other."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.errors import SpecError
from engine.jobs.fairness import company_of
from engine.methods.registry import methods
from engine.models.families import FAMILIES
from engine.plan import make_plan
from engine.spec import RunSpec, parse_spec
from engine.store.runs import Runs
from engine.tasks.encoding import Encoded
from engine.training.build import Caches
from engine.training.pack.batches import Flat, Tables
from engine.training.pack.steps import Pack
from engine.training.run import run_job, run_jobs
from tests.models.saved import CONFIGS, save_tiny, save_tokenizer
from tests.small import spec_data
from tests.training.test_run import StopAt, series

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PACKED = [name for name, (kind, _) in CONFIGS.items() if FAMILIES[kind].head_reads is not None]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def packed(home: Path, small: Path, method: dict[str, Any] | None = None, **train: Any) -> str:
    """An active run that is to share a pass; on a processor too, where the plan would not offer it."""
    given = {"device": DEVICE, "precision": "fp32", "lr": 0.005, "steps": 30, **train}
    model = given.pop("model", None)
    choice = {"name": "lora", "rank": 4} if method is None or "name" not in method else {}
    data = spec_data(small, choice | (method or {}), execution="padded", **given)
    plan = make_plan(parse_spec(data if model is None else data | {"model": model}))
    spec = plan.spec.model_copy(update={"train": plan.spec.train.model_copy(update={"execution": "packed"})})
    return Runs(home).submit(spec, plan.to_json(), owner="ada", slot="here", worker={"pid": 1})


def alone(home: Path, run_id: str) -> str:
    """The same run by itself, on padded batches."""
    runs = Runs(home)
    row = runs.get(run_id)
    spec = RunSpec.model_validate(row.spec | {"train": row.spec["train"] | {"execution": "padded"}})
    other = runs.submit(spec, row.plan, owner="ada", slot="here", worker={"pid": 1})
    assert run_job(home, other, Caches()) == "finished", runs.get(other).error
    return other


def losses(home: Path, run_id: str) -> list[float]:
    return [value for _, value in series(home, run_id)["train/loss"]]


def state(home: Path, run_id: str) -> str:
    return Runs(home).get(run_id).state


def test_runs_of_other_seeds_steps_rates_and_ranks_end_as_alone(home: Path, small: Path) -> None:
    ids = [
        packed(home, small, seed=1),
        packed(home, small, {"rank": 7, "alpha": 3.0}, seed=2, lr=0.01),
        packed(home, small, {"rank": 2}, seed=3, steps=19, warmup=0.3),
    ]
    run_jobs(home, ids, Caches())
    runs = Runs(home)
    for run_id in ids:
        row, other = runs.get(run_id), runs.get(alone(home, run_id))
        assert row.state == "finished", row.error
        assert row.summary is not None
        assert other.summary is not None
        assert (row.summary["company"], other.summary["company"]) == (3, 1)
        found, expected = series(home, run_id), series(home, other.id)
        for name in ("train/loss", "validation/loss", "lr", "train/accuracy", "validation/accuracy"):
            assert [step for step, _ in found[name]] == [step for step, _ in expected[name]], name
            apart = np.subtract([value for _, value in found[name]], [value for _, value in expected[name]])
            assert np.abs(apart).max() < 1e-4, name
        assert found["gradient/norm"][0][1] == pytest.approx(expected["gradient/norm"][0][1], rel=1e-5)
        ours, theirs = (load_file(runs.folder(name).result / "trained.safetensors") for name in (run_id, other.id))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], atol=2e-3) for key in ours)


@pytest.mark.parametrize("method", [None, {"name": "random_mask", "k": 2000}], ids=["lora", "random mask"])
@pytest.mark.parametrize("name", PACKED)
def test_every_family_whose_head_reads_a_single_token(
    home: Path, small: Path, tmp_path: Path, name: str, method: dict[str, Any] | None
) -> None:
    folder = save_tokenizer(save_tiny(name, tmp_path / "model"), "bert")
    ids = [packed(home, small, method, model=str(folder), seed=seed, steps=10) for seed in (1, 2)]
    run_jobs(home, ids, Caches())
    for run_id in ids:
        assert np.abs(np.subtract(losses(home, run_id), losses(home, alone(home, run_id)))).max() < 1e-4


@pytest.mark.parametrize("name", sorted(name for name, method in methods().items() if method.packs))
def test_every_method_that_packs_ends_as_alone(home: Path, small: Path, name: str) -> None:
    choice: dict[str, Any] = (
        {"name": name} if "k" not in methods()[name].Config.model_fields else {"name": name, "k": 90}
    )
    ids = [packed(home, small, choice, seed=1), packed(home, small, choice, seed=2, lr=0.02, steps=19)]
    run_jobs(home, ids, Caches())
    runs = Runs(home)
    for run_id in ids:
        row, other = runs.get(run_id), alone(home, run_id)
        assert row.state == "finished", row.error
        assert row.summary is not None
        assert row.summary["company"] == 2
        found, expected = series(home, run_id), series(home, other)
        assert found.keys() == expected.keys()
        for series_name in ("train/loss", "validation/loss", "validation/accuracy"):
            apart = np.subtract(
                [value for _, value in found[series_name]], [value for _, value in expected[series_name]]
            )
            assert np.abs(apart).max() < 1e-4, series_name
        ours, theirs = (load_file(runs.folder(key).result / "trained.safetensors") for key in (run_id, other))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            if key.endswith((".index", ".step")):
                assert torch.equal(tensor, theirs[key]), key
            else:
                assert torch.allclose(tensor, theirs[key], atol=2e-3), key


def test_the_same_company_gives_the_same_numbers(home: Path, small: Path) -> None:
    pairs = [[packed(home, small, seed=seed) for seed in (1, 2)] for _ in range(2)]
    for pair in pairs:
        run_jobs(home, pair, Caches())
    for one, two in zip(*pairs, strict=True):
        assert series(home, one) == series(home, two)


@pytest.mark.parametrize("seconds", [0.0, 100.0], ids=["read at once", "read late"])
def test_one_that_diverges_ends_alone_and_its_infinities_reach_nobody(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    good, bad = packed(home, small, seed=1), packed(home, small, seed=2, lr=1e12, steps=40)
    monkeypatch.setattr("engine.training.loop.FLUSH_SECONDS", seconds)
    run_jobs(home, [bad, good], Caches())
    assert (state(home, good), state(home, bad)) == ("finished", "diverged")
    assert np.abs(np.subtract(losses(home, good), losses(home, alone(home, good)))).max() < 1e-4


@pytest.mark.parametrize("method", [None, {"name": "random_mask", "k": 300}, {"name": "bitfit"}], ids=str)
def test_one_that_is_stopped_resumes_by_itself_and_the_others_go_on(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any] | None
) -> None:
    ids = [packed(home, small, method, seed=seed) for seed in (1, 2, 3)]
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.loop.FLUSH_SECONDS", 0.0)
        patch.setattr(
            "engine.training.job.RowControl",
            lambda runs, run_id: StopAt(runs, run_id, 11 if run_id == ids[1] else 10**6, "keep"),
        )
        run_jobs(home, ids, Caches())
    assert [state(home, run_id) for run_id in ids] == ["finished", "stopped", "finished"]
    runs = Runs(home)
    runs.resume(ids[1], "ada")
    runs.claim(ids[1], "here", {"pid": 1})
    assert run_job(home, ids[1], Caches()) == "finished", runs.get(ids[1]).error
    assert np.abs(np.subtract(losses(home, ids[1]), losses(home, alone(home, ids[1])))).max() < 1e-4


@pytest.mark.parametrize("method", [None, {"name": "random_mask", "k": 300}], ids=str)
def test_what_those_held_that_have_ended_is_let_go(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any] | None
) -> None:
    ids = [packed(home, small, method, seed=seed, steps=steps) for seed, steps in ((1, 4), (2, 6), (3, 9), (4, 20))]
    made: list[weakref.ref[Pack]] = []
    alive: list[int] = []
    init, step = Pack.__init__, Pack.step

    def count(pack: Pack, members: Any) -> None:
        init(pack, members)
        made.append(weakref.ref(pack))

    def look(pack: Pack) -> None:
        step(pack)
        gc.collect()
        alive.append(sum(one() is not None for one in made))

    monkeypatch.setattr(Pack, "__init__", count)
    monkeypatch.setattr(Pack, "step", look)
    run_jobs(home, ids, Caches())
    assert [state(home, run_id) for run_id in ids] == ["finished"] * 4
    assert len(made) == 3
    assert alive[-1] == 1


def test_an_error_of_one_is_its_own(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [packed(home, small, seed=seed) for seed in (1, 2)]
    write = Runs(home).folder(ids[0]).root

    def refuse(folder: Path, *given: Any) -> int:
        if folder == write:
            raise OSError(28, "No space left on device")
        return kept(folder, *given)

    from engine.training import result

    kept = result.write
    monkeypatch.setattr("engine.training.result.write", refuse)
    run_jobs(home, ids, Caches())
    rows = [Runs(home).get(run_id) for run_id in ids]
    assert [row.state for row in rows] == ["failed", "finished"]
    assert "disk is full" in str(rows[0].error)


@pytest.mark.parametrize("method", [None, {"name": "random_mask", "k": 300}, {"name": "bitfit"}], ids=str)
def test_when_the_common_pass_fails_each_goes_on_alone_from_where_it_was(
    home: Path, small: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any] | None
) -> None:
    ids = [packed(home, small, method, seed=seed) for seed in (1, 2)]
    step, count = Pack.step, 0

    def out_of_memory(pack: Pack) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise torch.OutOfMemoryError("no room")
        step(pack)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "step", out_of_memory)
        run_jobs(home, ids, Caches())
    runs = Runs(home)
    for run_id in ids:
        row = runs.get(run_id)
        assert (row.state, row.losses) == ("queued", 1)
        assert company_of(row, runs.list(states=["queued"]), [], {}, row.device) == []
        runs.claim(run_id, "here", {"pid": 1})
        assert run_job(home, run_id, Caches()) == "finished"
        assert np.abs(np.subtract(losses(home, run_id), losses(home, alone(home, run_id)))).max() < 1e-4


def test_who_shares_a_pass(home: Path, small: Path) -> None:
    """Runs that differ in what packs allow, every owner in turn; none that is another model's, batch's or method's."""
    runs = Runs(home)
    ids = {
        "first": packed(home, small),
        "seed": packed(home, small, seed=9),
        "rank": packed(home, small, {"rank": 2}, lr=0.1, steps=7, warmup=0.1),
        "batch": packed(home, small, batch_size=3),
        "targets": packed(home, small, {"targets": ["q"]}),
    }
    rows = {name: runs.get(run_id) for name, run_id in ids.items()}
    found = company_of(rows["first"], list(rows.values()), [], {}, rows["first"].device)
    assert [row.id for row in found] == [ids["seed"], ids["rank"]]


def test_the_plan_offers_it_on_a_gpu_and_to_those_alone_that_can(home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="it is for a GPU"):
        make_plan(parse_spec(spec_data(small, {"name": "lora"}, device="cpu", execution="packed")))
    packing = {name for name, method in methods().items() if method.packs}
    assert {"lora", "bitfit", "fish", "pafi"} <= packing
    assert packing.isdisjoint({"dora", "full", "id3", "tr_pts", "gmt", "spiel", "lt_sft", "lift", "mezo"})


@pytest.mark.parametrize("asked", ["all", "one"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
def test_attention_stays_within_each_text(asked: str, causal: bool, key_heads: int, device: str) -> None:
    lengths = torch.tensor([[3, 5, 1], [2, 2, 6]])
    flat = Flat(lengths.to(device), 12, 6, causal)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(24, heads, 8, generator=generator) for heads in (2, key_heads, key_heads))
    asking = q if asked == "all" else q[flat.read.cpu()]
    found = flat.attend(asking.to(device), k.to(device), v.to(device), 0.5).cpu()
    k, v = (rows.expand(-1, 2, -1) for rows in (k, v))
    starts = [0, 3, 8, 12, 14, 16]
    for text, (start, length) in enumerate(zip(starts, lengths.flatten().tolist(), strict=True)):
        own = slice(start, start + length)
        unseen = torch.ones(length, length).triu(1).bool() if causal else torch.zeros(length, length).bool()
        scores = 0.5 * torch.einsum("qhd,khd->hqk", q[own], k[own])
        shares = torch.softmax(scores.masked_fill(unseen, -torch.inf), -1)
        expected = torch.einsum("hqk,khd->qhd", shares, v[own])
        if asked == "all":
            torch.testing.assert_close(found[own], expected, atol=1e-6, rtol=1e-5)
        else:
            torch.testing.assert_close(found[text], expected[-1 if causal else 0], atol=1e-6, rtol=1e-5)
    assert bool(found.isfinite().all()), "padding too, or it would spoil what is summed over tokens"


def test_what_stands_behind_the_token_that_a_decoder_reads_is_left_out() -> None:
    texts = [[5, 6, 7], [5, 0, 7, 0, 0], [0, 0]]
    offsets = np.cumsum([0, *map(len, texts)])
    encoded = Encoded(np.concatenate(texts).astype(np.int32), offsets, None, np.zeros(3, np.int64), 8, 0)
    rows = torch.arange(3)[None]
    assert Tables(encoded, "cpu").lengths.tolist() == [3, 5, 2]
    tables = Tables(encoded, "cpu", causal=True)
    ids, _, flat, _ = tables.batch(rows, 7)
    assert tables.lengths.tolist() == [3, 3, 1]
    assert ids[:7].tolist() == [5, 6, 7, 5, 0, 7, 0]
    assert flat.read.tolist() == [2, 5, 6]


@on_a_gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_kernel_for_short_texts_is_exact(size: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 65, (5, 7), generator=generator)
    width = int(lengths.sum(1).max()) + 30
    flat = Flat(lengths.cuda(), width, 64, causal)
    rows = [torch.randn(5 * width, 3, size, generator=generator).cuda().requires_grad_() for _ in range(3)]
    given = torch.randn(5 * width, 3, size, generator=generator).cuda()
    torch.set_float32_matmul_precision("highest")
    results = []
    for flat._short in (True, False):
        found = flat.attend(*rows, 0.2)
        results.append([found, *torch.autograd.grad(found, rows, given)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)
