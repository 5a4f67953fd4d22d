"""Our training against the frozen reference, which shares no code with it: plain PyTorch and peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from engine.bench import accuracy, jobs, pool, reference
from engine.bench.jobs import Case
from engine.errors import RunFailed, SpecError
from engine.methods.registry import config_of
from engine.plan import read_setting
from engine.spec import MethodChoice, RunSpec, parse_spec
from engine.training.result_file import read_outcomes
from tests.small import spec_data

STEPS = 14
BUDGET = 700
RATES = {"full": 1e-3, "linear_probe": 1e-2, "bitfit": 5e-3, "lora": 1e-2, "dora": 1e-2, "adalora": 1e-2}


@pytest.fixture(scope="module")
def base(small: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """The small model, with what plain transformers needs to find its tokenizer, and the small data."""
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(small / "model", folder / "model")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 32}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(small / "data.tsv", folder / "data.tsv")
    return parse_spec(spec_data(folder, steps=STEPS, precision="fp32"))


@pytest.fixture
def allowed(base: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(Path(base.model).parent))


def trained(base: RunSpec, method: str, folder: Path, seed: int = 3) -> Case:
    """Both sides of one method, trained here."""
    case = Case(method, seed, jobs.plan_of(base, method, seed, BUDGET, RATES.get(method, 5e-3)), folder / method)
    setting = jobs.write_shared(folder / "shared", case.plan, [seed])
    jobs.write_case(case, folder / "shared", setting)
    pool.train(case.ours)
    reference.main([str(case.reference)])
    return case


def logits(path: Path) -> np.ndarray:
    return load_file(path)["logits"].numpy()


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("method", jobs.METHODS)
def test_every_method_is_the_references(base: RunSpec, tmp_path: Path, method: str) -> None:
    case = trained(base, method, tmp_path)
    found = json.loads((case.folder / "ours.out.json").read_text(encoding="utf-8"))
    ours = logits(Path(found["folder"]) / "result" / "test.safetensors")
    theirs = logits(case.folder / "reference.out.safetensors")
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    row = accuracy.row_of(method, [case], "both")
    facts = json.loads((case.folder / "reference.out.json").read_text(encoding="utf-8"))
    if method != "adalora":  # what it trains is its peak, not what it keeps
        assert facts["trainable"] == case.plan.params.total
    if method in accuracy.MASKED:
        (mask,) = row["masks"]
        assert mask["ours"] == mask["reference"] == mask["common"] == BUDGET
        assert mask["largest"] <= 1e-6
    if method == "linear_probe":
        assert 0 <= row["sklearn"]["estimate"] <= 1


@pytest.mark.usefixtures("allowed")
def test_the_reference_notices_another_batch_order(base: RunSpec, tmp_path: Path) -> None:
    case = trained(base, "full", tmp_path)
    before = logits(case.folder / "reference.out.safetensors")
    path = tmp_path / "shared" / "batches-3.npy"
    np.save(path, np.load(path)[::-1])
    reference.main([str(case.reference)])
    assert np.abs(logits(case.folder / "reference.out.safetensors") - before).max() > 1e-3


def carry_out_here(parts: Sequence[pool.Share], say: object) -> None:
    """What the processes would do, without their start."""
    for part in parts:
        for job in part.jobs:
            pool.train(job) if part.side == "ours" else reference.main([str(job)])


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_whole_benchmark_writes_its_table(
    base: RunSpec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    processes: bool,
) -> None:
    if not processes:
        monkeypatch.setattr(accuracy, "carry_out", carry_out_here)
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(base.canonical()), encoding="utf-8")
    options = "--methods bitfit,lora --seeds 2 --steps 4 --batch-size 8 --budget 700 --device cpu --workers 1"
    assert accuracy.main([*options.split(), "--spec", str(spec), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "accuracy.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in report["table"]] == ["bitfit", "lora"]
    for row in report["table"]:
        assert len(row["ours"]["values"]) == len(row["reference"]["values"]) == 2
        assert row["difference"]["n"] == 2
    assert "sentence" in report["verdict"]
    assert "difference" in capsys.readouterr().out
    first = tmp_path / "out" / "lora-0" / "ours.out.json"
    folder = Path(json.loads(first.read_text(encoding="utf-8"))["folder"])
    assert read_outcomes(folder / "result").accuracy == report["table"][1]["ours"]["values"][0]


def test_a_failing_process_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    parts = pool.shares("ours", [tmp_path / "job.json"], 1, tmp_path / "logs")
    with pytest.raises(RunFailed, match="KeyError"):
        pool.carry_out(parts, print)


@pytest.mark.usefixtures("allowed")
def test_settings_that_the_reference_lacks_are_refused(base: RunSpec) -> None:
    architecture = read_setting(base).architecture
    other = base.model_copy(update={"method": MethodChoice(name="id3", clip_scope="selected")})
    with pytest.raises(SpecError, match="clip_scope"):
        jobs.reference_settings(other, architecture)
    assert config_of(other.method) is not None
