"""What surrounds every page: navigation, the entry guard, who is asking, and how errors are shown."""

from __future__ import annotations

import contextlib
import gc
import secrets
from collections.abc import Iterator
from hashlib import sha256

import streamlit as st

from engine.errors import EngineError
from engine.settings import ASSETS, PROJECT
from engine.store.rights import MACHINE

COOKIE = "peftscope_browser"
_TITLES = {
    "start": "Start",
    "launch": "Launch",
    "run": "Run",
    "compare": "Compare",
    "try_it": "Try it",
    "in_context": "In context",
    "methods": "Methods",
    "data": "Data",
    "engine": "Engine",
}
_REMEMBER = st.components.v2.component(
    "peftscope_browser", js=(ASSETS / "browser.js").read_text(encoding="utf-8"), html="<span>\n</span>"
)


def pages() -> list[st.Page]:
    """The pages, with paths that do not depend on where the server was started.

    They have no icons: the browser would fetch one as the tab's picture from Google's servers.
    """
    return [
        st.Page(PROJECT / "pages" / f"{name}.py", title=title, url_path=name, default=name == "start")
        for name, title in _TITLES.items()
    ]


def enter() -> None:
    """First line of every page.

    Beside a folder named ``pages`` Streamlit opens a deep link after a restart without app.py. Then
    registering the navigation turns that off for good, and the rerun comes through app.py.
    """
    if not st.session_state.get("shell"):
        st.navigation(pages(), position="hidden")
        st.rerun()


@st.cache_resource(show_spinner=False)
def settle() -> bool:
    """Once per server: take what was imported out of the garbage collector's sight."""
    gc.collect()
    gc.freeze()
    return True


def go(page: str, **query: str) -> None:
    """Leave for another page."""
    st.switch_page(str(PROJECT / "pages" / f"{page}.py"), query_params=query)


def link(page: str, label: str, *, icon: str | None = None, **query: str) -> None:
    """A link to a page of the lab."""
    st.page_link(str(PROJECT / "pages" / f"{page}.py"), label=label, icon=icon, query_params=query or None)


def asker() -> str:
    """Who this browser is, for what it may stop.

    A browser on the machine itself is the machine's own user and may stop anything. Any other is
    known by a random word in its cookie, of which only a digest is stored with the runs it starts.
    """
    if _is_local():
        return MACHINE
    if "browser" not in st.session_state:
        st.session_state["browser"] = st.context.cookies.get(COOKIE) or secrets.token_hex(16)
    word = st.session_state["browser"]
    if st.context.cookies.get(COOKIE) != word:
        _REMEMBER(data={"name": COOKIE, "value": word}, key="remember-browser", height=1)
    return owner_of(word)


def owner_of(word: str) -> str:
    """How the runs of a browser with this word in its cookie are marked."""
    return "browser-" + sha256(word.encode()).hexdigest()[:16]


def _is_local() -> bool:
    """Whether the request comes from this machine, and not through a proxy that stands on it."""
    forwarded = any(name in st.context.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"))
    return st.context.ip_address is None and not forwarded


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Show an error of the engine where it happened, as text, instead of ending the page."""
    try:
        yield
    except EngineError as error:
        show_error(error)


def show_error(error: EngineError) -> None:
    """What happened, and what to do; both may quote the user's words, so neither is read as Markdown."""
    with st.container(border=True):
        st.badge("This did not work", icon=":material/error:", color="red")
        st.text(error.what)
        if error.todo:
            st.text(error.todo)
