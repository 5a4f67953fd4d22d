"""Chromium, a Streamlit server and an engine for the browser tests: one of each, ended with the last of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.jobs import client
from engine.jobs.process import Identity, is_alive, kill, terminate
from engine.plan import make_plan
from engine.settings import PROJECT
from engine.spec import parse_spec
from engine.store.rights import MACHINE
from engine.store.run_row import RunRow
from engine.store.runs import Runs
from tests.load.server import serving
from tests.small import spec_data

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.visitor import Visitor

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MISSING = "needs Chromium: install it (on Debian `apt-get install chromium`), then run `pytest tests/browser`"
RUN_SECONDS = 240.0


@dataclass(frozen=True)
class Lab:
    """A running lab with an empty store.

    Attributes:
        url: where it is served.
        home: its store.
        folder: holds the small model, the small data file, and what a test writes.
        runs: the store's runs.
    """

    url: str
    home: Path
    folder: Path
    runs: Runs

    def submit(
        self,
        method: str = "id3",
        budget: int | None = 2000,
        dataset: dict[str, Any] | None = None,
        **train: Any,
    ) -> str:
        """Queue a run on the small model, as the command line would."""
        given = spec_data(self.folder, method, **train)
        given["budget"] = {"params": budget} if budget else None
        if dataset:
            given["dataset"] = dataset
        plan = make_plan(parse_spec(given))
        return client.submit(self.home, plan.spec, plan.to_json(), owner=MACHINE)

    def at_step(self, run_id: str, step: int) -> RunRow:
        """The run once it has trained so far."""
        end = time.monotonic() + RUN_SECONDS
        while (row := self.runs.get(run_id)).step < step:
            assert not row.is_over, f"{row.state}: {row.error}"
            assert time.monotonic() < end, f"step {row.step} of {row.steps}"
            time.sleep(0.1)
        return row

    def over(self, run_id: str) -> RunRow:
        """The run once it has ended."""
        return client.wait_until_over(self.home, run_id, RUN_SECONDS)


@pytest.fixture(scope="package")
def chromium() -> str:
    """Chromium's place; without it the test is skipped, unless a browser is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("PEFTSCOPE_REQUIRE_BROWSER"):
        pytest.fail(MISSING)
    if found is None:
        pytest.skip(MISSING)
    return found


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser; each visitor has a profile of their own in it."""
    from playwright.sync_api import sync_playwright

    # Ended before other tests begin: while it lives, no event loop can be started in this thread.
    with sync_playwright() as playwright:
        shown = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield shown
        shown.close()


@pytest.fixture(scope="package")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server on an empty store; its engine is started by the first run, as a newcomer's is."""
    folder = tmp_path_factory.mktemp("browser")
    home = folder / "home"
    spec_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSCOPE_HOME", str(home))
        patch.setenv("PEFTSCOPE_ROOTS", str(folder))
        patch.setenv("PEFTSCOPE_IDLE_MINUTES", "3")
        runs = Runs(home)
        try:
            with serving(PROJECT / "app.py", folder / "server.txt") as url:
                yield Lab(url, home, folder, runs)
        finally:
            runs.close()
            end_engine(home)


def end_engine(home: Path) -> None:
    """End the engine of a home and its workers, each by its own number."""
    state = client.engine_state(home)
    if state is not None:
        terminate(state.identity)
        end = time.monotonic() + 20
        while is_alive(state.identity) and time.monotonic() < end:
            time.sleep(0.05)
    for worker in client.engine_workers(home):
        kill(Identity(worker.pid, worker.created))


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, lab: Lab) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors, each with a browser profile of their own: ``visit(url=..., color_scheme="dark")``."""
    from tests.browser.visitor import Visitor

    shots = Path(os.environ.get("PEFTSCOPE_SCREENSHOTS") or PROJECT / "out" / "screenshots")
    contexts = []

    def enter(name: str = "", url: str = lab.url, **settings: Any) -> Visitor:
        context = browser.new_context(viewport={"width": 1366, "height": 900}, reduced_motion="reduce", **settings)
        contexts.append(context)
        title = "-".join([request.node.name.removeprefix("test_").replace("_", "-"), *filter(None, [name])])
        return Visitor(context.new_page(), url, shots, title)

    yield enter
    for context in contexts:
        context.close()
