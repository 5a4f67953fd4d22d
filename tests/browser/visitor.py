"""Somebody with a browser: finds things on the lab's pages as people do, and notices whatever goes wrong."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, TimeoutError, expect

SECONDS = 90.0
"""How long to wait for anything; a page of its own needs a second or two on a quiet machine."""
HIGHEST = 4000
"""Pixels of the highest screenshot."""
SETTLED = (
    "[data-testid=stApp][data-test-script-state=notRunning][data-test-connection-state=CONNECTED]"
    ":not(:has([data-testid=stSkeleton]))"
)


class Visitor:
    """A page in a browser.

    Args:
        page: the browser's page.
        url: the lab's address.
        shots: folder for screenshots.
        name: begins the names of the screenshots.
    """

    def __init__(self, page: Page, url: str, shots: Path, name: str) -> None:
        self.page, self.url, self._shots, self._name = page, url, shots, name
        self._taken = 0
        self.problems: list[str] = []
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._stays_here)

    def _note(self, message: ConsoleMessage) -> None:
        # Below a page's own path Streamlit first looks for its server there, and is told 404.
        if message.type == "error" and "/_stcore/" not in message.location["url"]:
            self.problems.append(f"{message.text} ({message.location['url']})")

    def _stays_here(self, request: Request) -> None:
        if request.url.startswith("http") and not request.url.startswith(self.url):
            self.problems.append(f"asked another server for {request.url}")

    def open(self, path: str = "") -> None:
        """Go to an address of the lab."""
        self.page.goto(f"{self.url}/{path}")
        self.settle()

    def walk(self, title: str) -> None:
        """Use the navigation."""
        self.page.get_by_test_id("stTopNavLink").get_by_text(title, exact=True).click()
        self.heading(title)

    def heading(self, text: str) -> None:
        """Wait until the page with this title is there."""
        expect(self.page.get_by_role("heading", name=text, level=1)).to_be_visible(timeout=1000 * SECONDS)
        self.settle()

    def settle(self) -> None:
        """Wait until the page is drawn, with all its widgets."""
        self.page.wait_for_selector(SETTLED)

    def sees(self, text: str | re.Pattern[str], place: Locator | None = None) -> Locator:
        """Wait until a text is shown, and give where."""
        found = (place or self.page.get_by_test_id("stMain")).get_by_text(text).first
        expect(found).to_be_visible(timeout=1000 * SECONDS)
        return found

    def choose(self, label: str, option: str) -> None:
        """Pick an option of a select box."""
        box, wanted = self.page.get_by_role("combobox", name=label), self.page.get_by_role("option", name=option)
        for _ in range(6):
            self.settle()
            box.click()
            try:
                wanted.click(timeout=5000)
                break
            except TimeoutError:  # a rerun of the page closed the list
                self.page.keyboard.press("Escape")
        self.settle()

    def write(self, label: str, value: str) -> None:
        """Fill a field in."""
        field = self.page.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Enter")
        self.settle()

    def click(self, name: str) -> None:
        """Press a button."""
        # The page's own, or a dialog's: while a script runs, Streamlit's header has a button Stop, too.
        places = self.page.locator("[data-testid=stMain], [role=dialog]")
        places.get_by_role("button", name=name).click()

    def pick(self, option: str) -> None:
        """Pick one of a row of choices."""
        self.page.get_by_test_id("stButtonGroup").get_by_text(option, exact=True).click()
        self.settle()

    def leave(self) -> None:
        """Close the browser."""
        self.page.context.close()

    def run_shown(self) -> str:
        """Wait until a run's page is opened, and give the run's id."""
        self.page.wait_for_url(re.compile(r"run\?(.*&)?run="))
        found = re.search(r"[?&]run=([\w-]+)", self.page.url)
        assert found
        return found[1]

    def state(self, word: str) -> None:
        """Wait until the badge of the run on this page, an icon and a word, says so."""
        self.sees(re.compile(rf"^\w+ {word}$"))
        self.settle()

    def mask(self) -> tuple[int, str]:
        """The step that the picture of the mask shows, and what is drawn, as pixels."""
        canvas = self._mask(r"[\d,]+")
        label, pixels = canvas.evaluate("canvas => [canvas.getAttribute('aria-label'), canvas.toDataURL()]")
        return _step(label), pixels

    def later_mask(self, step: int) -> tuple[int, str]:
        """The picture of the mask once it shows a later step."""
        shown = self._mask(r"[\d,]+")
        end = time.monotonic() + SECONDS
        while _step(shown.get_attribute("aria-label") or "") <= step:
            assert time.monotonic() < end, f"the mask still shows step {step}"
            self.page.wait_for_timeout(100)
        return self.mask()

    def _mask(self, step: str) -> Locator:
        found = self.page.get_by_role("img", name=re.compile(f"^Share of each tensor selected, after step {step}"))
        found.first.wait_for()
        return found.first

    def shot(self, what: str) -> None:
        """Take a picture of the page down to its end, and see that nothing on it went wrong."""
        self.settle()
        self._taken += 1
        self._shots.mkdir(parents=True, exist_ok=True)
        window = self.page.viewport_size
        assert window is not None
        # The page scrolls inside the window, so the window has to be as high as the page.
        height = self.page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
        self.page.set_viewport_size({"width": window["width"], "height": min(height, HIGHEST)})
        self.page.screenshot(path=self._shots / f"{self._name}-{self._taken:02d}-{what}.png")
        self.page.set_viewport_size(window)
        self.all_is_well()

    def all_is_well(self) -> None:
        """No exception is shown, none was logged, and no other server was asked for anything."""
        main = self.page.get_by_test_id("stMain")
        assert main.get_by_test_id("stException").count() == 0, main.inner_text()
        assert "Traceback" not in main.inner_text()
        assert not self.problems, self.problems


def _step(label: str) -> int:
    found = re.search(r"after step ([\d,]+)", label)
    assert found, label
    return int(found[1].replace(",", ""))
