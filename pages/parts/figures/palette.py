"""The colours of `assets/palette.toml`: colour stands for a method's family, marker and dash for the method."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from typing import Any, Literal

from engine.methods.registry import methods
from engine.settings import ASSETS

Theme = Literal["light", "dark"]
_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
_DASHES = ((), (6, 3), (2, 3), (10, 3, 2, 3), (12, 4), (4, 2))


@dataclass(frozen=True)
class Style:
    """How one method is drawn: a colour, a marker (Vega's names) and a dash pattern in pixels."""

    colour: str
    marker: str
    dash: tuple[int, ...]


@functools.cache
def _table() -> dict[str, Any]:
    with (ASSETS / "palette.toml").open("rb") as file:
        return tomllib.load(file)


def colour(name: str, theme: Theme) -> str:
    """A family's colour, or one of ``guide``, ``alert`` and ``empty``."""
    return str(_table()[theme][name])


def scale(theme: Theme) -> tuple[str, ...]:
    """Ten colours from low to high; the lowest lies near the background."""
    return tuple(_table()["scales"][theme])


def style_of(method: str, theme: Theme) -> Style:
    """A method's style. Methods without an entry of their own get the next marker of their family."""
    known = methods()
    family = known[method].family if method in known else "baseline"
    entry = _table()["methods"].get(method)
    if entry:
        return Style(colour(family, theme), entry["marker"], tuple(entry["dash"]))
    relatives = sorted(name for name, cls in known.items() if cls.family == family)
    place = (relatives.index(method) if method in relatives else 0) % len(_MARKERS)
    return Style(colour(family, theme), _MARKERS[place], _DASHES[place])
