"""The command line called in this process, and a store with two finished runs."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from engine.cli.main import main
from tests.small import spec_data


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All that it printed as one JSON document, without the numbers that JSON does not have."""
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def last(self) -> Any:
        """Its last line as JSON."""
        return json.loads(self.out.splitlines()[-1], parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def call(*words: object) -> Said:
    """Run one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    return Said(status, out.getvalue(), err.getvalue())


def write_spec(path: Path, data: dict[str, Any]) -> Path:
    """A spec as a YAML file."""
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Stock:
    """A store, a spec file, and what `run` said for two runs of it."""

    home: Path
    spec: Path
    lora: Said
    id3: Said

    @property
    def lora_id(self) -> str:
        """The LoRA run."""
        return str(self.lora.last["run"])

    @property
    def id3_id(self) -> str:
        """The ID3 run, of 301 weights in 12 steps."""
        return str(self.id3.last["run"])


@pytest.fixture(scope="package")
def _stock(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    folder = tmp_path_factory.mktemp("stock")
    spec = write_spec(folder / "spec.yaml", spec_data(small, {"name": "lora", "rank": 2}, lr=0.01))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSCOPE_HOME", str(folder / "home"))
        patch.setenv("PEFTSCOPE_ROOTS", str(small))
        lora = call("run", spec, "--set", "budget.params=700")
        id3 = call("run", spec, "--json", "--set", "method={name: id3, k: 301}")
    return Stock(folder / "home", spec, lora, id3)


@pytest.fixture
def stock(_stock: Stock, small: Path, monkeypatch: pytest.MonkeyPatch) -> Stock:
    """The store, in force for this test."""
    monkeypatch.setenv("PEFTSCOPE_HOME", str(_stock.home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(_stock.spec.parent)]))
    return _stock
