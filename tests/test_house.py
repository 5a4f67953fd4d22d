"""The rules of the house, read from the syntax tree: each rule is shown to catch what it forbids, then applied."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "peft"}
PICTURES = {"image", "plotly_chart", "vega_lite_chart", "echarts_chart", "altair_chart", "dataframe", "pyplot"}
SLOW_CHARTS = {"line_chart", "area_chart", "bar_chart", "scatter_chart", "altair_chart", "pyplot"}

# Rooms of the engine from the ground up; a module may import its own floor and those below it.
FLOORS = [
    {"errors", "settings", "spec", "events", "devices"},
    {"models", "sparse", "store", "stats"},
    {"methods", "tasks", "probes", "estimate", "resolution"},
    {"plan"},
    {"training", "pretraining", "prompting"},
    {"export"},
    {"answer", "jobs"},
    {"bench", "cli", "__main__", "__init__"},
]
APART = {"store", "stats"}
"""Rooms that stand on the ground floor only: they know nothing of models or training."""


def sources(*places: str) -> list[Path]:
    found = [ROOT / place for place in places]
    return [file for place in found for file in ([place] if place.suffix else sorted(place.rglob("*.py")))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "engine":
                yield from (f"engine.{alias.name}" for alias in node.names)


def calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    """Calls of a method with one of the names, as in ``st.image(...)`` or ``column.image(...)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "engine").parts[0].removesuffix(".py")


def floor(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def imports_streamlit(tree: ast.AST, file: Path) -> list[str]:
    return [name for name in imported(tree) if name.split(".")[0] == "streamlit"]


def imports_heavy(tree: ast.AST, file: Path) -> list[str]:
    return [name for name in imported(tree) if name.split(".")[0] in HEAVY | {"sqlite3"}]


def points_up(tree: ast.AST, file: Path) -> list[str]:
    room = room_of(file)
    rooms = {name.split(".")[1] for name in imported(tree) if name.startswith("engine.")} - {room}
    if room in APART:
        return sorted(name for name in rooms if floor(name) > 0)
    return sorted(name for name in rooms if floor(name) > floor(room))


def lacks_alt(tree: ast.AST, file: Path) -> list[str]:
    return [f"line {call.lineno}" for call in calls(tree, PICTURES) if "alt" not in {k.arg for k in call.keywords}]


def has_timer(tree: ast.AST, file: Path) -> list[str]:
    if file.name == "panel.py":
        return []
    timers = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "run_every"]
    return [f"line {node.value.lineno}" for node in timers]


def slow_when_live(tree: ast.AST, file: Path) -> list[str]:
    """Charts that a live view cannot afford; Plotly is drawn in one place, where the view is not live."""
    found = [f"line {call.lineno}" for call in calls(tree, SLOW_CHARTS)]
    allowed = {
        id(call)
        for node in ast.walk(tree)
        if file.name == "picture.py" and isinstance(node, ast.If) and getattr(node.test, "id", "") == "live"
        for part in node.orelse
        for call in calls(part, {"plotly_chart"})
    }
    return found + [f"line {call.lineno}" for call in calls(tree, {"plotly_chart"}) if id(call) not in allowed]


def allows_html(tree: ast.AST, file: Path) -> list[str]:
    named = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "unsafe_allow_html"]
    return [f"line {node.value.lineno}" for node in named] + [f"line {call.lineno}" for call in calls(tree, {"html"})]


ENGINE, PAGES = ("engine",), ("app.py", "pages")
RULES: list[tuple[Callable[[ast.AST, Path], list[str]], tuple[str, ...], str, str]] = [
    (imports_streamlit, ENGINE, "engine/x.py", "def f():\n    import streamlit as st"),
    (imports_heavy, PAGES, "pages/x.py", "from torch import nn"),
    (imports_heavy, PAGES, "pages/x.py", "import sqlite3"),
    (points_up, ENGINE, "engine/models/x.py", "from engine.training.loop import Loop"),
    (points_up, ENGINE, "engine/store/x.py", "def f():\n    from engine import models"),
    (lacks_alt, PAGES, "pages/x.py", "st.image('x.png', width=3)"),
    (has_timer, PAGES, "pages/x.py", "st.fragment(f, run_every=1)"),
    (slow_when_live, PAGES, "pages/x.py", "st.line_chart(x)"),
    (slow_when_live, PAGES, "pages/x.py", "st.plotly_chart(x, alt='')"),
    (slow_when_live, PAGES, "pages/parts/picture.py", "if live:\n    st.plotly_chart(x, alt='')\nelse:\n    pass"),
    (allows_html, PAGES, "pages/x.py", "st.markdown(x, unsafe_allow_html=True)"),
    (allows_html, PAGES, "pages/x.py", "st.html(x)"),
]


@pytest.mark.parametrize(("rule", "places", "name", "bad"), RULES, ids=lambda value: getattr(value, "__name__", None))
def test_rule_catches_what_it_forbids(rule, places, name, bad):
    assert rule(ast.parse(bad), ROOT / name)


@pytest.mark.parametrize(("rule", "places"), dict.fromkeys((rule, places) for rule, places, _, _ in RULES))
def test_rule_holds_everywhere(rule, places):
    broken = {
        str(file.relative_to(ROOT)): found
        for file in sources(*places)
        if (found := rule(ast.parse(file.read_text(encoding="utf-8")), file))
    }
    assert not broken


def test_every_room_has_its_floor():
    rooms = {room_of(file) for file in sources("engine")}
    assert rooms <= set().union(*FLOORS)


def test_settings_that_keep_a_class_alive_stay():
    with (ROOT / ".streamlit" / "config.toml").open("rb") as file:
        config = tomllib.load(file)
    assert config["runner"]["postScriptGC"] is False
    assert config["server"]["address"] == "localhost"
    assert config["client"]["showErrorDetails"] in ("none", "type")


@pytest.mark.parametrize(
    "statement",
    [
        "from engine.methods.registry import methods; methods()",
        "import engine.plan, engine.jobs.client, engine.export.formats",
        "import importlib, pkgutil, pages.parts as p\n"
        "[importlib.import_module(f'pages.parts.{m.name}') for m in pkgutil.walk_packages(p.__path__)]",
    ],
    ids=["registry", "plan and client", "pages"],
)
def test_nothing_heavy_is_imported_with(statement):
    look = f"\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", statement + look], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
