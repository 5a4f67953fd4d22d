"""Jobs are dealt out once each, and the tuning grid keeps the best rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from engine.bench import main, pool, tune
from engine.errors import UnknownName
from tests.small import spec_data


def test_every_job_is_dealt_out_once(tmp_path: Path) -> None:
    jobs = [tmp_path / f"{number}.json" for number in range(7)]
    parts = pool.shares("ours", jobs, 3, tmp_path)
    assert len(parts) == 3
    assert sorted(job for part in parts for job in part.jobs) == jobs
    assert len({part.log for part in parts}) == 3
    assert pool.shares("reference", [], 3, tmp_path) == []


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1", "0"]), ("2,5", ["2", "5", "2"]), ("3", ["3"] * 3)])
def test_processes_keep_to_the_gpus_they_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(pool, "cuda_devices", lambda: 1 if visible == "3" else 2)
    parts = pool.shares("ours", [tmp_path / f"{number}.json" for number in range(3)], 3, tmp_path)
    assert [part.environment()["CUDA_VISIBLE_DEVICES"] for part in parts] == expected


def test_an_unknown_benchmark_is_named() -> None:
    with pytest.raises(UnknownName, match=r"accurcy.*accuracy"):
        main(["accurcy"])


def test_tuning_finds_the_rate_that_learns(
    home: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of 1e-7 learns nothing, 1e-2 does, 1e4 diverges or ends no better."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_data(small)), encoding="utf-8")
    monkeypatch.setattr(tune, "carry_out", lambda parts, say: [pool.train(job) for part in parts for job in part.jobs])
    options = "--methods full --rates 1e-7,1e-2,1e4 --seeds 1 --steps 40 --batch-size 8 --budget 0 --device cpu"
    assert tune.main([*options.split(), "--spec", str(spec), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    (row,) = json.loads((tmp_path / "out" / "tune.json").read_text(encoding="utf-8"))["table"]
    assert row["best"] == 1e-2
    assert row["means"][1] > 0.8
