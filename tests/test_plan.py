"""The plan: everything resolved, the budget met to the parameter, the impossible refused before launch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from engine import estimate
from engine.devices import cuda_devices
from engine.errors import BudgetError, HubUnreachable, ModelError, PathRefused, SpecError, UnknownName
from engine.methods.registry import methods
from engine.plan import Plan, make_plan, read_setting, workload
from engine.spec import parse_spec
from engine.store.runs import Runs
from tests.small import spec_data, write_data

NAMES = sorted(methods())
MODEL = 22_496
"""Parameters of the small model's backbone."""


def plan(small: Path, method: Any = "lora", budget: dict[str, Any] | None = None, **train: Any) -> Plan:
    data = spec_data(small, method, **train)
    return make_plan(parse_spec(data if budget is None else data | {"budget": budget}))


@pytest.mark.parametrize("budget", [None, {"params": 1_000}, {"percent": 7.3}], ids=["own", "number", "percentage"])
@pytest.mark.parametrize("name", NAMES)
def test_resolving_a_resolved_spec_changes_nothing(
    home: Path, small: Path, name: str, budget: dict[str, Any] | None
) -> None:
    auto = dict.fromkeys(("lr", "max_length", "threads", "precision", "device"), "auto")
    try:
        first = plan(small, name, budget, **auto)
    except BudgetError:  # it cannot be made as small as that
        first = plan(small, name, {"percent": 100}, **auto)
    again = make_plan(first.spec)
    assert again.spec == first.spec
    assert again.spec_hash == first.spec_hash
    assert again.params == first.params
    assert "auto" not in first.spec.train.model_dump().values()
    assert first.spec.train.lr == methods()[name].lr.value
    assert first.lr_tuned
    assert again.lr_tuned == "", "the rate is now given"


@pytest.mark.parametrize("target", [400, 999, 5_000, 20_001])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_a_budget_is_met_from_below_or_the_plan_says_why_not(home: Path, small: Path, name: str, target: int) -> None:
    try:
        made = plan(small, name, {"params": target})
    except BudgetError as error:
        assert "at least" in error.todo  # noqa: PT017 (either outcome may be right)
        return
    assert made.params.requested == target
    assert made.params.method <= target
    assert made.params.total == made.params.method + 66
    if name in ("fish", "id3", "pafi"):
        assert made.params.method == target
    if made.params.method < 0.9 * target:
        assert any(f"reaches {made.params.method:,} of the {target:,}" in text for text in made.warnings)


def test_a_percentage_is_of_the_model_without_its_head(home: Path, small: Path) -> None:
    made = plan(small, "id3", {"percent": 10})
    assert (made.params.model, made.params.method) == (MODEL, round(MODEL / 10))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"params": 0}, "A budget of 0 parameters trains nothing"),
        ({"params": -5}, "A budget of -5 parameters trains nothing"),
        ({"params": MODEL + 1}, "above the model, which has 22,496"),
        ({"percent": 0}, "A budget of 0 parameters trains nothing"),
        ({"percent": -1}, "trains nothing"),
        ({"percent": 100.1}, "above the model"),
        ({"params": 10}, "cannot be made smaller"),
    ],
)
def test_an_impossible_budget_is_refused(home: Path, small: Path, budget: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        plan(small, "full" if budget == {"params": 10} else "lora", budget)
    assert caught.value.todo


def test_a_method_that_trains_nothing_says_so(home: Path, small: Path) -> None:
    assert plan(small, "linear_probe", {"params": 500}).params.method == 0
    assert "reaches 0 of the 500" in plan(small, "linear_probe", {"params": 500}).warnings[0]


COMPOSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "lora", "on": {"name": "id3"}}, "LoRA cannot be put on top"),
    ({"name": "id3", "on": {"name": "adalora"}}, "ID3 cannot stand on AdaLoRA"),
    ({"name": "fish", "on": {"name": "pafi"}}, "FISH Mask cannot stand on PaFi"),
    ({"name": "id3", "on": {"name": "id3", "on": {"name": "lora"}}}, "ID3 cannot stand on ID3"),
    ({"name": "id3", "on": {"name": "linear_probe"}}, "ID3 cannot stand on Linear probe, which trains no weight"),
    ({"name": "mezo", "on": {"name": "linear_probe"}}, "MeZO cannot stand on Linear probe, which trains no weight"),
    ({"name": "id3", "on": {"name": "lorra"}}, "Did you mean 'lora'"),
    ({"name": "id3", "on": {"name": "lora", "rank": 0}}, "Settings of LoRA are not valid: rank"),
    ({"name": "id3", "kk": 3}, "Settings of ID3 are not valid: kk: Extra inputs"),
    ({"name": "id3", "eps": float("nan")}, "Settings of ID3 are not valid: eps"),
    ({"name": "lora", "rank": "many"}, "rank: .*integer.*given: 'many'"),
]


@pytest.mark.parametrize(("method", "message"), COMPOSED, ids=[message[:24] for _, message in COMPOSED])
def test_what_a_run_could_not_do_is_refused_before_it(
    home: Path, small: Path, method: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        plan(small, method)


def test_unknown_names_suggest_known_ones(home: Path, small: Path) -> None:
    data = spec_data(small)
    for change, near in (
        ({"model": "minilm-16"}, "minilm-l6"),
        ({"dataset": "rotten_tomato"}, "rotten_tomatoes"),
        ({"method": "adalorra"}, "adalora"),
    ):
        with pytest.raises(UnknownName, match=f"Did you mean '{near}'"):
            make_plan(parse_spec(data | change))


def test_a_hub_id_without_network_is_quick_and_clear(home: Path, small: Path) -> None:
    data = spec_data(small)
    for change in ({"model": "someone/some-model"}, {"dataset": "someone/some-data"}):
        started = time.monotonic()
        with pytest.raises(HubUnreachable, match="Everything else works"):
            make_plan(parse_spec(data | change))
        assert time.monotonic() - started < 40


def test_paths_outside_the_roots_are_refused(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = spec_data(small)
    for field, change in (
        ("model", {"model": "/etc"}),
        ("file", {"dataset": {"source": "/etc/hostname"}}),
        ("climbing", {"dataset": {"source": f"{small}/../../../../etc/hostname"}}),
    ):
        with pytest.raises(PathRefused, match="outside the folders"):
            make_plan(parse_spec(data | change))
        assert field
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(home))
    with pytest.raises(PathRefused, match=r"add its folder to PEFTSCOPE_ROOTS"):
        make_plan(parse_spec(data))


def test_a_link_out_of_the_roots_is_followed_and_refused(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "data.tsv").symlink_to(small / "data.tsv")
    (inside / "circle.tsv").symlink_to(inside / "circle.tsv")
    data = spec_data(small)
    monkeypatch.setenv("PEFTSCOPE_ROOTS", f"{inside}:{small / 'model'}")
    with pytest.raises(PathRefused, match="outside the folders"):
        make_plan(parse_spec(data | {"dataset": {"source": str(inside / "data.tsv")}}))
    for impossible in ("~nobody-of-this-name/x.tsv", "/x\0y.tsv", str(inside / "circle.tsv")):
        with pytest.raises(PathRefused, match=r"cannot be a path|outside the folders"):
            make_plan(parse_spec(data | {"dataset": {"source": impossible}}))


def test_a_relative_path_is_made_whole(home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may have been started from another folder."""
    whole = plan(small).spec
    monkeypatch.chdir(small)
    data = spec_data(small, "lora") | {"model": "./model"}
    data["dataset"] = {**data["dataset"], "source": "data.tsv"}
    relative = make_plan(parse_spec(data)).spec
    assert relative == whole
    assert relative.hash() == whole.hash()


def test_devices_lengths_and_precision_that_are_not_there(home: Path, small: Path) -> None:
    with pytest.raises(SpecError, match="TF32 was asked for on the CPU"):
        plan(small, precision="tf32")
    with pytest.raises(SpecError, match="33 is above the model's 32 positions"):
        plan(small, max_length=33)
    assert plan(small, max_length="auto").spec.train.max_length == 32, "what the model has, where auto is more"
    with pytest.raises(SpecError, match=r"Device 'cuda:99' was asked for"):
        plan(small, device="cuda:99")
    if not cuda_devices():
        with pytest.raises(SpecError, match="no CUDA device that the installed torch can use"):
            plan(small, device="cuda")


def test_a_batch_larger_than_the_data_is_warned_of(home: Path, small: Path, tmp_path: Path) -> None:
    data = spec_data(small, "bitfit", batch_size=1024)
    assert any("larger than the 3" in text for text in make_plan(parse_spec(data)).warnings)
    few = write_data(tmp_path / "few.tsv", count=60)
    data["dataset"] = {"source": str(few), "text": "sentence", "label": "label"}
    assert make_plan(parse_spec(data)).warnings


def test_a_folder_without_a_model_is_refused(home: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        make_plan(parse_spec(spec_data(small) | {"model": str(tmp_path)}))


def test_the_memory_estimate_follows_what_is_held(home: Path, small: Path) -> None:
    lora, full = plan(small, "lora").memory_bytes, plan(small, "full").memory_bytes
    assert 300 * 2**20 < lora < full < 2**30
    assert full - lora >= 12 * (MODEL - 10_000), "gradients and two moments of every weight"
    assert plan(small, "lora", batch_size=256).memory_bytes > lora


H200_PEAKS = {
    ("nano-bert", "full", 8): 300,
    ("nano-bert", "lora", 32): 264,
    ("nano-bert", "bitfit", 8): 263,
    ("nano-bert", "fish", 32): 296,
    ("nano-bert", "pafi", 8): 264,
    ("nano-bert", "id3", 32): 264,
    ("minilm-l6", "full", 8): 726,
    ("minilm-l6", "full", 32): 730,
    ("minilm-l6", "lora", 8): 560,
    ("minilm-l6", "bitfit", 32): 553,
    ("minilm-l6", "full", 128): 1617,
    ("minilm-l6", "lora", 128): 1133,
    ("minilm-l6", "adapter", 128): 1242,
    ("minilm-l6", "dora", 128): 1414,
    ("minilm-l6", "pafi", 128): 1442,
    ("nano-llama", "full", 8): 410,
    ("nano-llama", "full", 64): 543,
    ("nano-llama", "lora", 8): 389,
    ("nano-llama", "lora", 64): 453,
    ("nano-llama", "id3", 8): 387,
    ("nano-llama", "id3", 64): 520,
}
"""MiB of the allocator's peak, each run in a process of its own, by model, method and batch size; November 2026."""


@pytest.mark.parametrize(("case", "measured"), H200_PEAKS.items(), ids=str)
def test_the_memory_estimate_for_a_gpu_is_near_what_an_allocator_measured(
    home: Path, case: tuple[str, str, int], measured: int
) -> None:
    model, method, batch_size = case
    data = {"model": model, "dataset": "rotten_tomatoes", "method": {"name": method}}
    made = make_plan(parse_spec(data | {"train": {"batch_size": batch_size, "device": "cpu"}}))
    parts = estimate.memory_parts(workload(made.spec, read_setting(made.spec), made.params), "cuda")
    assert sum(parts.values()) / 2**20 == pytest.approx(measured, rel=0.25)


def test_the_largest_batch_of_an_evaluation_is_counted_with_its_padding() -> None:
    assert estimate.largest_batch([10, 20, 30], 3) == 3 * 30
    assert estimate.largest_batch([10, 10, 10, 50], 1024) == 512 * 50
    assert estimate.largest_batch([10, 10, 10, 50], 513) == 512 * 50, "the last one alone is a small batch"


def test_the_time_estimate_learns_from_runs_of_the_same_size_only(home: Path, small: Path) -> None:
    before = plan(small)
    work = workload(before.spec, read_setting(before.spec), before.params)
    estimate.record_speed(work, "cpu", 1, 500.0, home)
    assert plan(small).seconds == pytest.approx(500.0)
    assert plan(small, steps=24).seconds == pytest.approx(500.0, rel=1), "more steps, and the same evaluation"
    estimate.record_speed(work, "cpu", 1, 500.0, home)
    assert plan(small).seconds == pytest.approx(500.0)
    minilm = parse_spec(spec_data(small) | {"model": "minilm-l6"})
    assert make_plan(minilm).seconds < 500, "what a small model does says nothing about a larger one"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cpu x1, 2 layers of 32": "fast"}', '{"a": null}'])
def test_damaged_speeds_are_forgotten(home: Path, small: Path, text: str) -> None:
    fresh = plan(small).seconds
    (home / "speed.json").write_text(text)
    assert plan(small).seconds == fresh


def test_data_changed_under_its_name_is_not_an_identical_run(home: Path, tmp_path: Path) -> None:
    spec = parse_spec(spec_data(tmp_path, "bitfit"))
    plan, runs = make_plan(spec), Runs(home)
    run_id = runs.submit(plan.spec, plan.to_json(), owner="test", worker={"pid": 0})
    runs.finish(run_id, "finished")
    found = runs.find_identical(plan.spec, plan.sources)
    assert found is not None
    assert found.id == run_id
    write_data(tmp_path / "data.tsv", seed=1)
    changed = make_plan(spec)
    assert changed.spec == plan.spec
    assert runs.find_identical(changed.spec, changed.sources) is None
