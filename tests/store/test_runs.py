"""Runs are rows that change state once, by whoever may, and files that follow them."""

import json
import threading
from pathlib import Path

import pytest

from engine.errors import NotAllowed, SpecError, StoreError, UnknownName
from engine.spec import RunSpec, parse_spec, read_spec
from engine.store.control import RowControl
from engine.store.paths import Layout, network_type
from engine.store.provenance import code_hash, collect, write_provenance
from engine.store.rights import MACHINE, may_stop
from engine.store.run_row import STATES, TRANSITIONS
from engine.store.runs import Runs


def spec(seed: int = 0, method: str = "id3", device: str = "cpu", **train: object) -> RunSpec:
    return parse_spec({"method": method, "train": {"seed": seed, "device": device, "steps": 7, **train}})


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def submit(runs: Runs, **settings: object) -> str:
    return runs.submit(spec(**settings), {"params": 5}, owner="ada")  # type: ignore[arg-type]


def test_a_submitted_run_is_queued_with_all_that_was_asked(runs: Runs) -> None:
    run_id = runs.submit(spec(seed=3).canonical(), {"params": 5}, owner="ada", parent="x", priority=2)
    row = runs.get(run_id)
    assert (row.state, row.phase, row.owner, row.parent, row.priority) == ("queued", "queued", "ada", "x", 2)
    assert (row.method, row.model, row.dataset) == ("id3", "minilm-l6", "rotten_tomatoes")
    assert (row.seed, row.seeds, row.device, row.steps) == (3, [3, 3, 3, 3], "cpu", 7)
    assert row.plan == {"params": 5}
    assert row.spec_hash == spec(seed=3).hash()
    assert read_spec(runs.folder(run_id).spec) == spec(seed=3) == parse_spec(row.spec)
    date, clock, method, letters = run_id.split("-")
    assert (len(date), len(clock), method, len(letters)) == (8, 6, "id3", 4)


def test_an_invalid_spec_leaves_nothing_behind(runs: Runs) -> None:
    with pytest.raises(SpecError, match="steps"):
        runs.submit({"method": "id3", "train": {"steps": -1}}, {}, owner="ada")
    assert runs.list() == []
    assert runs.usage() == {}


def test_of_many_who_claim_a_run_one_gets_it(runs: Runs) -> None:
    ids = [submit(runs) for _ in range(10)]
    won: list[str] = []
    together = threading.Barrier(4)

    def take(number: int) -> None:
        mine = Runs(runs.layout.home)
        together.wait()
        won.extend(run_id for run_id in ids if mine.claim(run_id, "cpu:0", {"pid": number}))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(ids)
    assert all(row.state == "active" and row.attempts == 1 for row in runs.list())


@pytest.mark.parametrize("source", STATES)
@pytest.mark.parametrize("target", STATES)
def test_only_allowed_transitions_happen(runs: Runs, source: str, target: str) -> None:
    run_id = submit(runs)
    runs.database.change("UPDATE run SET state = ? WHERE id = ?", (source, run_id))
    allowed = (source, target) in TRANSITIONS
    assert runs.move(run_id, target) == allowed  # type: ignore[arg-type]
    assert runs.get(run_id).state == (target if allowed else source)


def test_a_finished_run_keeps_its_summary_and_is_not_finished_twice(runs: Runs) -> None:
    run_id = submit(runs)
    runs.claim(run_id, "cpu:0", {"pid": 1})
    runs.progress(run_id, "training", 5, 7)
    runs.progress(run_id, "evaluating", 1, 3)
    row = runs.get(run_id)
    assert (row.phase, row.phase_done, row.phase_total, row.step, row.steps) == ("evaluating", 1, 3, 5, 7)
    assert runs.finish(run_id, "finished", summary={"accuracy": 0.8})
    assert not runs.finish(run_id, "failed", error="late")
    row = runs.get(run_id)
    assert (row.state, row.phase, row.summary, row.error) == ("finished", "finished", {"accuracy": 0.8}, None)
    assert row.is_over
    runs.progress(run_id, "training", 6, 7)
    assert runs.get(run_id).phase == "finished"


def test_an_identical_run_has_the_same_spec_seeds_and_device(runs: Runs) -> None:
    run_id = submit(runs, seed=1)
    assert runs.find_identical(spec(seed=1)) is None, "not finished yet"
    runs.claim(run_id, "cpu:0", {})
    runs.finish(run_id, "finished")
    found = runs.find_identical(spec(seed=1))
    assert found is not None
    assert found.id == run_id
    same = spec(seed=9, seeds={"init": 1, "head": 1, "data": 1, "method": 1})
    assert runs.find_identical(same) is not None, "the seeds that take effect count"
    for other in (spec(seed=2), spec(seed=1, device="cuda"), spec(seed=1, method="lora"), spec(seed=1, dropout=0.1)):
        assert runs.find_identical(other) is None
    runs.hide(run_id)
    assert runs.find_identical(spec(seed=1)) is None


def test_lists_are_newest_first_and_filtered(runs: Runs) -> None:
    first, second, third = submit(runs), submit(runs, method="lora"), submit(runs, seed=1)
    assert [row.id for row in runs.list()] == [third, second, first]
    assert [row.id for row in runs.list(method="id3", limit=1)] == [third]
    assert {row.id for row in runs.list(spec_hash=spec().hash())} == {first, third}
    assert runs.list(owner="bob") == []
    runs.claim(second, "cpu:0", {})
    assert [row.id for row in runs.list(states=["active", "failed"])] == [second]
    assert [row.id for row in runs.list(ids=[first, second])] == [second, first]
    runs.hide(first)
    assert len(runs.list()) == 2
    assert len(runs.list(hidden=True)) == 3


def test_a_run_is_found_by_a_part_of_its_id_that_fits_once(runs: Runs) -> None:
    first, second = submit(runs), submit(runs)
    assert runs.find(first).id == first
    assert runs.find(first[-4:]).id == first
    assert runs.find("last").id == second
    for text in ("2", "nothing", ""):
        with pytest.raises(UnknownName):
            runs.find(text)


@pytest.mark.parametrize("run_id", ["../secret", "a/b", "", ".", "a" * 200, "a\x00"])
def test_an_id_from_a_link_never_leaves_the_folder(runs: Runs, run_id: str) -> None:
    with pytest.raises(UnknownName):
        runs.folder(run_id)


def test_the_version_grows_when_a_row_changes_but_not_with_a_beat(runs: Runs) -> None:
    seen = [runs.version()]
    run_id = submit(runs)
    seen.append(runs.version())
    runs.claim(run_id, "cpu:0", {})
    seen.append(runs.version())
    runs.progress(run_id, "training", 1, 7)
    seen.append(runs.version())
    assert seen == sorted(set(seen))
    runs.beat([run_id])
    assert runs.version() == seen[-1]
    assert runs.get(run_id).beat is not None


def test_only_the_owner_or_the_machines_user_may_stop(runs: Runs) -> None:
    run_id = submit(runs)
    runs.claim(run_id, "cpu:0", {})
    row = runs.get(run_id)
    assert [may_stop(row, asker) for asker in ("ada", MACHINE, "bob", "")] == [True, True, False, False]
    with pytest.raises(NotAllowed, match="somebody else"):
        runs.request_stop(run_id, "keep", "bob")
    control = RowControl(runs, run_id, every=0)
    assert control.stop_requested() is None
    runs.request_stop(run_id, "keep", "ada")
    assert control.stop_requested() == "keep"
    asked = runs.get(run_id).stop_asked
    runs.request_stop(run_id, "discard", MACHINE)
    assert control.stop_requested() == "discard"
    assert runs.get(run_id).stop_asked == asked
    runs.finish(run_id, "stopped")
    with pytest.raises(SpecError, match="stopped"):
        runs.request_stop(run_id, "keep", "ada")


def test_a_queued_run_stops_at_once_and_resumes(runs: Runs) -> None:
    run_id = submit(runs)
    assert runs.request_stop(run_id, "keep", "ada").state == "stopped"
    with pytest.raises(NotAllowed):
        runs.resume(run_id, "bob")
    row = runs.resume(run_id, "ada")
    assert (row.state, row.finished, row.stop) == ("queued", None, None)
    with pytest.raises(SpecError, match="cannot be resumed"):
        runs.resume(run_id, "ada")


def test_a_run_that_is_over_can_be_deleted_with_its_files(runs: Runs) -> None:
    run_id = submit(runs)
    with pytest.raises(SpecError, match="not over"):
        runs.delete(run_id)
    runs.request_stop(run_id, "keep", "ada")
    runs.folder(run_id).checkpoint.mkdir()
    (runs.folder(run_id).checkpoint / "weights").write_bytes(b"x" * 1000)
    assert runs.usage()[run_id] > 1000
    assert runs.delete(run_id) > 1000
    assert not runs.folder(run_id).root.exists()
    with pytest.raises(UnknownName):
        runs.get(run_id)


def test_a_full_store_refuses_a_run_and_keeps_the_others(runs: Runs) -> None:
    run_id = submit(runs)
    connection = runs.database._open()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="full"):
        runs.submit(spec(), {"big": "x" * 100_000}, owner="ada")
    assert [row.id for row in runs.list()] == [run_id]
    assert list(runs.usage()) == [run_id]


def test_network_folders_are_told_from_local_ones() -> None:
    mounts = [
        ("/", "ext4"),
        ("/home", "nfs4"),
        ("/home/ada/local", "xfs"),
        ("/mnt/share", "CIFS"),
        ("/x", "fuse.sshfs"),
    ]
    assert network_type(Path("/var/lib"), mounts) is None
    assert network_type(Path("/home/ada/runs"), mounts) == "nfs4"
    assert network_type(Path("/home/ada/local/runs"), mounts) is None
    assert network_type(Path("/homestead"), mounts) is None
    assert network_type(Path("/mnt/share"), mounts) == "cifs"
    assert network_type(Path("/x/y"), mounts) == "fuse.sshfs"
    assert network_type(Path("/anything"), []) is None


def test_a_home_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Runs(tmp_path / "file" / "home").list()


def test_provenance_names_versions_hardware_and_code(tmp_path: Path) -> None:
    provenance = collect({"id": "m", "sha256": "ab"}, {"id": "d"})
    assert provenance["packages"]["numpy"]
    assert provenance["hardware"]["memory_bytes"] > 0
    assert provenance["weights"] == {"id": "m", "sha256": "ab"}
    write_provenance(tmp_path / "provenance.json", provenance)
    assert json.loads((tmp_path / "provenance.json").read_text()) == provenance
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]


def test_the_code_hash_changes_with_any_python_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "notes.txt").write_text("1")
    first = code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("2")
    assert code_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    second = code_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_hash(tmp_path)}) == 3


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    folder = layout.run("20261122-101500-id3-abcd")
    names = [folder.spec, folder.provenance, folder.database, folder.log, folder.checkpoint, folder.result]
    assert [path.name for path in names] == [
        "spec.yaml",
        "provenance.json",
        "run.db",
        "log.txt",
        "checkpoint",
        "result",
    ]
    assert folder.root == tmp_path / "runs" / "20261122-101500-id3-abcd"
