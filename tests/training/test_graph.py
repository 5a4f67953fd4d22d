"""CUDA graphs: the numbers of eager steps, the same ones every time, also after a resume. Most need a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.methods.registry import methods
from engine.models.families import FAMILIES
from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.tasks.encoding import Encoded
from engine.training.build import Caches, build
from engine.training.graph import Examples
from engine.training.run import run_job
from tests.models.saved import CONFIGS, save_tiny, save_tokenizer
from tests.small import spec_data
from tests.training.test_run import go_on, series, settings_of, stop, submit

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BELOW = ({"name": "lora", "rank": 4}, {"name": "adapter", "bottleneck": 4})
STACKED = [{"name": name, "k": 60, "on": below} for name in ("id3", "pafi") for below in BELOW]
EVERY = [settings_of(name, 300) for name, method in sorted(methods().items()) if method.captured]
CHOOSES_ANEW = ("id3", "gmt", "spiel")
"""Which weights these take may turn on the last bit of a gradient."""


def on_gpu(small: Path, method: dict[str, Any], **train: Any) -> dict[str, Any]:
    return spec_data(small, method, device="cuda", precision="fp32", lr=0.005, **{"steps": 50, **train})


def finished(home: Path, data: dict[str, Any]) -> str:
    run_id = submit(home, data)
    assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
    return run_id


@on_a_gpu
@pytest.mark.parametrize(
    "method", [*EVERY, *STACKED], ids=lambda m: m["name"] + (f"-on-{m['on']['name']}" if "on" in m else "")
)
def test_losses_are_those_of_eager_steps(home: Path, small: Path, method: dict[str, Any]) -> None:
    assert make_plan(parse_spec(on_gpu(small, method))).spec.train.execution == "graph"
    eager, graph = (finished(home, on_gpu(small, method, execution=how)) for how in ("padded", "graph"))
    one, two = ([value for _, value in series(home, run)["train/loss"]] for run in (eager, graph))
    norms = [[value for _, value in series(home, run)["gradient/norm"]] for run in (eager, graph)]
    assert norms[1][0] == pytest.approx(norms[0][0], rel=1e-5), "the first step's gradients"
    apart = 1e-2 if method["name"] in CHOOSES_ANEW else 1e-4
    assert np.abs(np.subtract(one, two)).max() < apart


@on_a_gpu
@pytest.mark.parametrize("name", [name for name, (kind, _) in CONFIGS.items() if FAMILIES[kind].captured])
def test_every_kind_of_model_can_be_captured(home: Path, small: Path, tmp_path: Path, name: str) -> None:
    folder = save_tokenizer(save_tiny(name, tmp_path / "model"), "bert")
    losses = []
    for how in ("padded", "auto"):
        data = on_gpu(small, {"name": "bitfit" if CONFIGS[name][0] == "bert" else "full"}, execution=how, steps=20)
        losses.append([value for _, value in series(home, finished(home, data | {"model": str(folder)}))["train/loss"]])
    assert np.abs(np.subtract(*losses)).max() < 1e-4


@on_a_gpu
@pytest.mark.parametrize("method", ["full", "lora", "adalora", "pafi", "id3"])
def test_the_same_numbers_twice_and_after_a_resume(
    home: Path, small: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = on_gpu(small, settings_of(method, 300))
    straight, again, stopped = finished(home, data), finished(home, data), submit(home, data)
    assert series(home, again) == series(home, straight)
    stop(home, stopped, 21, monkeypatch)
    go_on(home, stopped)
    runs = Runs(home)
    assert series(home, stopped) == series(home, straight)
    ours, theirs = (load_file(runs.folder(run).result / "trained.safetensors") for run in (stopped, straight))
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_the_tables_give_the_batches_padded_to_a_bucket() -> None:
    """What a replay reads, from nothing but a counter."""
    lengths = np.array([3, 9, 5, 12, 1, 7])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    encoded = Encoded(tokens, offsets, (tokens % 2).astype(np.uint8), np.arange(6), max_length=13, pad_id=99)
    order = np.array([[0, 2, 4], [1, 3, 5]])
    tables = Examples(encoded, order, "cpu")
    assert [tables.length(step) for step in (0, 1)] == [8, 13], "the next multiple, or the most there can be"
    for step, chosen in enumerate(order):
        batch, labels = tables.batch(torch.tensor([step]), tables.length(step))
        plain = encoded.batch(chosen)
        longest = plain["input_ids"].shape[1]
        assert labels.tolist() == plain.pop("labels").tolist()
        assert set(batch) == set(plain)
        for key, table in plain.items():
            assert np.array_equal(batch[key][:, :longest].numpy(), table), key
            beyond = 99 if key == "input_ids" else 0
            assert bool((batch[key][:, longest:] == beyond).all()), key


@pytest.mark.parametrize("method", [m for m in EVERY if methods()[m["name"]].captured == "gradients"], ids=str)
def test_no_gradient_is_computed_that_a_replay_would_lose(home: Path, small: Path, method: dict[str, Any]) -> None:
    """Of a step whose forward and backward pass alone are captured, the gradients asked for are what is kept."""
    built = build(make_plan(parse_spec(spec_data(small, method))).spec, Caches())
    offered = [p for _, p in [*built.dense, *built.method.streamed(), *built.method.ranked()]]
    wanted = [name for name, p in built.model.named_parameters() if p.requires_grad]
    names = {id(p): name for name, p in built.model.named_parameters()}
    assert sorted(names[id(parameter)] for parameter in offered) == sorted(wanted)
