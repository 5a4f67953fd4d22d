"""Commands that show what a run recorded inside its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.cli.conftest import call
from tests.small import spec_data
from tests.training.test_run import submit

METHODS: tuple[dict[str, Any], ...] = (
    {"name": "id3", "k": 240},
    {"name": "lisa", "layers": 1, "interval": 4},
    {"name": "full"},
    {"name": "rdp_lora", "layers": 1, "rank": 2, "samples": 6},
    {"name": "subtuning", "layers": 2, "samples": 16, "trial_steps": 2},
    {"name": "ist", "interval": 3, "rate": 1000.0},
    {"name": "surgical", "layers": 1, "samples": 6},
    {"name": "tuned_heads", "heads": 1, "samples": 6},
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A finished run of each kind, by its method's name."""
    home = tmp_path / "home"
    monkeypatch.setenv("PEFTSCOPE_HOME", str(home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(tmp_path))
    found = {}
    for method in METHODS:
        found[method["name"]] = submit(home, spec_data(tmp_path, method, lr=0.01))
        assert run_job(home, found[method["name"]], Caches()) == "finished", Runs(home).list()[0].error
    return found


def test_plane_and_layers_are_printed_and_given_as_json(store):
    told = call("plane", store["id3"], "--step", 1)
    assert told.status == 0
    assert "after step 1" in told.out
    assert "boundary: |gradient|^1 / (|weight| + 0.001)^1" in told.out
    data = call("plane", store["id3"], "--json").json
    assert data["step"] == 12
    assert sum(cell["new"] for cell in data["cells"]) + data["off"]["new"] == 20
    assert sum(cell["chosen"] for cell in data["cells"]) + data["off"]["chosen"] == 220
    told = call("layers", store["lisa"])
    assert "embeddings" in told.out
    data = call("layers", store["lisa"], "--json").json
    assert data["places"][0] == "embeddings"
    assert data["shares"][0] == [1.0] * 12
    assert {change["step"] for change in data["changes"]} <= {0, 4, 8}


def test_plane_is_short_unless_every_bin_is_asked_for(store):
    cells = call("plane", store["id3"], "--json").json["cells"]
    short = call("plane", store["id3"]).out.splitlines()
    assert len(short) < 45 < len(cells)
    assert f"{len(cells):,} bins hold weights" in short[-1]
    tables = "\n".join(short).split("\n\n")[1:3]
    for text in tables:
        counts = [[int(count.replace(",", "")) for count in line.split()[1:]] for line in text.splitlines()[1:]]
        sums = [sum(cell[kind] for cell in cells) for kind in ("rest", "chosen", "new")]
        assert [sum(column) for column in zip(*counts, strict=True)] == sums
    assert len(call("plane", store["id3"], "--bins").out.splitlines()) > len(cells)


def test_findings_are_printed_and_given_as_json(store):
    told = call("findings", store["rdp_lora"])
    assert told.status == 0
    assert "tokens of 6 training examples, before training" in told.out
    path = call("findings", store["rdp_lora"], "--json").json["path"]
    assert len(path["places"]) == 3
    assert [line.split()[0] for line in told.out.splitlines()[-3:]] == ["(input)", "0", "1"]
    assert [line.endswith("yes") for line in told.out.splitlines()[-2:]] == [
        layer in path["layers"] for layer in (0, 1)
    ]
    assert f"{path['splits'][0]['distance']:.4g}" in told.out
    told = call("findings", store["subtuning"])
    rounds = call("findings", store["subtuning"], "--json").json["trials"]["rounds"]
    assert [len(each["trials"]) for each in rounds] == [2, 1]
    assert told.out.count("yes") == 2
    assert f"{rounds[0]['trials'][1]['loss']:.4f}" in told.out
    for method, when in (("surgical", "before training"), ("tuned_heads", "after step 2")):
        told = call("findings", store[method])
        rows = call("findings", store[method], "--json").json["scores"]["rows"]
        assert f"on 6 training examples, {when}" in told.out
        best = max(rows, key=lambda row: row[2])
        assert [row for row in rows if row[3]] == [best]
        assert f"layer {best[0]}" in told.out
        assert [line.endswith("yes") for line in told.out.splitlines()].count(True) == 1
    told = call("findings", store["ist"])
    changes = call("findings", store["ist"], "--json").json["changes"]
    assert [change["step"] for change in changes] == [0, 3, 6, 9]
    assert f"{changes[-1]['importance'][1]:+.3g}" in told.out.splitlines()[-1]


def test_a_run_without_such_a_record_says_so(store):
    for command in ("plane", "layers", "findings"):
        told = call(command, store["full"])
        assert told.status == 1
        assert "on record" in told.err
        assert "Traceback" not in told.err
