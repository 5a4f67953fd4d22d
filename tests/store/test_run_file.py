"""What a run records is there to be read: soon, whole, thinned evenly, and after a kill."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.settings import PROJECT
from engine.store.database import open_for_writing
from engine.store.run_file import RunReader, RunWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def test_everything_written_is_read_back(path: Path) -> None:
    with RunWriter(path) as writer, RunReader(path) as reader:
        writer.phase("training", 3, 10)
        for step in range(3):
            writer.scalar("train/loss", step, 1 / (step + 1))
        writer.scalar("lr", 2, 1e-4)
        writer.frame("mask", 2, {"counts": np.arange(4, dtype=np.int64), "part": np.array([[True], [False]])})
        writer.note("warning", "ranks never moved", 2)
        writer.meta("baseline", {"majority": 0.5, "labels": ["é", "<b>"]})
        writer.flush()
        steps, values = reader.scalars(["train/loss"])["train/loss"]
        assert steps.tolist() == [0, 1, 2]
        assert values.tolist() == [1.0, 0.5, 1 / 3]
        assert set(reader.scalars()) == {"train/loss", "lr"} == set(reader.keys())
        assert reader.latest() == {"lr": (2, 1e-4), "train/loss": (2, 1 / 3)}
        frame = reader.frame("mask")
        assert frame is not None
        assert frame[0] == 2
        assert frame[1]["counts"].dtype == np.int64
        assert frame[1]["part"].tolist() == [[True], [False]]
        assert [(note.level, note.text, note.step) for note in reader.notes()] == [("warning", "ranks never moved", 2)]
        assert reader.meta("baseline") == {"majority": 0.5, "labels": ["é", "<b>"]}
        assert reader.metas().keys() == {"baseline"}
        phase = reader.phase()
        assert (phase.phase, phase.done, phase.total) == ("training", 3, 10)


def test_a_missing_file_reads_as_an_empty_run_that_may_still_come(path: Path) -> None:
    reader = RunReader(path)
    assert reader.version() == 0
    assert reader.scalars() == {}
    assert reader.frame("mask") is None
    assert reader.frame_index("mask") == []
    assert reader.selection()["index"].size == 0
    assert reader.phase().phase == "queued"
    assert not path.exists()
    with RunWriter(path) as writer:
        writer.scalar("lr", 0, 1.0)
    assert reader.latest() == {"lr": (0, 1.0)}


def test_the_version_grows_with_each_commit_and_only_then(path: Path) -> None:
    with RunWriter(path, commit_seconds=60) as writer, RunReader(path) as reader:
        before = reader.version()
        writer.scalar("lr", 0, 1.0)
        assert reader.version() == before
        writer.flush()
        assert reader.version() == before + 1
        writer.flush()
        assert reader.version() == before + 1


def test_a_silent_writer_still_commits_within_a_second(path: Path) -> None:
    with RunWriter(path) as writer, RunReader(path) as reader:
        writer.scalar("lr", 0, 1.0)
        writer.scalar("lr", 1, 0.5)
        began = time.monotonic()
        while reader.latest() != {"lr": (1, 0.5)}:
            assert time.monotonic() - began < 4, "a second is promised; a stalled machine gets three more"
            time.sleep(0.05)


def test_a_new_phase_and_a_note_are_seen_at_once(path: Path) -> None:
    told = []
    with RunWriter(path, lambda *state: told.append(state), commit_seconds=60) as writer, RunReader(path) as reader:
        writer.phase("loading")
        assert reader.phase().phase == "loading"
        writer.note("info", "hello")
        assert len(reader.notes()) == 1
        writer.phase("training", 0, 5)
        writer.phase("training", 1, 5)
        writer.phase("training", 5, 5)
        writer.phase("evaluating", 0, 9)
    assert told == [("loading", 0, 0), ("training", 0, 5), ("training", 5, 5), ("evaluating", 0, 9)]


def test_a_busy_queue_does_not_end_a_run_and_is_told_later(path: Path) -> None:
    """Progress goes into another file, which somebody may hold for a moment."""
    told: list[tuple[object, ...]] = []

    def progress(*state: object) -> None:
        if busy:
            raise StoreError("Another program holds the file.")
        told.append(state)

    busy = True
    with RunWriter(path, progress, commit_seconds=60) as writer, RunReader(path) as reader:
        writer.phase("loading")
        writer.scalar("lr", 0, 1.0)
        writer.flush()
        assert reader.latest() == {"lr": (0, 1.0)}
        busy = False
        writer.phase("training", 0, 5)
    assert told == [("loading", 0, 0), ("training", 0, 5)]


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """SQLite refuses one of two that switch a file to WAL at the same moment, without the usual waiting."""

    def open_it(file: Path, ready: threading.Barrier) -> None:
        ready.wait()
        open_for_writing(file, "CREATE TABLE IF NOT EXISTS t(x)").close()

    for number in range(15):
        ready = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            for opened in [pool.submit(open_it, tmp_path / f"{number}.db", ready) for _ in range(4)]:
                opened.result()


def test_losses_that_are_no_numbers_survive(path: Path) -> None:
    with RunWriter(path) as writer:
        for step, value in enumerate([1.0, float("inf"), float("nan")]):
            writer.scalar("train/loss", step, value)
        writer.meta("last", float("nan"))
    reader = RunReader(path)
    np.testing.assert_equal(reader.scalars()["train/loss"][1], [1.0, np.inf, np.nan])
    assert np.isnan(reader.latest()["train/loss"][1])
    assert np.isnan(reader.meta("last"))


@pytest.mark.parametrize("array", [np.zeros(0, np.int32), np.float32(3.5), np.arange(6).reshape(2, 3).T])
def test_frames_keep_shape_type_and_order(path: Path, array: np.ndarray) -> None:
    with RunWriter(path) as writer:
        writer.frame("odd", 0, {"array": array})
    found = RunReader(path).frame("odd")
    assert found is not None
    np.testing.assert_array_equal(found[1]["array"], array)
    assert found[1]["array"].shape == np.shape(array)


@pytest.mark.parametrize("count", [1, 50, 119, 120, 121, 700, 5000])
def test_frames_are_thinned_evenly_with_first_and_latest_kept(path: Path, count: int) -> None:
    with RunWriter(path, commit_seconds=0.01) as writer:
        for number in range(count):
            writer.frame("mask", number * 3, {"n": np.array([number])})
            writer.frame("selected", number, {"n": np.array([number])}, keep=True)
    reader = RunReader(path)
    steps = [step for _, step in reader.frame_index("mask")]
    assert steps[0] == 0
    assert steps[-1] == (count - 1) * 3
    assert len(steps) <= 120
    assert len(steps) >= min(count, 60)
    gaps = set(np.diff(steps)[:-1].tolist())
    assert len(gaps) <= 1, "all gaps but the last are equal"
    assert len(reader.frame_index("selected")) == count


def test_thinning_goes_on_evenly_after_reopening(path: Path) -> None:
    for start in range(0, 600, 50):
        with RunWriter(path) as writer:
            for step in range(start, start + 50):
                writer.frame("mask", step, {"n": np.array([step])})
    steps = [step for _, step in RunReader(path).frame_index("mask")]
    assert steps == [*range(0, 600, 8), 599]


def test_a_frame_that_was_thinned_away_gives_its_neighbour(path: Path) -> None:
    with RunWriter(path) as writer:
        for step in (5, 10, 20):
            writer.frame("mask", step, {"n": np.array([step])})
    reader = RunReader(path)
    versions = [version for version, _ in reader.frame_index("mask")]

    def step_of(**which: int) -> int:
        frame = reader.frame("mask", **which)
        assert frame is not None
        return frame[0]

    assert step_of() == 20
    assert [step_of(version=version) for version in versions] == [5, 10, 20]
    assert step_of(step=19) == 10
    assert step_of(step=1) == 5
    assert step_of(version=0) == 5


def test_selected_entries_are_joined_and_cut_at_a_step(path: Path) -> None:
    with RunWriter(path) as writer:
        for last in (4, 8):
            steps = np.arange(last - 4, last, dtype=np.int32)
            writer.frame("selected", last, {"tensor": steps % 2, "index": steps * 10, "step": steps}, keep=True)
    reader = RunReader(path)
    assert reader.selection()["step"].tolist() == list(range(8))
    early = reader.selection(until_step=5)
    assert early["index"].tolist() == [0, 10, 20, 30, 40, 50]
    assert early["tensor"].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_long_series_is_thinned_without_losing_a_spike(path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000)
    values[7_777] = 50.0
    values[13_131] = -50.0
    with RunWriter(path) as writer:
        for step, value in enumerate(values):
            writer.scalar("train/loss", step * 2, value)
    steps, shown = RunReader(path).scalars(max_points=500)["train/loss"]
    assert 250 <= len(steps) <= 500
    assert shown.max() == 50.0
    assert shown.min() == -50.0
    assert steps[0] == 0
    assert steps[-1] == 2 * 19_999
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(shown, values[steps // 2])


def test_a_rewound_run_records_the_same_again(path: Path) -> None:
    def record(writer: RunWriter, first: int) -> None:
        for step in range(first, 300):
            writer.scalar("lr", step, step / 2)
            writer.frame("mask", step, {"n": np.array([step])})

    whole, cut = path.with_name("whole.db"), path
    with RunWriter(whole) as writer:
        record(writer, 0)
    with RunWriter(cut) as writer:
        record(writer, 0)
        writer.note("info", "killed")
    with RunWriter(cut) as writer:
        writer.rewind(100)
        assert RunReader(cut).latest() == {"lr": (100, 50.0)}
        record(writer, 101)
    first, second = RunReader(whole), RunReader(cut)
    np.testing.assert_array_equal(first.scalars()["lr"], second.scalars()["lr"])
    kept = [step for _, step in second.frame_index("mask")]
    assert kept[0] == 0
    assert kept[-1] == 299
    assert len(second.notes()) == 1


def test_a_second_value_of_a_step_replaces_the_first(path: Path) -> None:
    with RunWriter(path) as writer:
        for value in (1, 2):
            writer.scalar("lr", 0, value)
            writer.frame("mask", 0, {"n": np.array([value])})
            writer.flush()
    reader = RunReader(path)
    assert reader.latest() == {"lr": (0, 2.0)}
    assert [step for _, step in reader.frame_index("mask")] == [0]
    assert reader.frame("mask")[1]["n"] == 2  # type: ignore[index]


def test_only_one_may_write(path: Path) -> None:
    with RunWriter(path), pytest.raises(StoreError, match="Another process is writing"):
        RunWriter(path)
    RunWriter(path).close()


def test_a_closed_run_is_a_single_file_to_copy(path: Path) -> None:
    with RunWriter(path) as writer:
        writer.scalar("lr", 0, 1.0)
    assert not path.with_name("run.db-wal").exists()
    assert path.read_bytes()[18:20] == b"\1\1", "not in WAL mode, which needs a side file even to read"
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    assert RunReader(copy).latest() == {"lr": (0, 1.0)}


def test_a_writer_used_after_its_end_says_so(path: Path) -> None:
    writer = RunWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.scalar("lr", 0, 1.0)


def test_a_file_that_is_no_database_is_a_store_error(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="damaged"):
        RunReader(path).version()
    with pytest.raises(StoreError, match="damaged"):
        RunWriter(path)


def _python(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


WRITE_FOREVER = """
import sys, time, numpy as np
from pathlib import Path
from engine.store.run_file import RunWriter
writer = RunWriter(Path(sys.argv[1]))
step = 0
while True:
    writer.scalar("step", step, time.time())
    writer.frame("mask", step, {"n": np.full(2000, step)})
    step += 1
    print(step, flush=True)
    time.sleep(0.002)
"""


def test_a_kill_loses_at_most_the_last_second(path: Path) -> None:
    process = _python(WRITE_FOREVER, str(path))
    assert process.stdout is not None
    until = time.time() + 30
    while RunReader(path).latest().get("step", (0, 0))[0] < 500 and time.time() < until:
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    killed = time.time()
    process.communicate()
    reader = RunReader(path)
    steps, times = reader.scalars(max_points=10**6)["step"]
    assert steps.tolist() == list(range(len(steps)))
    assert killed - times[-1] < 1.0
    latest = reader.frame("mask")
    assert latest is not None
    assert (latest[1]["n"] == latest[0]).all()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with RunWriter(path) as writer:  # the dead writer's claim died with it
        writer.scalar("step", 10**6, 0.0)


def test_a_full_disk_is_reported_and_loses_nothing_recorded(path: Path) -> None:
    """The real limit of SQLite's own pages; when there is room again the same writer goes on."""
    writer = RunWriter(path, commit_seconds=60)
    writer.scalar("lr", 0, 1.0)
    writer.frame("mask", 0, {"n": np.arange(10)})
    writer.flush()
    pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
    writer._connection.execute(f"PRAGMA max_page_count={pages + 8}")
    writer.frame("mask", 1, {"n": np.arange(50_000)})
    writer.scalar("lr", 1, 0.5)
    with pytest.raises(StoreError, match="full") as caught:
        writer.flush()
    assert "Free some space" in caught.value.todo
    reader = RunReader(path)
    assert reader.latest() == {"lr": (0, 1.0)}
    frame = reader.frame("mask")
    assert frame is not None
    assert frame[1]["n"].tolist() == list(range(10))
    writer._connection.execute("PRAGMA max_page_count=1000000")
    writer.close()
    assert reader.latest() == {"lr": (1, 0.5)}
    assert [step for _, step in reader.frame_index("mask")] == [0, 1]


UNTIL_FULL = """
import resource, sys, time, numpy as np
from pathlib import Path
from engine.errors import StoreError
from engine.store.run_file import RunWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
writer = RunWriter(Path(sys.argv[1]), commit_seconds=60)
step = durable = 0
try:
    while True:
        writer.scalar("step", step, step)
        writer.frame("mask", step, {"n": np.full(500, step)}, keep=True)
        step += 1
        if step % 10 == 0:
            writer.flush()
            durable = step
        time.sleep(0.002)
except StoreError as error:
    print(durable)
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are POSIX")
def test_a_file_size_limit_is_reported_and_loses_nothing_recorded(path: Path) -> None:
    out, err = _python(UNTIL_FULL, str(path)).communicate(timeout=60)
    assert out, err
    durable, message = out.split("\n", 1)
    assert int(durable) > 20
    assert "Free some space" in message
    reader = RunReader(path)
    steps = reader.scalars(max_points=10**6)["step"][0]
    assert steps.tolist() == list(range(len(steps)))
    assert len(steps) >= int(durable)
    assert len(reader.frame_index("mask")) == len(steps)
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
