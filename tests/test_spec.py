"""The one description of a run: what it accepts, what it refuses, and what its hash ignores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import SpecError
from engine.spec import RunSpec, parse_spec, read_spec

STREAMS = ("init", "head", "data", "method")


def spec(**changes: Any) -> RunSpec:
    return parse_spec({"method": "lora", **changes})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate 0": ({"train": {"lr": 0}}, "`lr` must be a positive number"),
    "negative learning rate": ({"train": {"lr": -1e-3}}, "`lr` must be a positive number"),
    "infinite learning rate": ({"train": {"lr": float("inf")}}, "finite number"),
    "learning rate that is no number": ({"train": {"lr": float("nan")}}, "finite number"),
    "no steps": ({"train": {"steps": 0}}, "train.steps: .* greater than or equal to 1 .given: 0"),
    "half a step": ({"train": {"steps": 1.5}}, "train.steps"),
    "empty batch": ({"train": {"batch_size": 0}}, "train.batch_size"),
    "negative seed": ({"train": {"seed": -1}}, "train.seed"),
    "large seed": ({"train": {"seed": 2**31}}, "train.seed"),
    "negative separate seed": ({"train": {"seeds": {"data": -1}}}, "train.seeds.data"),
    "seed of nothing": ({"train": {"seeds": {"weather": 1}}}, "train.seeds.weather"),
    "no clipping": ({"train": {"clip": float("inf")}}, "finite number"),
    "clipping to 0": ({"train": {"clip": 0}}, "train.clip"),
    "all warm-up": ({"train": {"warmup": 1}}, "train.warmup"),
    "device": ({"train": {"device": "gpu"}}, "train.device"),
    "precision": ({"train": {"precision": "bf16"}}, "train.precision"),
    "threads": ({"train": {"threads": 0}}, "`threads` must be from 1 to 512"),
    "length": ({"train": {"max_length": 3}}, "`max_length` must be from 4 to 8192"),
    "two budgets": ({"budget": {"params": 5, "percent": 1}}, "either `params` or `percent`"),
    "empty budget": ({"budget": {}}, "either `params` or `percent`"),
    "budget that is no number": ({"budget": {"percent": float("nan")}}, "budget.percent: .* finite number"),
    "infinite budget": ({"budget": {"percent": float("inf")}}, "budget.percent: .* finite number"),
    "half a parameter": ({"budget": {"params": 0.5}}, "budget.params"),
    "unknown field": ({"modell": "minilm-l6"}, "modell: Extra inputs are not permitted"),
    "unknown dataset field": ({"dataset": {"source": "x.csv", "columns": "a"}}, "dataset.columns"),
    "another version": ({"version": 2}, "version"),
    "no method": ({"method": None}, "method"),
    "method without name": ({"method": {"rank": 4}}, "method.name"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec(**changes)
    assert caught.value.todo


@pytest.mark.parametrize("data", [None, [], "lora", 3])
def test_a_spec_is_a_mapping(data: Any) -> None:
    with pytest.raises(SpecError, match="must be a mapping"):
        parse_spec(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [lora", "neither YAML nor JSON"),
        ('{"method": "lora",}}', "neither YAML nor JSON"),
        ("", "must be a mapping"),
        ("method: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
        (b"method: \xff\xfe", "neither YAML nor JSON"),
        ("model: 2020-13-45", "neither YAML nor JSON"),
        ("method: &a {name: lora, on: *a}", "contains itself"),
    ],
)
def test_a_malformed_file_says_so(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=message):
        read_spec(path)


def test_a_spec_survives_yaml_and_json(tmp_path: Path) -> None:
    nested = {"name": "id3", "k": 60, "exp": 0.5, "on": {"name": "lora", "rank": 4, "targets": ["q", "v"]}}
    made = spec(method=nested, budget={"percent": 0.5}, train={"lr": 1e-3, "seeds": {"head": 3}}, dataset="imdb")
    for name, text in (("spec.yaml", made.to_yaml()), ("spec.json", json.dumps(made.canonical()))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_spec(tmp_path / name) == made
    assert yaml.safe_load(made.to_yaml())["method"]["on"]["rank"] == 4


def test_a_bare_on_is_the_word_on() -> None:
    read = parse_spec(yaml.safe_load("method: {name: id3, on: {name: fish, on: {name: lora}}}"))
    assert read.method.on is not None
    assert read.method.on.on is not None
    assert read.method.on.on.name == "lora"


def test_a_budget_may_be_a_plain_count() -> None:
    assert spec(budget=5888) == spec(budget={"params": 5888})
    with pytest.raises(SpecError, match=r"budget: it has fields of its own, each written as `name: value`"):
        spec(budget="5888")


def test_each_stream_falls_back_to_the_one_seed() -> None:
    train = spec(train={"seed": 5, "seeds": {"data": 0}}).train
    assert [train.seed_of(stream) for stream in STREAMS] == [5, 5, 0, 5]


def test_the_hash_ignores_seeds_and_device_and_nothing_else() -> None:
    base = spec(train={"seed": 1})
    for same in ({"seed": 2}, {"seeds": {"head": 9}}, {"device": "cpu"}):
        assert spec(train=same).hash() == base.hash()
    others = [
        spec(train={"steps": 301}),
        spec(train={"threads": 2}),
        spec(train={"precision": "fp32"}),
        spec(method={"name": "lora", "rank": 3}),
        spec(method={"name": "id3", "on": {"name": "lora"}}),
        spec(budget={"params": 10}),
        spec(dataset="imdb"),
        spec(model="a/b"),
    ]
    assert len({base.hash(), *(other.hash() for other in others)}) == len(others) + 1


def test_a_deeply_nested_spec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("[" * 10_000, encoding="utf-8")
    with pytest.raises(SpecError, match="nested too deeply"):
        read_spec(path)
