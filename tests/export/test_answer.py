"""The base model and finished runs answer one text side by side."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import softmax

from engine.answer import KEPT, Caches, answer, answer_request
from engine.errors import EngineError, SpecError, UnknownName
from engine.plan import make_plan, read_setting
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches as TrainingCaches
from engine.training.run import run_job
from tests.export.conftest import Trained
from tests.small import sentences, write_model


@pytest.fixture(autouse=True)
def _in_force(trained: Trained, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(trained.home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(tmp_path)]))


@pytest.mark.parametrize("key", ["full", "id3", "lora", "adalora", "id3-on-lora"])
def test_a_run_answers_a_test_example_as_it_did_when_trained(trained: Trained, key: str) -> None:
    run_id = trained.ids[key]
    runs = Runs(trained.home)
    text = read_setting(parse_spec(runs.get(run_id).spec)).dataset.splits["test"].texts[3]
    logits = load_file(runs.folder(run_id).result / "test.safetensors")["logits"][3]
    base, run = answer(trained.home, [run_id], text)["answers"]
    np.testing.assert_allclose(run["probabilities"], softmax(logits.astype(np.float64)), atol=1e-5)
    assert (base["run"], run["run"]) == (None, run_id)
    assert run["labels"] == ["bad", "good"]
    assert run["predicted"] == run["labels"][int(np.argmax(logits))]
    assert run["accuracy"] == runs.get(run_id).summary["accuracy"]["test"]
    assert base["probabilities"] != run["probabilities"], "training changed the answer"
    assert sum(base["probabilities"]) == pytest.approx(1)


def test_runs_share_the_base_they_share(trained: Trained) -> None:
    found = answer(trained.home, [trained.ids["full"], trained.ids["lora"]], "a warm film")
    assert [entry["run"] for entry in found["answers"]] == [None, trained.ids["full"], trained.ids["lora"]]
    assert "before training" in found["answers"][0]["title"]
    assert "LoRA, seed 0" in found["answers"][2]["title"]
    assert all(entry["milliseconds"] > 0 for entry in found["answers"])


def test_a_warm_answer_is_the_cold_one(trained: Trained) -> None:
    caches = Caches()
    ids = list(trained.ids.values())
    cold = {run_id: answer(trained.home, [run_id], "dull and flat")["answers"][1] for run_id in ids}
    for run_id in [*ids, *reversed(ids)]:
        warm = answer(trained.home, [run_id], "dull and flat", None, caches)["answers"][1]
        assert warm["probabilities"] == cold[run_id]["probabilities"]
        assert len(caches.runs) <= KEPT


def test_a_long_text_is_cut_and_says_so(trained: Trained) -> None:
    run_id = trained.ids["full"]
    assert answer(trained.home, [run_id], "the film " * 40)["answers"][0]["truncated"]
    assert not answer(trained.home, [run_id], "the film")["answers"][0]["truncated"]


def test_text_that_looks_like_html_is_only_text(trained: Trained) -> None:
    text = "<script>alert('film')</script>"
    assert answer(trained.home, [trained.ids["full"]], text)["text"] == text


def test_bad_questions_say_what_is_wrong(trained: Trained) -> None:
    run_id = trained.ids["full"]
    with pytest.raises(SpecError, match="no run"):
        answer(trained.home, [], "film")
    with pytest.raises(SpecError, match="no text"):
        answer(trained.home, [run_id], "  ")
    with pytest.raises(SpecError, match="single sentences"):
        answer(trained.home, [run_id], "film", "plot")
    with pytest.raises(SpecError, match="characters"):
        answer(trained.home, [run_id], "x" * 30_000)
    with pytest.raises(EngineError, match="no trained result"):
        answer(trained.home, [trained.stopped], "film")
    with pytest.raises(UnknownName):
        answer(trained.home, ["20260101-000000-full-abcd"], "film")


def test_a_run_on_pairs_wants_a_pair(trained: Trained, tmp_path: Path) -> None:
    lines = ["one\ttwo\tlabel", *(f"{text}\tthe {text}\t{label}" for text, label in sentences(60))]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {
        "model": str(write_model(tmp_path / "model")),
        "dataset": {"source": str(tmp_path / "pairs.tsv"), "text": "one", "pair": "two", "label": "label"},
        "method": "bitfit",
        "train": {"steps": 2, "batch_size": 4, "max_length": 16, "device": "cpu", "threads": 1},
    }
    plan = make_plan(parse_spec(data))
    home = tmp_path / "home"
    run_id = Runs(home).submit(plan.spec, plan.to_json(), owner="test", slot="here", worker={"pid": 0})
    assert run_job(home, run_id, TrainingCaches()) == "finished", Runs(home).get(run_id).error
    with pytest.raises(SpecError, match="second sentence"):
        answer(home, [run_id], "the film")
    one, other = (answer(home, [run_id], "the film", pair)["answers"][1] for pair in ("warm", "dull plot"))
    assert one["probabilities"] != other["probabilities"]


def test_the_answering_process_tries_and_exports(trained: Trained) -> None:
    caches, run_id = Caches(), trained.ids["lora"]
    found = answer_request(trained.home, "try", {"runs": [run_id], "text": "a warm film"}, caches)
    assert found == answer_request(trained.home, "try", {"runs": [run_id], "text": "a warm film"}, caches) | {
        "answers": found["answers"]
    }
    written = answer_request(trained.home, "export", {"run": run_id, "format": "peft"}, caches)
    assert Path(written["path"]).suffix == ".zip"
    assert Path(written["path"]).is_file()
    with pytest.raises(SpecError, match="not answered"):
        answer_request(trained.home, "sing", {}, caches)
