"""The newcomer's path through the pages: real weights, real sentences, from the start page to a comparison."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_newcomer(lab, visit):
    """One button, a mask that grows while it is watched, the result, a second run, and the comparison of both."""
    one = visit()
    one.open()
    one.heading("See how fine-tuning works, inside a real model")
    one.sees("A recorded run")
    one.mask()
    one.shot("start")

    one.click("Run the first example")
    run_id = one.run_shown()
    one.state("active")
    one.sees("steps/s")
    step, pixels = one.mask()
    one.shot("live")
    later, changed = one.later_mask(step)
    assert later > step
    assert changed != pixels
    total = lab.runs.get(run_id).steps
    assert 0 < step < total or 0 < later < total, "the mask was to be seen growing while the run trained"
    one.shot("live-later")

    accuracy = lab.over(run_id).summary["accuracy"]
    one.state("finished")
    result = one.page.get_by_test_id("stMetric").filter(has_text="Test accuracy")
    one.sees(f"{100 * accuracy['test']:.1f} %", result)
    one.sees(f"{100 * accuracy['ci95'][0]:.1f} to {100 * accuracy['ci95'][1]:.1f}", result)
    one.mask()
    one.shot("finished")
    one.pick("Test result")
    one.sees("Most confidently right")
    one.shot("result")

    one.walk("Launch")
    one.choose("Method", "BitFit · selective")
    one.write("Steps", "40")
    one.sees("5,888 asked for")
    one.shot("plan")
    one.click("Launch")
    other = one.run_shown()
    lab.over(other)
    one.state("finished")
    assert lab.runs.get(other).plan["params"]["method"] == 5_888

    one.open(f"compare?runs={run_id},{other}")
    one.heading("Compare")
    one.sees("What can be concluded")
    one.sees("BitFit")
    one.shot("compare")


def test_a_model_and_a_file_of_ones_own(lab, visit):
    """Paths are typed, columns are found, and the run starts."""
    one = visit()
    one.open("launch")
    one.choose("Model", "A folder on this machine")
    one.write("Folder", str(lab.folder / "model"))
    one.choose("Dataset", "A file on this machine")
    one.write("Path of the file", str(lab.folder / "data.tsv"))
    one.sees("400 rows")
    one.choose("Method", "ID3 · selective")
    one.write("Parameters", "2000")
    one.write("Steps", "40")
    one.sees("2,000 asked for")
    one.shot("plan")
    one.click("Launch")
    row = lab.over(one.run_shown())
    one.state("finished")
    assert (row.spec["method"]["name"], row.spec["method"]["k"]) == ("id3", 2000)
    assert row.spec["model"] == str(lab.folder / "model")
