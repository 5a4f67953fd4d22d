"""Coming back to a run: by its link, after a reload, in another browser, after closing it, after stopping it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from engine.jobs import client
from engine.settings import PROJECT
from engine.store.rights import MACHINE
from engine.store.run_reader import RunReader
from tests.load.server import serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
LONG = 8_000
"""Steps of a run that is still going when its watchers have gone."""


def test_run_goes_on_whoever_watches(lab, visit, tmp_path):
    """A link to a live run opens on a server that was just started, through app.py; nobody need keep watching."""
    run_id = lab.submit(steps=LONG)
    lab.at_step(run_id, 5)
    with serving(PROJECT / "app.py", tmp_path / "server.txt") as url:
        first = visit("first", url=url)
        first.open(f"run?run={run_id}")
        first.state("active")
        expect(first.page.get_by_test_id("stTopNavLink")).to_have_count(9)
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

    alone = lab.runs.get(run_id).step
    lab.at_step(run_id, alone + 20)
    client.stop(lab.home, run_id, "keep", MACHINE)
    row = lab.over(run_id)
    assert row.state == "stopped"
    with RunReader(lab.runs.folder(run_id).database) as record:
        steps, _ = record.scalars(["train/loss"], max_points=LONG)["train/loss"]
        masks = [step for _, step in record.frame_index("mask")]
    assert list(steps) == list(range(1, row.step + 1))
    assert masks[0] == 0

    third = visit("third")
    third.open(f"run?run={run_id}")
    third.state("stopped")
    assert third.mask()[0] == masks[-1]
    third.shot("afterwards")


def test_stop_and_resume(lab, visit):
    """Stop asks what to keep; a run whose checkpoint was kept is resumed and finishes."""
    run_id = lab.submit(steps=1_500, seed=1)
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
    assert 10 <= stopped.step < 1_500
    one.mask()
    one.shot("stopped")
    one.click("Resume")

    one.state("active")
    assert lab.over(run_id).step == 1_500
    one.state("finished")
    one.sees("Test accuracy")
    one.shot("resumed")
