"""What may stand behind the options of benchmarks; anything else is refused before something starts."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def count(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 on.")
    return value


def count_or_none(text: str) -> int:
    """A whole number from 0, which stands for a default."""
    return 0 if text.strip() == "0" else count(text)


def names(text: str) -> list[str]:
    """Names with commas between them, at least one."""
    return _listed(text, str)


def counts(text: str) -> list[int]:
    """Whole numbers from 1, with commas between them."""
    return _listed(text, count)


def rates(text: str) -> list[float]:
    """Learning rates above 0, with commas between them."""
    return _listed(text, _positive)


def shares(text: str) -> list[float]:
    """Percentages above 0 up to 100, with commas between them."""
    found = rates(text)
    if max(found) > 100:
        raise ArgumentTypeError(f"{max(found):g} % is more than everything.")
    return found


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number above 0.")
    return value


def _listed(text: str, read: Callable[[str], Value]) -> list[Value]:
    """Each part, read; a list without a part, or with an empty one, is refused."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ArgumentTypeError(f"{text!r} has an empty place; write one or more with commas between them.")
    return [read(part) for part in parts]
