"""Whose turn it is."""

from pathlib import Path

from engine.jobs.fairness import fits, next_run
from engine.spec import parse_spec
from engine.store.runs import Runs


def test_owners_take_turns_whatever_they_queue(tmp_path: Path) -> None:
    runs = Runs(tmp_path)

    def submit(owner: str, priority: int = 0, device: str = "cpu") -> str:
        spec = parse_spec({"method": "full", "train": {"device": device}})
        return runs.submit(spec, {}, owner=owner, priority=priority)

    greedy = [submit("ada") for _ in range(5)]
    bob, eve = submit("bob"), submit("eve")
    order = []
    while (queued := runs.list(states=["queued"])) and (
        row := next_run(queued, runs.list(states=["active"]), runs.last_turns(), "cpu:0")
    ):
        order.append(row.id)
        runs.claim(row.id, "cpu:0", {})
        runs.finish(row.id, "finished")
    assert order == [greedy[0], bob, eve, *greedy[1:]]
    gpu, urgent = submit("bob", device="cuda:1"), submit("ada", priority=1)
    queued = runs.list(states=["queued"])
    assert next_run(queued, [], runs.last_turns(), "cpu:0").id == urgent  # type: ignore[union-attr]
    assert next_run(queued, [], {}, "cuda:0") is None
    assert next_run(queued, [], {}, "cuda:1").id == gpu  # type: ignore[union-attr]
    assert fits(runs.get(urgent), "cpu:3")


def test_one_with_a_run_going_waits_for_those_without(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    spec = parse_spec({"method": "full", "train": {"device": "cpu"}})
    going, mine, other = (runs.submit(spec, {}, owner=owner) for owner in ("ada", "ada", "bob"))
    runs.claim(going, "cpu:0", {})
    turns = {"ada": 1.0, "bob": 2.0}
    chosen = next_run([runs.get(mine), runs.get(other)], [runs.get(going)], turns, "cpu:1")
    assert chosen is not None
    assert chosen.id == other
