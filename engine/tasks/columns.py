"""Which columns of a file hold texts and labels: guessed for the page, chosen by the user."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import DataError
from engine.spec import DatasetChoice
from engine.tasks.splitting import MAX_CLASSES
from engine.tasks.tables import Table

_TEXT = ("text", "sentence", "sentence1", "review", "question", "question1", "premise", "#1 string", "content", "tweet")
_PAIR = ("sentence2", "question2", "hypothesis", "#2 string", "text2", "pair")
_LABEL = ("label", "labels", "class", "target", "category", "quality", "sentiment", "polarity", "stars", "rating")


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use; None for one that is not known or not there."""

    text: str | None
    pair: str | None
    label: str | None


def guess_columns(table: Table) -> Columns:
    """Likely columns, by usual names, else by content: few different values for the label, the longest text."""
    label = _named(table, _LABEL) or _fewest_values(table)
    text = _named(table, _TEXT) or _longest(table, label)
    pair = _named(table, _PAIR)
    return Columns(text, pair if pair not in (text, label) else None, label)


def chosen_columns(table: Table, choice: DatasetChoice) -> Columns:
    """The columns of a choice, with guesses for text and label where nothing is chosen.

    A second text is guessed only when the first is.

    Raises:
        DataError: for a column that is not there, chosen twice, or needed and not to be guessed.
    """
    guess = guess_columns(table)
    pair = choice.pair if choice.pair or choice.text else guess.pair
    columns = Columns(choice.text or guess.text, pair, choice.label or guess.label)
    listing = ", ".join(repr(name) for name in table.columns)
    for role in ("text", "label"):
        if getattr(columns, role) is None:
            raise DataError(f"It is not clear which column holds the {role}.", f"Choose `{role}` among {listing}.")
    used = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    for name in used:
        table.column(name)
    if len(set(used)) < len(used):
        raise DataError(f"The same column is chosen twice: {', '.join(used)}.", f"Columns: {listing}.")
    return columns


def looks_like_header(table: Table) -> bool:
    """Whether the first row of a table read without header is rather a line of column names.

    It is when all its cells are short, distinct and no numbers, and none of them occurs again
    in its column.
    """
    first = [values[0].strip() for values in table.values]
    if any(not cell or len(cell) > 40 or _is_number(cell) for cell in first) or len(set(first)) < len(first):
        return False
    return all(cell not in values[1:] for cell, values in zip(first, table.values, strict=True))


def _named(table: Table, names: tuple[str, ...]) -> str | None:
    lower = {column.lower(): column for column in table.columns}
    return next((lower[name] for name in names if name in lower), None)


def _fewest_values(table: Table) -> str | None:
    """The column with the fewest different values, if they are few enough for classes and repeat."""
    if len(table.columns) < 2:
        return None
    counts = {name: len(set(values)) for name, values in zip(table.columns, table.values, strict=True)}
    fitting = {name: count for name, count in counts.items() if 2 <= count <= MAX_CLASSES and count <= len(table) / 2}
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def _longest(table: Table, label: str | None) -> str | None:
    lengths = {
        name: sum(map(len, values)) for name, values in zip(table.columns, table.values, strict=True) if name != label
    }
    return max(lengths, key=lambda name: lengths[name]) if lengths else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
