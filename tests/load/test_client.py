"""The load client counts what really happens, shown on a small page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.client import Load, measure
from tests.load.server import serving

PAGE = Path(__file__).parent / "small_page.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("load") / "server.txt"
    with serving(PAGE, log, {"STREAMLIT_RUNNER_POST_SCRIPT_GC": "false"}) as address:
        yield address


def load(url: str, query: str, sessions: int = 3, seconds: float = 2.0) -> Load:
    return asyncio.run(measure(url, "", query, sessions, seconds))


def test_every_tick_of_a_quick_page_completes(url: str) -> None:
    found = load(url, "")
    assert found.sent == 3 * 8, "four ticks a second for two seconds, from three sessions"
    assert found.share >= 0.6, "more than a page slower than its timer gets"
    assert 0 < found.p50 <= found.p95 < 1000
    assert found.bytes_per_update > 50
    assert found.problems == []


def test_a_page_slower_than_its_timer_loses_ticks(url: str) -> None:
    found = load(url, "slow=1", sessions=1)
    assert found.share < 0.4


def test_a_page_without_a_timer_is_said_so(url: str) -> None:
    with pytest.raises(RuntimeError, match="no session's page has a timer"):
        load(url, "still=1", sessions=1)


def test_errors_on_the_page_are_reported(url: str) -> None:
    found = load(url, "broken=1", sessions=1)
    assert any("ValueError" in problem for problem in found.problems)


def test_nobody_there_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="sessions failed"):
        load("http://127.0.0.1:9", "", sessions=1)
