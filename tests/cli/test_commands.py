"""Every command that needs no engine: readable text, one JSON document with --json, and errors in both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.methods.registry import methods
from engine.settings import PROJECT
from tests.cli.conftest import Stock, call, write_spec
from tests.small import spec_data

SUMMARY = {
    "run": str,
    "status": str,
    "method": str,
    "params": dict,
    "accuracy": dict,
    "seconds": float,
    "steps_per_second": float,
    "peak_memory_bytes": int,
    "optimizer_state_scalars": int,
}


def test_run_prints_the_promised_summary_on_its_last_line(stock: Stock) -> None:
    assert stock.lora.status == 0, stock.lora.err
    summary = stock.lora.last
    assert {name: type(summary[name]) for name in SUMMARY} == SUMMARY
    assert summary["status"] == "finished"
    assert summary["method"] == "lora"
    assert summary["params"] == {"requested": 700, "method": 640, "head": 66, "total": 706}
    accuracy = summary["accuracy"]
    low, high = accuracy["ci95"]
    assert 0 <= low <= accuracy["test"] <= high <= 1
    assert 0 <= accuracy["validation"] <= 1
    assert summary["optimizer_state_scalars"] == 2 * 640
    assert summary["head_optimizer_scalars"] == 2 * 66
    assert 10**8 < summary["peak_memory_bytes"] < 10**10
    assert summary["steps_per_second"] > 0


def test_run_with_json_prints_nothing_but_the_summary(stock: Stock) -> None:
    assert stock.id3.json["run"] == stock.id3_id
    assert stock.id3.json["params"]["requested"] is None
    assert stock.id3.json["optimizer_state_scalars"] == 2 * 301


LOOKING: dict[str, tuple[list[str], str]] = {
    "methods": (["methods"], "AdaLoRA"),
    "one method": (["methods", "id3"], "### When it fails"),
    "models": (["models"], "minilm-l6"),
    "datasets": (["datasets"], "rotten_tomatoes"),
    "a file": (["datasets", "DATA"], "sentence"),
    "plan": (["plan", "SPEC"], "trains    512 by the method + head 66"),
    "runs": (["runs"], "finished"),
    "runs in a state": (["runs", "--state", "failed"], "none"),
    "show": (["show", "ID3"], "k: 301"),
    "the newest": (["show", "last"], "finished"),
    "try": (["try", "LORA", "ID3", "--text", "the film was bright"], "model, before training"),
    "overlap": (["overlap", "ID3", "ID3"], "share 301 of 301 (100.0 %)"),
    "budgets": (["budgets", "ID3"], "301"),
    "ages": (["ages", "ID3"], "median change"),
    "divergence": (["divergence", "--k", "50", "--examples", "2"], "by the diagonal"),
    "prune": (["prune"], "would delete"),
    "doctor": (["doctor"], "model minilm-l6"),
    "prompt": (["prompt", "--task", "sums", "--shots", "0,2"], "always the same answer: 10.0 %"),
}


def filled(words: list[str], stock: Stock, small: Path) -> list[str]:
    named = {"SPEC": str(stock.spec), "DATA": str(small / "data.tsv"), "LORA": stock.lora_id, "ID3": stock.id3_id}
    return [named.get(word, word) for word in words]


@pytest.mark.parametrize(("words", "shown"), LOOKING.values(), ids=list(LOOKING))
def test_commands_print_text_and_json(stock: Stock, small: Path, words: list[str], shown: str) -> None:
    text = call(*filled(words, stock, small))
    assert text.status == 0, text.err
    assert shown in text.out
    machine = call(*filled(words, stock, small), "--json")
    assert machine.status == 0
    assert isinstance(machine.json, dict | list)


def test_json_says_what_the_text_says(stock: Stock, small: Path) -> None:
    assert [row["name"] for row in call("methods", "--json").json] == list(methods())
    plan = call("plan", stock.spec, "--json").json
    assert plan["params"]["method"] == 512
    assert plan["spec"]["train"]["precision"] == "fp32"
    rows = {row["id"]: row for row in call("runs", "--json").json}
    assert rows[stock.lora_id]["summary"] == stock.lora.last
    assert call("show", stock.id3_id, "--json").json["spec"]["method"]["k"] == 301
    answers = call("try", stock.lora_id, "--text", "bright", "--json").json["answers"]
    assert [answer["run"] for answer in answers] == [None, stock.lora_id]
    assert all(sum(answer["probabilities"]) == pytest.approx(1) for answer in answers)
    look = call("datasets", small / "data.tsv", "--json").json
    assert look["guesses"]["text"] == "sentence"
    assert look["rows"] == 400


def test_a_benchmark_as_json_gives_its_lines() -> None:
    said = call("bench", "calibration", "--json").json
    assert said["benchmark"] == "calibration"
    assert "Gflop/s" in said["printed"][0]


WRONG: dict[str, tuple[list[str], str]] = {
    "method": (["methods", "idd3"], "Did you mean 'id3'?"),
    "file outside the roots": (["datasets", "/etc/hostname"], "outside the folders this lab may read"),
    "spec that is not there": (["plan", "nowhere.yaml"], "No such file"),
    "state": (["runs", "--state", "done"], "Known: queued, active"),
    "run": (["show", "nothing"], "Unknown run 'nothing'"),
    "no text": (["try", "LORA", "--text", " "], "no text to answer"),
    "pair for a single": (["try", "LORA", "--text", "a", "--pair", "b"], "trained on single sentences"),
    "overlap without a mask": (["overlap", "ID3", "LORA"], "has no mask on record"),
    "overlap of one": (["overlap", "ID3"], "at least two runs"),
    "budgets of one size": (["budgets", "LORA"], "one size only"),
    "ages of one size": (["ages", "LORA"], "one size only"),
    "format": (["export", "ID3", "--as", "dleta", "--to", "x"], "Did you mean 'delta'?"),
    "format of another method": (["export", "LORA", "--as", "delta", "--to", "x"], "cannot be exported as delta"),
    "place that is a file": (["export", "LORA", "--as", "spec", "--to", "SPEC/x"], "cannot be written"),
    "nothing to stop": (["stop", "LORA"], "is not running: it is finished"),
    "nothing to resume": (["resume", "LORA"], "cannot be resumed: it is finished"),
    "benchmark": (["bench", "speed"], "Known: accuracy, calibration, language"),
    "change without value": (["run", "SPEC", "--set", "train.seed"], "takes FIELD=VALUE"),
    "change of what has no fields": (["run", "SPEC", "--set", "model.id=3"], "has no fields"),
    "change that is not YAML": (["run", "SPEC", "--set", "method=["], "is not YAML"),
    "changed field": (["run", "SPEC", "--set", "train.stepps=3"], "train.stepps"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=list(WRONG))
def test_errors_are_one_line_and_one_json_document(stock: Stock, small: Path, words: list[str], said: str) -> None:
    words = [word.replace("SPEC/", f"{stock.spec}/") for word in filled(words, stock, small)]
    text = call(*words)
    assert text.status == 1
    assert text.out == ""
    assert text.err.startswith("error: ")
    assert said in text.err
    machine = call(*words, "--json")
    assert machine.status == 1
    assert machine.json.keys() == {"error", "todo"}
    assert said in f"{machine.json['error']} {machine.json['todo']}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dance"], "invalid choice: 'dance'"),
        (["run"], "required: spec"),
        (["submit", "x", "--seeds", "0"], "'0' is not a whole number from 1"),
        (["prune", "--older-than", "-1"], "'-1' is not a number from 0"),
        (["prune", "--older-than", "nan"], "'nan' is not a number from 0"),
    ],
)
def test_wrong_usage_is_told_apart(words: list[str], said: str) -> None:
    machine = call(*words, "--json")
    assert machine.status == 2
    assert said in machine.json["error"]
    assert machine.json["todo"].startswith("usage: python -m engine")
    assert said in call(*words).err


@pytest.mark.parametrize("words", [["try", "last", "--text", "caf\udce9"], ["plan", "\udcff.yaml"]])
def test_bytes_that_are_no_text_are_refused(words: list[str]) -> None:
    machine = call(*words, "--json")
    assert machine.status == 2
    assert "holds bytes that are not UTF-8" in machine.json["error"]
    assert "holds bytes that are not UTF-8" in call(*words).err


def test_seeds_beyond_the_last_are_refused_before_anything_is_queued(stock: Stock) -> None:
    before = call("runs", "--json").json
    said = call("submit", stock.spec, "--set", "train.seed=2147483647", "--seeds", "2")
    assert said.status == 1
    assert "train.seed" in said.err
    assert call("runs", "--json").json == before


@pytest.mark.parametrize("value", ["2020-13-45", "9" * 5000])
def test_a_value_that_yaml_cannot_make_is_refused(stock: Stock, value: str) -> None:
    said = call("plan", stock.spec, "--set", f"train.steps={value}")
    assert said.status == 1
    assert "is not YAML" in said.err


def test_a_run_that_diverges_says_so_in_its_json(stock: Stock) -> None:
    said = call("run", stock.spec, "--set", "train.lr=1e30", "--set", "method=full")
    assert said.status == 1
    assert said.json["status"] == "diverged"
    assert said.json["todo"] == "Lower the learning rate."
    assert "diverged: The " in said.err
    assert call("show", said.json["run"]).out.count("Lower the learning rate.") == 1


def test_prune_deletes_old_runs_and_only_when_told_to(home: Path, small: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.yaml", spec_data(small, "bitfit", steps=1))
    made = call("run", spec, "--json").json["run"]
    assert call("prune", "--older-than", "1", "--yes", "--json").json["runs"] == []
    found = call("prune", "--older-than", "0", "--json").json
    assert (found["deleted"], found["runs"]) == (False, [made])
    assert found["bytes"] > 0
    assert (home / "runs" / made).is_dir()
    assert call("prune", "--older-than", "0", "--yes", "--json").json["runs"] == [made]
    assert not (home / "runs" / made).exists()
    assert call("show", made).status == 1


SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "bare on": ("method: {name: id3, k: 20, on: {name: lora, rank: 2}}", {"name": "id3", "on": {"name": "lora"}}),
    "short": ("method: bitfit", {"name": "bitfit"}),
    "JSON": ('{"method": {"name": "id3", "k": 20, "on": {"name": "lora"}}}', {"name": "id3", "on": {"name": "lora"}}),
    "byte-order mark": ("﻿method: bitfit", {"name": "bitfit"}),
}


@pytest.mark.parametrize(("text", "method"), SPECS.values(), ids=list(SPECS))
def test_a_spec_is_read_as_it_is_written(
    home: Path, small: Path, tmp_path: Path, text: str, method: dict[str, Any]
) -> None:
    path = tmp_path / "spec"
    path.write_text(text, encoding="utf-8")
    said = call("plan", path, "--set", f"model={small / 'model'}", "--set", f"dataset={small / 'data.tsv'}", "--json")
    assert said.status == 0, said.err
    found = said.json["spec"]["method"]
    assert found["name"] == method["name"]
    assert found.get("on", {}).get("name") == method.get("on", {}).get("name")


def test_set_changes_fields_at_any_depth(stock: Stock) -> None:
    changes = ["train.seeds.head=7", "train.lr=1e-3", "budget.percent=4", "method.targets=[q, v, o]", "train.steps=5"]
    plan = call("plan", stock.spec, "--json", *(word for change in changes for word in ("--set", change))).json
    assert plan["spec"]["train"]["seeds"] == {"head": 7}
    assert plan["spec"]["train"]["lr"] == 0.001
    assert plan["spec"]["method"]["targets"] == ["q", "v", "o"]
    assert plan["params"]["requested"] == round(0.04 * plan["params"]["model"])


def python(*words: str, **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *words], cwd=PROJECT, stderr=subprocess.PIPE, **settings)


def test_a_reader_that_has_seen_enough_is_no_error(home: Path) -> None:
    process = python("-m", "engine", "methods", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, b"")


def test_looking_needs_no_torch(stock: Stock, tmp_path: Path) -> None:
    commands = [["methods"], ["plan", str(stock.spec)], ["runs"], ["show", stock.lora_id], ["prune"], ["doctor"]]
    commands.append(["export", stock.lora_id, "--as", "result", "--to", str(tmp_path / "result.json")])
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft', 'streamlit')));"
        f"from engine.cli.main import main; print([main(words) for words in {commands!r}])"
    )
    process = python("-c", code, stdout=subprocess.PIPE)
    out, complaint = process.communicate(timeout=60)
    assert out.decode().splitlines()[-1] == str([0] * len(commands)), complaint.decode()
    assert json.loads((tmp_path / "result.json").read_text())["train_info"]["num_trainable_params"] == 706
