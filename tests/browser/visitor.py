"""Somebody with a browser: finds things on the lab's pages as people do, and notices whatever goes wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Request, expect

SECONDS = 90.0
"""How long to wait for anything; a page of its own needs a second or two on a quiet machine."""
STEP = re.compile(r"after step ([\d,]+)")
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning][data-test-connection-state=CONNECTED]"


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
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._stays_here)

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
        """Wait until the page is drawn."""
        self.page.wait_for_selector(SETTLED)

    def sees(self, text: str | re.Pattern[str], place: Locator | None = None) -> Locator:
        """Wait until a text is shown, and give where."""
        found = (place or self.page.get_by_test_id("stMain")).get_by_text(text).first
        expect(found).to_be_visible(timeout=1000 * SECONDS)
        return found

    def choose(self, label: str, option: str) -> None:
        """Pick an option of a select box."""
        self.page.get_by_role("combobox", name=label).click()
        self.page.get_by_role("option", name=option).click()
        self.settle()

    def write(self, label: str, value: str) -> None:
        """Fill a field in."""
        field = self.page.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Enter")
        self.settle()

    def click(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=name).click()

    def state(self, word: str) -> None:
        """Wait until the run on this page is in a state."""
        badge = self.page.get_by_test_id("stMarkdownBadge").filter(has_text=word)
        expect(badge.first).to_be_visible(timeout=1000 * SECONDS)

    def mask(self) -> tuple[int, str]:
        """The step that the picture of the mask shows, and what is drawn, as pixels."""
        canvas = self.page.get_by_role("img", name=re.compile("^Share of each tensor selected")).first
        canvas.wait_for()
        label, pixels = canvas.evaluate("canvas => [canvas.getAttribute('aria-label'), canvas.toDataURL()]")
        found = STEP.search(label)
        assert found, label
        return int(found[1].replace(",", "")), pixels

    def later_mask(self, step: int) -> tuple[int, str]:
        """The picture of the mask once it shows a later step."""
        script = (
            "step => [...document.querySelectorAll('[data-testid=stBidiComponentRegular]')].some(part => {"
            "const canvas = (part.shadowRoot || part).querySelector('canvas[aria-label^=\"Share of each\"]');"
            "return canvas && +canvas.getAttribute('aria-label').match(/after step ([\\d,]+)/)[1].replace(',', '')"
            " > step; })"
        )
        self.page.wait_for_function(script, arg=step)
        return self.mask()

    def shot(self, what: str) -> None:
        """Take a screenshot of the whole page, and see that nothing on it went wrong."""
        self.settle()
        self._taken += 1
        self._shots.mkdir(parents=True, exist_ok=True)
        path = self._shots / f"{self._name}-{self._taken:02d}-{what}.png"
        self.page.screenshot(path=path, full_page=True)
        self.all_is_well()

    def all_is_well(self) -> None:
        """No exception is shown, none was logged, and no other server was asked for anything."""
        assert self.page.get_by_test_id("stException").count() == 0, self.page.get_by_test_id("stMain").inner_text()
        assert "Traceback" not in self.page.get_by_test_id("stMain").inner_text()
        assert self.problems == []

    def script(self, code: str) -> Any:
        """The value of some JavaScript on the page."""
        return self.page.evaluate(code)
