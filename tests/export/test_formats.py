"""Every export, written from real finished runs and loaded again by those it is meant for."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from engine.errors import EngineError, SpecError, StoreError, UnknownName
from engine.export import FORMATS, command_of, default_name, export_run, formats_of
from engine.export.base import name_base
from engine.models.catalogue import resolve_model
from engine.models.loading import load_classifier
from engine.models.source import ModelSource
from engine.plan import make_plan, read_setting
from engine.sparse.delta import apply_delta, read_delta
from engine.spec import MethodChoice, parse_spec, read_spec
from engine.store.runs import Runs
from engine.tasks.encoding import Encoded
from engine.training.build import Caches, encoded_splits
from engine.training.evaluation import predict
from tests.export.conftest import METHODS, Trained

MASKED = ["id3", "pafi"]
ADAPTERS = ["lora", "dora", "adalora", "id3-on-lora"]


def held_out(trained: Trained, key: str) -> Encoded:
    spec = parse_spec(Runs(trained.home).get(trained.ids[key]).spec)
    return encoded_splits(spec, read_setting(spec), Caches())["test"]


def recorded(trained: Trained, key: str) -> np.ndarray:
    """The logits that the run itself measured on the test set."""
    return load_file(Runs(trained.home).folder(trained.ids[key]).result / "test.safetensors")["logits"]


def plain_base(trained: Trained, key: str) -> nn.Module:
    """The base model with a head of other random numbers, as a stranger would load it."""
    spec = parse_spec(Runs(trained.home).get(trained.ids[key]).spec)
    return load_classifier(resolve_model(spec.model), ["bad", "good"], head_seed=99, init_seed=0, dropout=0.0)


@pytest.fixture(autouse=True)
def _in_force(trained: Trained, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(trained.home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(small))


@pytest.mark.parametrize("key", METHODS)
def test_merged_model_answers_as_the_run_did(trained: Trained, tmp_path: Path, key: str) -> None:
    folder = export_run(trained.home, trained.ids[key], "merged", tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = predict(model, held_out(trained, key), "cpu")
    np.testing.assert_allclose(logits, recorded(trained, key), atol=1e-5)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert (folder / "tokenizer.json").is_file()
    assert json.loads((folder / "peftscope.json").read_text())["run"] == trained.ids[key]


@pytest.mark.parametrize("key", ADAPTERS)
def test_peft_loads_the_adapter_onto_a_fresh_base(trained: Trained, tmp_path: Path, key: str) -> None:
    folder = export_run(trained.home, trained.ids[key], "peft", tmp_path / "adapter")
    model = PeftModel.from_pretrained(plain_base(trained, key), folder)
    logits = predict(model, held_out(trained, key), "cpu")
    np.testing.assert_allclose(logits, recorded(trained, key), atol=1e-5)


def test_an_adapter_says_which_base_it_belongs_on(trained: Trained, tmp_path: Path) -> None:
    folder = export_run(trained.home, trained.ids["lora"], "peft", tmp_path / "adapter")
    source = resolve_model(Runs(trained.home).get(trained.ids["lora"]).model)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert source.sha256 in card
    assert f"the folder {source.folder.name} of the machine" in card
    assert str(source.folder.parent) not in card
    assert 'classes, in order: "bad", "good"' in card
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == ""


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        (resolve_model("nano-bert"), "", "comes with PEFTscope, in assets/models/nano-bert"),
        (resolve_model("minilm-l6"), "sentence-transformers/all-MiniLM-L6-v2", "base_model: sentence-transformers/"),
        (
            ModelSource("owner/name@main", "name", Path("x"), "0" * 64, "", "hub", revision="abc"),
            "owner/name",
            '"owner/name", num_labels=2, dtype="float32", revision="abc"',
        ),
    ],
    ids=["assets", "package", "hub"],
)
def test_a_base_has_its_name_on_the_hub_or_none(tmp_path: Path, source: ModelSource, name: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": null}')
    name_base(tmp_path, source, "LoRA", "some-run", ["no", "yes"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (name, 8)
    assert said in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_merged_model_is_written_without_a_progress_bar(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    export_run(trained.home, trained.ids["lora"], "merged", tmp_path / "model")
    assert "Writing" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("key", MASKED)
def test_delta_on_a_fresh_base_is_the_trained_model_bit_for_bit(trained: Trained, tmp_path: Path, key: str) -> None:
    path = export_run(trained.home, trained.ids[key], "delta", tmp_path / "delta.safetensors")
    row = Runs(trained.home).get(trained.ids[key])
    source = resolve_model(row.model)
    delta = read_delta(path)
    assert delta.count == row.summary["params"]["method"]
    assert delta.metadata["base_sha256"] == source.sha256
    assert delta.metadata["spec_hash"] == row.spec_hash
    assert json.loads(delta.metadata["eligibility"]).keys() == {"exclude", "eligible"}
    model = plain_base(trained, key)
    apply_delta(model, delta, source.sha256)
    np.testing.assert_array_equal(predict(model, held_out(trained, key), "cpu"), recorded(trained, key))


def test_a_delta_file_has_the_promised_tensors(trained: Trained, tmp_path: Path) -> None:
    path = export_run(trained.home, trained.ids["id3"], "delta", tmp_path)
    assert path == tmp_path / default_name(trained.ids["id3"], "delta")
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        parts = {name.rpartition(".")[2] for name in names if not name.startswith("head.")}
        assert parts == {"index", "value", "step"}
        assert {"head.classifier.weight", "head.classifier.bias"} <= names
        assert all(file.get_tensor(name).dtype == np.int32 for name in names if name.endswith((".index", ".step")))


def test_an_archive_holds_the_folder(trained: Trained, tmp_path: Path) -> None:
    path = export_run(trained.home, trained.ids["lora"], "peft", tmp_path / "adapter.zip")
    zipfile.ZipFile(path).extractall(tmp_path)
    folder = tmp_path / f"{trained.ids['lora']}-peft"
    model = PeftModel.from_pretrained(plain_base(trained, "lora"), folder)
    np.testing.assert_allclose(predict(model, held_out(trained, "lora"), "cpu"), recorded(trained, "lora"), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_spec_and_command_repeat_the_run(trained: Trained, tmp_path: Path) -> None:
    run_id = trained.ids["lora"]
    path = export_run(trained.home, run_id, "spec", tmp_path)
    assert path.name == f"{run_id}.yaml"
    row = Runs(trained.home).get(run_id)
    plan = make_plan(read_spec(path))
    assert plan.spec.hash() == row.spec_hash
    assert plan.spec.train.seed == row.seed
    command = export_run(trained.home, run_id, "command", tmp_path / "again.sh").read_text()
    assert command.strip() == command_of(run_id) == f"python -m engine run {path.name}"


def test_csv_holds_every_number(trained: Trained, tmp_path: Path) -> None:
    path = export_run(trained.home, trained.ids["full"], "csv", tmp_path / "curves.csv")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    losses = [float(row["value"]) for row in rows if row["key"] == "train/loss"]
    assert len(losses) == 14
    assert {"validation/accuracy", "lr", "test/accuracy"} <= {row["key"] for row in rows}


def peft_loader_fields(row: dict) -> tuple[int, float]:
    """The fields that peft's own `method_comparison/processing.py` reads, with its conversions."""
    run, train, meta = row["run_info"], row["train_info"], row["meta_info"]
    last = train["metrics"][-1]
    packages = [meta["package_info"][f"{name}-version"] for name in ("peft", "transformers", "datasets", "torch")]
    assert all(isinstance(version, str) for version in packages)
    assert "bitsandbytes-version" in meta["package_info"]
    assert train["status"] == "success"
    memory = [int(train[f"accelerator_memory_{name}"]) for name in ("reserved_avg", "max", "reserved_99th")]
    assert len(memory) == 3
    assert isinstance(run["train_config"]["model_id"], str)
    assert isinstance(run["peft_branch"], str)
    assert meta["system_info"]
    float(run["total_time"]), int(train["file_size"]), float(last["train loss"])
    int(last["train samples"]), float(train["train_time"])
    assert run["created_at"]
    return int(last["train total tokens"]), float(last["test accuracy"])


@pytest.mark.parametrize("key", METHODS)
def test_result_is_readable_by_pefts_comparison(trained: Trained, tmp_path: Path, key: str) -> None:
    path = export_run(trained.home, trained.ids[key], "result", tmp_path / "result.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    tokens, accuracy = peft_loader_fields(data)
    summary = Runs(trained.home).get(trained.ids[key]).summary
    assert (tokens, accuracy) == (summary["tokens"], summary["accuracy"]["test"])
    assert data["train_info"]["num_trainable_params"] == summary["params"]["total"]
    kind = data["run_info"]["peft_config"]
    assert (kind is None) == (key == "full")
    if key in ("lora", "dora"):
        assert kind["peft_type"] == "LORA"
        assert kind["r"] == 2
        assert kind["use_dora"] is (key == "dora")
    assert "accelerator_memory_max" in data["meta_info"]["peftscope"]["not_measured"], "nothing was measured on a GPU"


def test_a_method_says_what_it_offers_instead(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"LoRA cannot be exported as delta.*It offers: peft, merged"):
        export_run(trained.home, trained.ids["lora"], "delta", tmp_path / "x")
    with pytest.raises(SpecError, match=r"ID3 on LoRA cannot be exported as delta"):
        export_run(trained.home, trained.ids["id3-on-lora"], "delta", tmp_path / "x")
    with pytest.raises(UnknownName, match="gguf"):
        export_run(trained.home, trained.ids["lora"], "gguf", tmp_path / "x")
    with pytest.raises(UnknownName, match="Unknown run"):
        export_run(trained.home, "20260101-000000-none-abcd", "spec", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_result_offers_its_record(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no trained result: it is stopped"):
        export_run(trained.home, trained.stopped, "merged", tmp_path / "x")
    export_run(trained.home, trained.stopped, "spec", tmp_path / "spec.yaml")
    offered = [entry.name for entry in formats_of(MethodChoice(name="lora"), "stopped")]
    assert offered == ["recording", "spec", "command", "csv"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "empty"])
@pytest.mark.parametrize("name", ["result", "recording", "csv"])
def test_a_finished_run_without_its_record_says_so(
    trained: Trained, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained.home, home)
    damage(Runs(home).folder(trained.ids["lora"]).database)
    with pytest.raises(StoreError, match=r"record of run .* is missing"):
        export_run(home, trained.ids["lora"], name, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert export_run(home, trained.ids["lora"], "spec", tmp_path / "spec.yaml").is_file()


def test_an_existing_folder_is_not_overwritten(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "note.txt").write_text("keep me")
    with pytest.raises(EngineError, match="exists already"):
        export_run(trained.home, trained.ids["lora"], "peft", folder)
    assert (folder / "note.txt").read_text() == "keep me"


def test_a_full_disk_leaves_nothing_half_written(trained: Trained, tmp_path: Path) -> None:
    """Made full by a real limit on the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        for name, target in (("merged", "model"), ("delta", "delta.safetensors"), ("recording", "r.json.gz")):
            with pytest.raises(StoreError, match=r"written|write"):
                export_run(trained.home, trained.ids["id3"], name, tmp_path / target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_another_base_model_is_refused(trained: Trained, tmp_path: Path, small: Path) -> None:
    weights = small / "model" / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + np.float32(0.5).tobytes())
        with pytest.raises(EngineError, match="was trained from weights"):
            export_run(trained.home, trained.ids["full"], "merged", tmp_path / "x")
    finally:
        weights.write_bytes(before)


def test_every_format_has_words_for_people() -> None:
    assert all(entry.title and entry.description.endswith(".") for entry in FORMATS.values())
