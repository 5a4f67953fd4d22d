"""A store with finished runs of every kind of method, trained once for all export tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.run import run_job
from tests.small import spec_data

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "bitfit": {"name": "bitfit"},
    "id3": {"name": "id3", "k": 300},
    "pafi": {"name": "pafi", "k": 200},
    "lora": {"name": "lora", "rank": 2},
    "dora": {"name": "dora", "rank": 2},
    "adalora": {"name": "adalora", "rank": 2},
    "id3-on-lora": {"name": "id3", "k": 60, "on": {"name": "lora", "rank": 2}},
}


@dataclass(frozen=True)
class Trained:
    """The store and its runs by the keys of `METHODS`."""

    home: Path
    ids: dict[str, str]
    stopped: str


@pytest.fixture(scope="session")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """One finished run of each method, and one that was stopped before it began."""
    home = tmp_path_factory.mktemp("trained") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSCOPE_HOME", str(home))
        patch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(small), str(home)]))
        runs, caches = Runs(home), Caches()
        ids = {}
        for key, method in METHODS.items():
            plan = make_plan(parse_spec(spec_data(small, method, lr=0.01, steps=14)))
            ids[key] = runs.submit(plan.spec, plan.to_json(), owner="test", slot="here", worker={"pid": 0})
            assert run_job(home, ids[key], caches) == "finished", runs.get(ids[key]).error
        plan = make_plan(parse_spec(spec_data(small, "full")))
        waiting = runs.submit(plan.spec, plan.to_json(), owner="test")
        runs.request_stop(waiting, "discard", "test")
        yield Trained(home, ids, waiting)
        runs.close()
