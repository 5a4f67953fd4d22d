"""The colours of `assets/palette.toml`: colour stands for a method's family, marker and dash for the method."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.methods.registry import methods
from engine.settings import ASSETS

Theme = Literal["light", "dark"]
Look = tuple[str, tuple[int, ...]]
"""Marker and dash."""
_MARKERS = (
    "circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left",
)  # fmt: skip
_DASHES = ((), (6, 3), (2, 3), (10, 3, 2, 3), (18, 5), (10, 3, 2, 3, 2, 3), (2, 8), (18, 4, 6, 4))
_FREE = [
    (marker, _DASHES[(place + shift) % len(_DASHES)])
    for shift in range(len(_DASHES))
    for place, marker in enumerate(_MARKERS)
]
"""All pairs of marker and dash; neighbours differ in both."""
_SHADES = (0.0, 0.3, 0.55)
"""How far the colours of one family are drawn away from the background, one after another."""


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


def styles_together(names: Sequence[str], theme: Theme) -> list[Style]:
    """Styles of what stands in one picture, one for each entry, which may be of the same method.

    In a family each has a marker and a dash that no other has, as long as there are any, and neighbours have
    different shades of the family's colour. A method keeps its own marker and dash where they are free.

    Args:
        names: methods, in order.
        theme: of the browser.
    """
    own = [style_of(name, theme) for name in names]
    found = list(own)
    by_family: dict[str, list[int]] = {}
    for place, style in enumerate(own):
        by_family.setdefault(style.colour, []).append(place)
    for tone, places in by_family.items():
        again = {place for place in places if names[place] in names[:place]}
        taken: list[Look] = []
        for place in sorted(places, key=lambda place: (place in again, place)):
            taken.append(_freest((own[place].marker, own[place].dash), taken))
            found[place] = Style(_shade(tone, places.index(place), theme), *taken[-1])
    return found


def _freest(own: Look, taken: Sequence[Look]) -> Look:
    """A method's own marker and dash, or the first pair that has the least in common with those taken."""
    return min([own, *_FREE], key=lambda look: sum((look[0] == marker) + (look[1] == dash) for marker, dash in taken))


def _shade(tone: str, number: int, theme: Theme) -> str:
    """A colour drawn towards black on a light page and towards white on a dark one."""
    far, share = 0 if theme == "light" else 255, _SHADES[number % len(_SHADES)]
    parts = (int(tone[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (far - part)):02X}" for part in parts)


@functools.cache
def _family_styles(family: str) -> dict[str, Look]:
    """Marker and dash of each method of a family: its entry in the palette, else the next that is free."""
    fixed = {name: (entry["marker"], tuple(entry["dash"])) for name, entry in _table()["methods"].items()}
    names = sorted(name for name, cls in methods().items() if cls.family == family)
    taken = {fixed[name] for name in names if name in fixed}
    free = iter(style for style in _FREE if style not in taken)
    return {name: fixed[name] if name in fixed else next(free) for name in names}
