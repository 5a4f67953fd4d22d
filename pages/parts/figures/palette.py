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
_FREE = [(marker, _DASHES[(place + shift) % 6]) for shift in range(6) for place, marker in enumerate(_MARKERS)]
"""All pairs of marker and dash; neighbours differ in both."""


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
    """A method's style: no two methods of a family have both marker and dash in common."""
    known = methods()
    family = known[method].family if method in known else "baseline"
    return Style(colour(family, theme), *_family_styles(family).get(method, _FREE[0]))


@functools.cache
def _family_styles(family: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Marker and dash of each method of a family: its entry in the palette, else the next that is free."""
    fixed = {name: (entry["marker"], tuple(entry["dash"])) for name, entry in _table()["methods"].items()}
    names = sorted(name for name, cls in methods().items() if cls.family == family)
    taken = {fixed[name] for name in names if name in fixed}
    free = iter(style for style in _FREE if style not in taken)
    return {name: fixed[name] if name in fixed else next(free) for name in names}
