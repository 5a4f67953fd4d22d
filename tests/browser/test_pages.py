"""All pages in the dark, and what they make of text that wants to be more than text."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.small import sentences

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
DARK = "rgb(18, 22, 28)"
PAGES = ("", "launch", "run", "compare", "try_it", "in_context", "methods", "data", "engine")
WILD = "<script>window.wild = 1</script> <img src=wild onerror='window.wild = 1'> **wild** [wild](http://wild.test)"
LABELS = {"good": "<b>wild</b> **good**", "bad": "<i>wild</i> :red[bad]"}
INJECTED = """() => [...document.querySelectorAll("[data-testid=stMain] :is(script, img, a, b, i, u, strong, em)")]
    .map(found => found.outerHTML).filter(html => html.includes("wild"))"""


def write_wild(path: Path) -> Path:
    """A file whose texts, labels and column names are full of HTML and Markdown."""
    rows = [f"{text} {WILD}\t{LABELS[label]}" for text, label in sentences(200, seed=1)]
    path.write_text("\n".join(["<u>wild</u> **text**\t_wild_ label", *rows]) + "\n", encoding="utf-8")
    return path


def test_text_stays_text(lab, visit):
    """HTML and Markdown in a file's texts, labels, column names and name are shown as they are."""
    data = write_wild(lab.folder / "**wild** <b>wild<b>.tsv")
    choice = {"source": str(data), "text": "<u>wild</u> **text**", "label": "_wild_ label"}
    run_id = lab.submit("full", budget=None, dataset=choice, steps=4)
    assert lab.over(run_id).state == "finished"
    one = visit()
    for page, told in [
        (f"launch?like={run_id}", "The data, as the model will see them"),
        (f"run?run={run_id}&view=result", "Most confidently right"),
        (f"run?run={run_id}&view=recipe", "The command that repeats it"),
        ("run", "Choose a run"),
        (f"compare?runs={run_id}", "What can be concluded"),
        (f"try_it?runs={run_id}", "Type a text"),
    ]:
        one.open(page)
        one.sees(told)
        if page.startswith("try_it"):
            one.pick("Pick a test example")
            one.sees(WILD)
        one.shot(page.partition("?")[0])
        assert one.page.evaluate(INJECTED) == [], page
        assert one.page.evaluate("window.wild") is None, page


def test_every_page_in_the_dark(lab, visit):
    """Every page follows the system's dark theme, and nothing goes wrong on any."""
    run_id = lab.submit("lora", steps=4)
    lab.over(run_id)
    one = visit(color_scheme="dark")
    for page in [*PAGES, f"run?run={run_id}&t=4"]:
        one.open(page)
        background = one.page.get_by_test_id("stApp").evaluate("app => getComputedStyle(app).backgroundColor")
        assert background == DARK, page
        one.shot(page.partition("?")[0] or "start")
    assert one.page.get_by_test_id("stMetric").count() > 0


def test_the_plan_and_what_is_wrong_with_it_stay_in_view(lab, visit):
    """On a low screen, with the form scrolled to its end, the reason and the button are still there."""
    one = visit()
    one.page.set_viewport_size({"width": 1366, "height": 768})
    one.open("launch")
    one.write("Parameters", "0")
    one.page.get_by_role("spinbutton", name="Runs, each with its own seed").scroll_into_view_if_needed()
    plan = one.page.locator(".st-key-plan")
    expect(plan.get_by_text("trains nothing")).to_be_in_viewport()
    button = plan.get_by_role("button", name="Launch")
    expect(button).to_have_count(1)  # that of the state before goes when the page has run
    expect(button).to_be_in_viewport()
    expect(button).to_be_disabled()
    one.all_is_well()
