"""One run, many budgets: nested masks with the run's own values, measured, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import SpecError
from engine.export.budgets import budgets, until
from engine.export.finished import opened
from engine.export.rebuild import own_tensors, rebuild
from engine.sparse.delta import apply_delta, read_delta
from engine.store.runs import Runs
from engine.training.build import Caches, encoded_splits
from engine.training.evaluation import predict
from engine.training.result_file import read_result
from tests.export.conftest import Trained


@pytest.fixture
def home(trained: Trained, monkeypatch: pytest.MonkeyPatch, small: Path) -> Path:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(trained.home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", f"{small}:{trained.home}")
    return trained.home


@pytest.mark.parametrize("key", ["id3", "id3-on-lora"])
def test_the_whole_mask_has_the_runs_own_accuracy(home: Path, trained: Trained, key: str) -> None:
    found = budgets(home, trained.ids[key])
    sizes = [row["params"] for row in found["rows"]]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == {"id3": 300, "id3-on-lora": 60}[key]
    assert len(sizes) == 10
    summary = Runs(home).get(trained.ids[key]).summary
    assert summary is not None
    assert found["rows"][-1]["accuracy"] == summary["accuracy"]["test"]
    assert found["rows"][-1]["ci95"] == summary["accuracy"]["ci95"]
    assert found["rows"][-1]["step"] == 14


def test_each_size_is_a_delta_that_gives_what_was_measured(home: Path, trained: Trained, tmp_path: Path) -> None:
    run_id = trained.ids["id3"]
    found = budgets(home, run_id, folder=tmp_path)
    with opened(home, run_id) as finished:
        built = rebuild(finished, Caches())
        whole = own_tensors(read_result(finished.folder.result), 0)
    test = encoded_splits(built.spec, built.setting, Caches())["test"]
    for row in found["rows"][::4]:
        delta = read_delta(Path(row["file"]))
        assert delta.count == row["params"]
        fresh = built.base
        applied = apply_delta(fresh, delta, built.setting.source.sha256)
        right = int((predict(fresh, test, "cpu").argmax(1) == test.labels).sum())
        applied.revert()
        assert right == row["correct"]
        early = until(whole, row["step"])
        assert sum(t.numel() for name, t in early.items() if name.endswith(".index")) == row["params"]
        assert all(bool((t < row["step"]).all()) for name, t in early.items() if name.endswith(".step"))


def test_asking_changes_nothing(home: Path, trained: Trained) -> None:
    run_id = trained.ids["id3"]
    with opened(home, run_id) as finished:
        before = read_result(finished.folder.result).tensors
        budgets(home, run_id)
        after = read_result(finished.folder.result).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("key", ["pafi", "lora"])
def test_a_mask_of_one_size_is_refused(home: Path, trained: Trained, key: str) -> None:
    with pytest.raises(SpecError, match="one size only"):
        budgets(home, trained.ids[key])
