"""The decision plane against counts of gradients computed apart; and that looking changes no number."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from engine.methods._selective import Selective
from engine.plan import make_plan
from engine.probes.plane import PlaneProbe
from engine.probes.recorded import plane_of
from engine.sparse.plane import PlaneCounts, edges
from engine.spec import parse_spec
from engine.store.run_reader import RunReader
from engine.store.runs import Runs
from engine.tasks.order import batch_order
from engine.training.build import Built, Caches, build, encoded_splits
from engine.training.execution import EagerSteps
from engine.training.run import run_job
from tests.small import spec_data
from tests.training.test_run import series, submit

WEIGHTS, GRADIENTS = edges()
LR = 0.01


def histogram(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Counts by numpy, in float64 and with the bins' ends."""
    return np.histogram2d(np.abs(gradient), np.abs(weight), bins=(GRADIENTS, WEIGHTS))[0].astype(np.int64)


def scores(probe: PlaneProbe, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    line = probe.describe()["boundary"]
    return np.abs(gradient) ** line["power"] / (np.abs(weight) + line["eps"]) ** line["exp"]


class Taken:
    """A small run, step by step, with what each step's weights and gradients are, computed on a copy of the model."""

    def __init__(self, small: Path, method: dict[str, Any], steps: int = 6) -> None:
        spec = make_plan(parse_spec(spec_data(small, method, lr=LR, steps=steps, execution="padded"))).spec
        caches = Caches()
        self.built: Built = build(spec, caches)
        splits = encoded_splits(spec, self.built.setting, caches)
        if self.built.method.scores_first:
            singles = (
                {k: torch.as_tensor(v) for k, v in splits["train"].batch(np.array([i])).items()} for i in range(9)
            )
            self.built.method.score_pass(self.built.model, singles, lambda done, total: None)
        self._train = splits["train"]
        self._order = batch_order(len(self._train), 8, steps, spec.train.seed_of("data"))
        self.steps = EagerSteps(self.built, self._train, self._order)
        rows = self.built.method.trainables(self.built.setting.architecture, self.built.method.config)
        self.probe = PlaneProbe(self.built.method, rows, "cpu", sees=True)
        self.names = [row.name for row in rows]
        self.steps.show(self.probe)
        self.steps.start(0)

    def dense(self, step: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Weight and gradient of every tensor the method chooses from, at the weights before a step."""
        model = copy.deepcopy(self.built.model)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False
        tensors = [dict(model.named_parameters())[name] for name in self.names]
        for tensor in tensors:
            tensor.requires_grad_(True)
        batch = {k: torch.as_tensor(v) for k, v in self._train.batch(self._order[step]).items()}
        labels = batch.pop("labels")
        loss = functional.cross_entropy(model(**batch).logits.float(), labels)
        found = torch.autograd.grad(loss, tensors)
        return {
            name: (tensor.detach().numpy().ravel().copy(), gradient.numpy().ravel())
            for name, tensor, gradient in zip(self.names, tensors, found, strict=True)
        }

    def chosen(self) -> dict[str, np.ndarray]:
        """Selected flat positions by tensor."""
        selection = self.built.method.selection()
        assert selection is not None
        return {name: selection.index[selection.tensor == number] for number, name in enumerate(self.names)}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_bins_are_those_of_numpy():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(50_000, generator=draw) * torch.logspace(-9, 0, 50_000)
    gradient = torch.randn(50_000, generator=draw) * torch.logspace(0, -14, 50_000)[torch.randperm(50_000)]
    gradient[::7] = 0
    counts = PlaneCounts("cpu")
    before = weight.clone(), gradient.clone()
    counts.add(weight[:20_000], gradient[:20_000])
    counts.add(weight[20_000:], gradient[20_000:])
    inside = (weight.abs() < WEIGHTS[-1]) & (gradient.abs() < GRADIENTS[-1])
    assert inside.all()
    expected = histogram(weight.double().numpy(), gradient.double().numpy())
    # The square of a number beside an end may round onto it.
    assert np.abs(counts.table() - expected).sum() <= 2
    assert counts.table().sum() == expected.sum()
    assert torch.equal(weight, before[0])
    assert torch.equal(gradient, before[1])


@pytest.mark.parametrize("settings", [{}, {"p": 2.0, "exp": 3.0, "eps": 0.05}, {"exp": 0.0}, {"exp": -1.0}])
def test_id3s_plane_is_that_of_gradients_computed_apart(small, settings):
    run = Taken(small, {"name": "id3", "k": 300, **settings})
    rows = {row.name: row for row in run.built.method.rows}
    for step in range(4):
        dense, before = run.dense(step), run.chosen()
        run.probe.arm()
        run.steps.take(step)
        frame, after = run.probe.frame(), run.chosen()
        expected = {name: np.zeros((44, 48), np.int64) for name in ("rest", "chosen", "new")}
        passed, left = [], []
        for name, (weight, gradient) in dense.items():
            old, new = before[name], after[name][len(before[name]) :]
            others = np.ones(len(weight), bool)
            others[after[name]] = False
            for key, places in (("rest", np.flatnonzero(others)), ("chosen", old), ("new", new)):
                expected[key] += histogram(weight[places], gradient[places])
            found = scores(run.probe, weight, gradient)
            passed.append(found[new])
            left.append(found[others])
        for key, table in expected.items():
            # Another order of summing moves a gradient by its last bits, and now and then over the end of a bin.
            assert np.abs(frame[key] - table).sum() <= 6, key
        eligible = sum(row.eligible for row in rows.values())
        counted = sum(int(frame[key].sum()) for key in expected) + int(frame["off"].sum()) + int(frame["unseen"][0])
        assert counted == eligible
        assert frame["new"].sum() + frame["off"][2] == 50
        threshold = float(frame["threshold"][0])
        assert np.concatenate(passed).min() == pytest.approx(threshold, rel=1e-4)
        assert np.concatenate(left).max() <= threshold * (1 + 1e-4)


@pytest.mark.parametrize("name", ["fish", "speft", "magnitude"])
def test_a_static_masks_boundary_parts_chosen_from_others(small, name):
    run = Taken(small, {"name": name, "k": 400, **({} if name == "magnitude" else {"samples": 9})})
    about = run.probe.describe()
    assert about["threshold"] > 0
    first = run.probe.first()
    if name == "magnitude":
        assert first is None
        run.probe.arm()
        run.steps.take(0)
        first = run.probe.frame()
        edge, axis = 1 / about["threshold"] ** -1, 0
    else:
        edge, axis = about["threshold"], 1
        assert about["examples"] == 9
        assert about["squared"] == (name == "fish")
        assert first["chosen"].sum() + first["off"][1] == 400
    ends = WEIGHTS if axis == 0 else GRADIENTS
    rest, chosen = first["rest"].sum(axis=axis), first["chosen"].sum(axis=axis)
    place = int(np.searchsorted(ends, edge, side="right")) - 1
    assert rest[place + 1 :].sum() == 0, "nothing above the boundary is left out"
    assert chosen[:place].sum() == 0, "nothing below it is chosen"
    assert rest[:place].sum() > 0
    assert chosen[place:].sum() > 0


def test_pafis_boundary_is_a_vertical_line(small):
    run = Taken(small, {"name": "pafi", "k": 2_000})
    about = run.probe.describe()
    run.probe.arm()
    run.steps.take(0)
    frame = run.probe.frame()
    plane = plane_of({"plane": about}, 1, frame)
    x, y = plane.line()
    assert x[0] == x[1]
    assert y[0] < y[1]
    place = int(np.searchsorted(WEIGHTS, x[0], side="right")) - 1
    assert frame["rest"][:, :place].sum() == 0
    assert frame["chosen"][:, place + 1 :].sum() == 0
    assert frame["unseen"][0] > 0, "a tensor without any chosen weight has no gradient"


def test_gmt_shows_what_it_kept(small):
    run = Taken(small, {"name": "gmt", "k": 200, "scope": "global"})
    for step in range(2):
        dense = run.dense(step)
        run.probe.arm()
        run.steps.take(step)
        frame = run.probe.frame()
        assert frame["chosen"].sum() + frame["off"][1] == 200
        sizes = np.sort(np.concatenate([np.abs(gradient) for _, gradient in dense.values()]))[::-1]
        assert float(frame["threshold"][0]) == pytest.approx(sizes[199], rel=1e-4)
        assert frame["rest"].sum() + frame["off"][0] == len(sizes) - 200


def test_a_step_that_is_not_looked_at_costs_and_records_nothing(small):
    run = Taken(small, {"name": "id3", "k": 300})
    run.steps.take(0)
    assert run.probe.seconds == 0
    assert not run.probe.armed


@pytest.mark.parametrize("method", [{"name": "id3", "k": 300}, {"name": "fish", "k": 300}, {"name": "gmt", "k": 300}])
def test_looking_changes_no_number(home, small, monkeypatch, method):
    data = spec_data(small, method, lr=LR)
    watched, blind = submit(home, data), submit(home, data)
    assert run_job(home, watched, Caches()) == "finished"
    monkeypatch.setattr("engine.training.recorder.Recorder.watch", lambda *_: None)
    assert run_job(home, blind, Caches()) == "finished"
    assert series(home, watched) == series(home, blind)
    with RunReader(Runs(home).folder(watched).database) as reader:
        steps = [step for _, step in reader.frame_index("plane")]
        assert {1, 12} <= set(steps)
        assert (0 in steps) == (method["name"] == "fish")
    with RunReader(Runs(home).folder(blind).database) as reader:
        assert len(reader.frame_index("plane")) == (method["name"] == "fish")


def test_where_no_gradient_can_be_seen_the_record_says_so(home, small, monkeypatch):
    """As on a GPU whose steps are captured whole: only the choice before training is there."""
    made = PlaneProbe.__init__

    def blind(self: PlaneProbe, *given: Any, sees: bool) -> None:
        made(self, *given, sees=False)

    monkeypatch.setattr(PlaneProbe, "__init__", blind)
    run_id = submit(home, spec_data(small, {"name": "fish", "k": 300}, lr=LR))
    assert run_job(home, run_id, Caches()) == "finished"
    with RunReader(Runs(home).folder(run_id).database) as reader:
        assert reader.meta("plane")["sees"] is False
        assert [step for _, step in reader.frame_index("plane")] == [0]


def test_every_method_that_selects_weights_has_a_plane():
    from engine.methods.registry import methods

    assert all("plane" in cls.views for cls in methods().values() if issubclass(cls, Selective))
