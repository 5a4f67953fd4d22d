"""Places the rows of an architecture map in a heat map: layers down, roles and parts across."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pages.parts.figures.grid import Cell, Section

ROLE_NAMES = {
    "token": "tokens", "position": "positions", "distance": "distances", "type": "types", "norm_in": "norm",
    "qkv": "query, key, value", "q": "query", "k": "key", "v": "value", "o": "output", "norm_1": "norm 1",
    "gate": "gate", "up": "up", "down": "down", "norm_2": "norm 2",
    "norm_out": "norm", "pooler": "pooler", "head": "head", "other": "other",
}  # fmt: skip
_ROLES = list(ROLE_NAMES)
_PARTS = ["weight", "bias", "A", "E", "B", "magnitude"]
Row = dict[str, Any]


def place_of(row: Row, layers: int) -> str:
    """Which part of the model a row belongs to, in words."""
    if row["layer"] < 0:
        return "embeddings"
    return f"layer {row['layer']}" if row["layer"] < layers else "after the layers"


def title_of(row: Row, layers: int) -> str:
    """A row in words, for example ``layer 3, query weight``."""
    return f"{place_of(row, layers)}, {ROLE_NAMES.get(row['role'], row['role'])} {row['part']}"


def sections(rows: Sequence[Row], layers: int, cell: Callable[[int, int, int], Cell]) -> tuple[Section, ...]:
    """The embeddings, the blocks and what follows them, each with the columns it has.

    Args:
        rows: of the map, as stored with a run.
        layers: number of blocks.
        cell: makes the cell of row number `i` at (row, column).
    """
    found = []
    for belongs, label in ((_before, "embeddings"), (_within, ""), (_after, "top")):
        members = [i for i, row in enumerate(rows) if belongs(row["layer"], layers)]
        if members:
            found.append(_section(rows, members, label, cell))
    return tuple(found)


def _before(layer: int, layers: int) -> bool:
    return layer < 0


def _within(layer: int, layers: int) -> bool:
    return 0 <= layer < layers


def _after(layer: int, layers: int) -> bool:
    return layer >= layers


def _section(rows: Sequence[Row], members: list[int], label: str, cell: Callable[[int, int, int], Cell]) -> Section:
    columns = sorted({_column(rows[i]) for i in members}, key=_rank)
    depths = sorted({rows[i]["layer"] for i in members})
    taken: dict[tuple[int, int], Cell] = {}
    for i in members:
        spot = (depths.index(rows[i]["layer"]), columns.index(_column(rows[i])))
        taken.setdefault(spot, cell(i, *spot))
    single = len({part for _, part in columns}) == 1
    roles = [role for role, _ in columns]
    groups = tuple((ROLE_NAMES.get(role, role), roles.count(role)) for role in dict.fromkeys(roles))
    return Section(
        rows=tuple(label or f"layer {depth}" for depth in depths),
        columns=tuple("" if single else part for _, part in columns),
        cells=tuple(taken.values()),
        groups=groups,
    )


def _column(row: Row) -> tuple[str, str]:
    return row["role"], row["part"]


def _rank(column: tuple[str, str]) -> tuple[int, int, str]:
    role, part = column
    return (
        _ROLES.index(role) if role in _ROLES else len(_ROLES),
        _PARTS.index(part) if part in _PARTS else len(_PARTS),
        part,
    )
