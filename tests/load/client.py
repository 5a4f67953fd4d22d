"""Many browsers on one page, without browsers: speaks Streamlit's own websocket protocol.

Each session opens a page by its deep link, obeys the timers that the page's fragments set, and
sends a tick at each interval as a browser does, whether or not the last one was answered. What
counts is how many ticks end in a finished script run, and how long that takes::

    python -m tests.load.client --url http://localhost:8501 --page run --query run=ID --sessions 40
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

FULL, FRAGMENT = ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY
REMEMBERED = 200
"""Hashes of large messages that a session says it still has."""
OPENING_SECONDS = 60.0


@dataclass
class Session:
    """One browser tab.

    Attributes:
        page: name of the page in its address.
        query: the address's query string.
        sent, completed: ticks, and those that ended in a finished run.
        latencies: seconds from tick to the end of its run.
        received: bytes since the page was opened.
        opened: seconds from connecting to the first finished page.
        problems: errors that the page showed.
    """

    page: str
    query: str
    sent: int = 0
    completed: int = 0
    latencies: list[float] = field(default_factory=list)
    received: int = 0
    opened: float | None = None
    problems: list[str] = field(default_factory=list)
    _timers: dict[str, float] = field(default_factory=dict)
    _waiting: deque[float] = field(default_factory=deque)
    _script: str = ""
    _cached: dict[str, None] = field(default_factory=dict)

    async def follow(self, url: str, start: float, seconds: float) -> None:
        """Open the page now, and follow its timers from `start` (event-loop time) for so many seconds."""
        address = urlsplit(url)
        where = f"ws://{address.netloc}{address.path.rstrip('/')}/_stcore/stream"
        async with connect(where, subprotocols=["streamlit"], max_size=2**27, compression=None) as socket:
            ready = asyncio.Event()
            reader = asyncio.create_task(self._read(socket, ready))
            await self._send(socket, fragment="")
            await asyncio.wait_for(ready.wait(), OPENING_SECONDS)
            await asyncio.sleep(max(0.0, start - asyncio.get_running_loop().time()))
            await self._tick(socket, seconds)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _tick(self, socket: ClientConnection, seconds: float) -> None:
        """Send ticks at the page's own interval, then wait one interval for the last answers."""
        loop = asyncio.get_running_loop()
        end = due = loop.time()
        end += seconds
        while due < end and self._timers:
            fragment, interval = next(iter(self._timers.items()))
            self._waiting.append(loop.time())
            self.sent += 1
            await self._send(socket, fragment)
            due += interval
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _send(self, socket: ClientConnection, fragment: str) -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string = self.query
        state.page_name = self.page
        state.page_script_hash = self._script
        state.fragment_id = fragment
        state.is_auto_rerun = bool(fragment)
        state.cached_message_hashes.extend(self._cached)
        state.context_info.url = "http://localhost"
        state.context_info.timezone = "UTC"
        state.context_info.locale = "en-GB"
        await socket.send(message.SerializeToString())

    async def _read(self, socket: ClientConnection, ready: asyncio.Event) -> None:
        began = asyncio.get_running_loop().time()
        async for data in socket:
            assert isinstance(data, bytes)
            self.received += len(data)
            message = ForwardMsg.FromString(data)
            self._remember(message)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self._script = message.new_session.page_script_hash
                if not message.metadata.run.fragment_ids:  # the whole page starts anew, and its timers with it
                    self._timers.clear()
            elif kind == "auto_rerun":
                self._timers[message.auto_rerun.fragment_id] = message.auto_rerun.interval
            elif kind == "stop_auto_rerun":
                self._timers.pop(message.stop_auto_rerun.fragment_id, None)
            elif kind == "delta":
                self._look_for_errors(message)
            elif kind == "script_finished":
                self._finished(message.script_finished)
                if message.script_finished == FULL and not ready.is_set():
                    self.opened = asyncio.get_running_loop().time() - began
                    ready.set()

    def _finished(self, status: int) -> None:
        """A run ended: the oldest waiting tick was answered, or overtaken by the next."""
        if not self._waiting:
            return
        sent = self._waiting.popleft()
        if status in (FULL, FRAGMENT):
            self.completed += 1
            self.latencies.append(asyncio.get_running_loop().time() - sent)

    def _remember(self, message: ForwardMsg) -> None:
        """Say, as a browser does, which large messages need not be sent again."""
        if message.metadata.cacheable and message.hash:
            self._cached[message.hash] = None
            while len(self._cached) > REMEMBERED:
                self._cached.pop(next(iter(self._cached)))

    def _look_for_errors(self, message: ForwardMsg) -> None:
        element = message.delta.new_element
        if element.WhichOneof("type") == "exception":
            self.problems.append(f"{element.exception.type}: {element.exception.message}"[:300])


@dataclass(frozen=True)
class Load:
    """What a load test measured; times in milliseconds.

    Attributes:
        sessions: tabs that followed the page.
        sent, completed: ticks of all, and those that ended in a finished run.
        share: of the ticks that did.
        p50, p95: time from a tick to the end of its run.
        opened: median time to open the page.
        bytes_per_update: received per finished run, opening included.
        problems: different errors that pages showed.
    """

    sessions: int
    sent: int
    completed: int
    share: float
    p50: float
    p95: float
    opened: float
    bytes_per_update: float
    problems: list[str]

    @property
    def sentence(self) -> str:
        """The figures in plain words."""
        return (
            f"{self.sessions} sessions: {self.completed:,} of {self.sent:,} updates ({self.share:.1%}), "
            f"p50 {self.p50:.0f} ms, p95 {self.p95:.0f} ms, page open in {self.opened:.0f} ms, "
            f"{self.bytes_per_update / 1024:.0f} KiB per update"
        )


async def measure(url: str, page: str, query: str, sessions: int, seconds: float, spread: float = 1.0) -> Load:
    """Follow a page with many sessions at once.

    Args:
        url: of the server.
        page: name in the address; empty for the start page.
        query: query string, such as ``run=ID``.
        sessions: how many.
        seconds: of ticking, after all pages are open.
        spread: seconds over which the sessions' ticks are spread.

    Raises:
        RuntimeError: when no session's page has a timer, or a page cannot be opened.
    """
    tabs = [Session(page, query) for _ in range(sessions)]
    loop = asyncio.get_running_loop()
    # All tabs open first, a few a second as people arrive; then they tick out of step.
    start = loop.time() + 2.0 + 0.25 * sessions
    tasks = []
    for number, tab in enumerate(tabs):
        tasks.append(asyncio.create_task(tab.follow(url, start + spread * number / sessions, seconds)))
        await asyncio.sleep(0.2)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [error for error in done if isinstance(error, BaseException)]
    if failed:
        raise RuntimeError(f"{len(failed)} of {sessions} sessions failed, the first with {failed[0]!r}")
    return _summed(tabs)


def _summed(tabs: Sequence[Session]) -> Load:
    sent, completed = sum(tab.sent for tab in tabs), sum(tab.completed for tab in tabs)
    problems = sorted({problem for tab in tabs for problem in tab.problems})
    if sent == 0:
        raise RuntimeError(f"no session's page has a timer; errors shown: {problems or 'none'}")
    latencies = sorted(1000 * latency for tab in tabs for latency in tab.latencies)
    return Load(
        sessions=len(tabs),
        sent=sent,
        completed=completed,
        share=completed / sent,
        p50=statistics.median(latencies) if latencies else float("inf"),
        p95=latencies[int(0.95 * (len(latencies) - 1))] if latencies else float("inf"),
        opened=1000 * statistics.median(tab.opened or 0.0 for tab in tabs),
        bytes_per_update=sum(tab.received for tab in tabs) / max(1, completed),
        problems=problems,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when fewer than 95 % of the updates complete or p95 is over 250 ms."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.client", description=__doc__)
    parser.add_argument("--url", default="http://localhost:8501")
    parser.add_argument("--page", default="run")
    parser.add_argument("--query", default="", help="query string, such as run=ID")
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    started = time.monotonic()
    load = asyncio.run(measure(given.url, given.page, given.query, given.sessions, given.seconds))
    print(json.dumps(asdict(load)) if given.json else load.sentence)
    for problem in load.problems:
        print(f"shown on the page: {problem}", file=sys.stderr)
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0 if load.share >= 0.95 and load.p95 < 250 and not load.problems else 1


if __name__ == "__main__":
    sys.exit(main())
