"""Coming back to a run: by its link, after a reload, in another browser, after closing it, after stopping it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from engine.settings import PROJECT
from engine.store.run_reader import RunReader
from tests.load.server import serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_run_goes_on_whoever_watches(lab, visit, tmp_path):
    """A link to a live run opens on a server that was just started, through app.py; nobody need keep watching."""
    run_id = lab.submit(steps=800)
    lab.at_step(run_id, 5)
    with serving(PROJECT / "app.py", tmp_path / "server.txt") as url:
        first = visit("first", url=url)
        first.open(f"run?run={run_id}")
        first.state("active")
        expect(first.page.get_by_test_id("stTopNavLink")).to_have_count(8)
        step, _ = first.mask()
        first.shot("deep-link")

        first.page.reload()
        first.state("active")
        step, _ = first.later_mask(step)

        second = visit("second", url=url)
        second.open(f"run?run={run_id}")
        second.later_mask(step)
        second.shot("attached")
        for one in (first, second):
            one.all_is_well()
            one.leave()

    assert lab.runs.get(run_id).state == "active", "the run was to go on without its server"
    row = lab.over(run_id)
    assert (row.state, row.step) == ("finished", 800)
    with RunReader(lab.runs.folder(run_id).database) as record:
        losses, _ = record.scalars(["train/loss"], max_points=10_000)["train/loss"]
        masks = [step for _, step in record.frame_index("mask")]
    assert list(losses) == list(range(losses[0], 801))
    assert (masks[0], masks[-1]) == (0, 800)

    third = visit("third")
    third.open(f"run?run={run_id}")
    third.state("finished")
    third.sees("Test accuracy")
    third.shot("afterwards")


def test_stop_and_resume(lab, visit):
    """Stop asks what to keep; a run whose checkpoint was kept is resumed and finishes."""
    run_id = lab.submit(steps=400, seed=1)
    one = visit()
    one.open(f"run?run={run_id}")
    lab.at_step(run_id, 10)
    one.click("Stop")
    dialog = one.page.get_by_role("dialog")
    one.sees("Stop this run?", dialog)
    one.shot("dialog")
    one.click("Stop and keep the checkpoint")

    one.state("stopped")
    stopped = lab.runs.get(run_id)
    assert 10 <= stopped.step < 400
    one.mask()
    one.shot("stopped")
    one.click("Resume")

    one.state("finished")
    assert lab.runs.get(run_id).step == 400
    one.sees("Test accuracy")
    one.shot("resumed")
