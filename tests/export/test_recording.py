"""A recording answers as the run's own record does, and stays small."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from engine.errors import DataError
from engine.export import export_run, read_recording
from engine.export.recording import EXACT_ENTRIES, FRAMES, POINTS, pack, unpack
from engine.store.run_file import RunWriter
from engine.store.run_reader import RunReader
from engine.store.runs import Runs
from tests.export.conftest import Trained

LIMIT = 400_000


@pytest.mark.parametrize("key", ["id3", "adalora", "lora"])
def test_it_answers_as_the_run_does(trained: Trained, tmp_path: Path, key: str) -> None:
    path = export_run(trained.home, trained.ids[key], "recording", tmp_path / "run.json.gz")
    recording = read_recording(path)
    with RunReader(Runs(trained.home).folder(trained.ids[key]).database) as reader:
        assert recording.keys() == reader.keys()
        for name, (steps, values) in reader.scalars().items():
            np.testing.assert_array_equal(recording.scalars([name])[name][0], steps)
            np.testing.assert_allclose(recording.scalars([name])[name][1], values, rtol=1e-5)
        assert recording.frame_kinds() == [kind for kind in reader.frame_kinds() if kind != "selected"]
        for kind in recording.frame_kinds():
            assert [step for _, step in recording.frame_index(kind)] == [step for _, step in reader.frame_index(kind)]
            for step in (0, 5, 10**6):
                ours, theirs = recording.frame(kind, step=step), reader.frame(kind, step=step)
                assert ours[0] == theirs[0]
                for name, array in theirs[1].items():
                    np.testing.assert_array_equal(ours[1][name], array)
        for name, column in reader.selection(7).items():
            np.testing.assert_array_equal(recording.selection(7)[name], column)
        assert recording.metas() == reader.metas()
        assert recording.notes() == reader.notes()
        assert recording.latest().keys() == reader.latest().keys()
    assert recording.meta("provenance")["packages"]["torch"]
    assert recording.run["id"] == trained.ids[key]
    assert recording.phase().phase == "finished"


def test_the_same_run_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    first, second = (
        export_run(trained.home, trained.ids["id3"], "recording", tmp_path / name) for name in ("a.gz", "b.gz")
    )
    assert first.read_bytes() == second.read_bytes()


def record_long_run(trained: Trained, entries: int) -> None:
    """Fill the stopped run's record with what a long run on MiniLM leaves: 100 tensors, 120 frames."""
    draw = np.random.default_rng(0)
    tensors = np.sort(draw.integers(0, 101, entries)).astype(np.int32)
    with RunWriter(Runs(trained.home).folder(trained.stopped).database) as sink:
        for step in range(0, 2000, 5):
            for key in ("train/loss", "train/accuracy", "gradient/norm", "lr"):
                sink.scalar(key, step, float(draw.random()))
        for frame in range(120):
            counts = np.bincount(tensors[: entries * (frame + 1) // 120], minlength=101)
            sink.frame("mask", frame * 10, {"count": counts})
            sink.frame(
                "change", frame * 10, {n: draw.random(36).astype(np.float32) for n in ("magnitude", "direction")}
            )
        index = draw.integers(0, 11_000_000, entries).astype(np.int32)
        steps = np.sort(draw.integers(0, 700, entries)).astype(np.int32)
        sink.frame("selected", 1190, {"tensor": tensors, "index": index, "step": steps}, keep=True)


@pytest.mark.parametrize(("entries", "exact"), [(26_112, True), (EXACT_ENTRIES + 1, False)])
def test_a_long_run_stays_small(trained: Trained, tmp_path: Path, entries: int, exact: bool) -> None:
    Runs(trained.home).folder(trained.stopped).database.unlink(missing_ok=True)
    record_long_run(trained, entries)
    path = export_run(trained.home, trained.stopped, "recording", tmp_path / "long.json.gz")
    assert path.stat().st_size < LIMIT
    recording = read_recording(path)
    assert len(recording.selection()["index"]) == (entries if exact else 0)
    assert len(recording.frame_index("mask")) <= FRAMES
    assert all(len(steps) <= POINTS for steps, _ in recording.scalars().values())
    _, arrays = recording.frame("mask")
    assert arrays["count"].sum() == entries, "the last frame is kept"
    assert recording.data["selection"] is None or exact


def test_no_frames_and_missing_values(trained: Trained, tmp_path: Path) -> None:
    Runs(trained.home).folder(trained.stopped).database.unlink(missing_ok=True)
    with RunWriter(Runs(trained.home).folder(trained.stopped).database) as sink:
        sink.scalar("train/loss", 1, float("nan"))
    path = export_run(trained.home, trained.stopped, "recording", tmp_path / "r.json.gz")
    recording = read_recording(path)
    assert np.isnan(recording.scalars()["train/loss"][1][0])
    assert recording.frame("mask") is None
    assert recording.scalars(["nothing"]) == {}
    assert recording.meta("layout", []) == []


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32", "bool"])
def test_arrays_come_back(dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 11 - (5 if dtype.startswith("int") else 0)).astype(dtype)
    back = unpack(pack(array))
    np.testing.assert_array_equal(back, array)
    assert back.itemsize <= array.itemsize
    assert unpack(pack(np.zeros((0, 4), np.int64))).shape == (0, 4)


def test_damaged_and_foreign_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    with pytest.raises(DataError, match="cannot be read"):
        read_recording(path)
    path.write_bytes(gzip.compress(b"{}")[:-5])
    with pytest.raises(DataError, match="cannot be read"):
        read_recording(path)
    path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(DataError, match="not a recording"):
        read_recording(path)
