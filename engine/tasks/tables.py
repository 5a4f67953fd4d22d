"""Reads a file of the user's own into columns of text: CSV, TSV, JSON Lines, JSON, or ``label text`` lines.

Real files come with byte-order marks, in latin-1, without header, or with quotation marks
that are text and not quoting; what was decided is kept beside the columns, to be shown.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import settings
from engine.errors import DataError, shown

_JSON_LINES = {".jsonl", ".ndjson"}
_SNIFFED = 50
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
LABEL_LINES = " "
"""The delimiter of files whose lines are a label, a space and a text."""


@dataclass(frozen=True)
class Table:
    """A file as columns of text.

    Attributes:
        columns: their names; ``"0"``, ``"1"``, ... in a file without header.
        values: one list per column, all equally long; an absent cell is an empty string.
        encoding: how its bytes were read.
        delimiter: between cells; a space for ``label text`` lines, empty for JSON.
        quoting: whether quotation marks enclose cells (rather than being text).
        header: whether the first line named the columns.
    """

    columns: tuple[str, ...]
    values: tuple[list[str], ...]
    encoding: str
    delimiter: str
    quoting: bool
    header: bool

    def __len__(self) -> int:
        return len(self.values[0]) if self.values else 0

    def column(self, name: str) -> list[str]:
        """One column by its name.

        Raises:
            DataError: listing the columns there are.
        """
        if name not in self.columns:
            raise DataError(
                f"There is no column {shown(name)}.",
                f"Columns: {', '.join(map(shown, self.columns))}.",
            )
        return self.values[self.columns.index(name)]


def read_table(path: Path, header: bool = True) -> Table:
    """Read a file whole.

    Args:
        path: already checked to be allowed.
        header: whether the first line of a CSV or TSV file names its columns.

    Raises:
        DataError: for a file that is missing, empty, too large, binary or malformed, saying where.
    """
    text, encoding = _decode(_bytes_of(path), path.name)
    if path.suffix.lower() in _JSON_LINES or path.suffix.lower() == ".json":
        try:
            columns, values = _from_json(text, path)
        except RecursionError:
            raise DataError(f"The brackets in {path.name} are nested too deeply.", "Give flat records.") from None
        table = Table(columns, values, encoding, "", False, True)
    else:
        table = _from_lines(text, path, header, encoding)
    if not len(table):
        raise DataError(f"{path.name} has no rows.", "Give a file with at least a few dozen rows.")
    _check_rows(len(table), path.name)
    return table


def check_regular(path: Path) -> None:
    """Refuse a folder, and what could be waited on for ever: a pipe or a device."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file but a folder, a pipe or a device.", "Give a file.")


def check_size(size: int, name: str) -> None:
    """Refuse more bytes than the limit, with the limit in the message."""
    if size > settings.UPLOAD_BYTES:
        raise DataError(
            f"{name} has {size / 2**20:.1f} MB; the limit is {settings.UPLOAD_BYTES / 2**20:g} MB.",
            "Give a smaller file, for example a sample of its rows.",
        )


def _check_rows(rows: int, name: str) -> None:
    if rows > settings.UPLOAD_ROWS:
        raise DataError(
            f"{name} has more than the limit of {settings.UPLOAD_ROWS:,} rows.", "Give a sample of its rows."
        )


def _bytes_of(path: Path) -> bytes:
    try:
        check_regular(path)
        check_size(path.stat().st_size, path.name)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    if not data.strip():
        raise DataError(f"{path.name} is empty.", "Give a file with rows.")
    return data


def _decode(data: bytes, name: str) -> tuple[str, str]:
    """UTF-8 with or without byte-order mark, UTF-16 with one, else latin-1, which reads any bytes."""
    if data.startswith(_UTF32):
        raise DataError(f"{name} is in UTF-32, which is not read here.", "Save it as UTF-8.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif b"\0" in data:
        encodings = []
    else:
        encodings = ["utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8", "latin-1"]
    for encoding in encodings:
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise DataError(f"{name} is not a text file.", "Give CSV, TSV, JSON Lines or `label text` lines.")


def _from_json(text: str, path: Path) -> tuple[tuple[str, ...], tuple[list[str], ...]]:
    stripped = text.lstrip()
    records = _array(text, path) if stripped.startswith("[") else _json_lines(text, path)
    names: dict[str, None] = {}
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(
                f"{path.name}: record {number} is not an object but {json.dumps(record)[:40]}.",
                'Each record must look like {"text": "...", "label": "..."}.',
            )
        names.update(dict.fromkeys(record))
    values = tuple([_cell(record.get(name)) for record in records] for name in names)
    return tuple(names), values


def _array(text: str, path: Path) -> list[Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}.", "Correct it.") from None
    _check_rows(len(data), path.name)
    return list(data)


def _json_lines(text: str, path: Path) -> list[Any]:
    records = []
    # Not splitlines(): it also breaks at characters that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: not valid JSON ({error}).", "Correct it.") from None
            _check_rows(len(records), path.name)
    return records


def _cell(value: Any) -> str:
    """A JSON value as text; what UTF-8 cannot hold (half of a surrogate pair) becomes a question mark."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _from_lines(text: str, path: Path, header: bool, encoding: str) -> Table:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    delimiter = delimiter_of(lines[:_SNIFFED], path.suffix.lower())
    if delimiter == LABEL_LINES:
        split = [line.strip().partition(" ") for line in lines]
        values = ([label for label, _, _ in split], [rest.strip() for _, _, rest in split])
        return Table(("label", "text"), values, encoding, LABEL_LINES, False, False)
    names, rows, quoting = _cells(text, lines, delimiter, path, header)
    return Table(names, rows, encoding, delimiter, quoting, header)


def delimiter_of(lines: list[str], suffix: str) -> str:
    """The character between cells: what the file's name says when it occurs, else one that is in every line.

    A file without any is read as ``label text`` lines.
    """
    preferred = {".tsv": "\t", ".csv": ","}.get(suffix)
    if preferred and preferred in lines[0]:
        return preferred
    for candidate in "\t", ";", "|", ",":
        # Commas and the like also occur in prose: they delimit when all lines have equally many.
        counts = {line.count(candidate) for line in lines}
        if 0 not in counts and (len(counts) == 1 or candidate == "\t"):
            return candidate
    if preferred:
        return preferred
    return LABEL_LINES


def _cells(
    text: str, lines: list[str], delimiter: str, path: Path, header: bool
) -> tuple[tuple[str, ...], tuple[list[str], ...], bool]:
    """Column names, columns, and whether quotation marks were read as quoting.

    Quotation marks are text when they do not follow the rules of quoting although every line
    has the same number of cells without it (MRPC and RTE have such lines; read with quoting
    they lose characters or swallow whole lines).
    """
    if len({line.count(delimiter) for line in lines}) == 1 and not _well_quoted(text, delimiter):
        return *_parse(text, delimiter, header, quoting=False), False
    try:
        return *_parse(text, delimiter, header, quoting=True), True
    except ValueError as error:  # pandas' ParserError is one
        raise DataError(
            f"{path.name} is malformed: {str(error).strip()}.", "Every line must have the same number of cells."
        ) from None


def _well_quoted(text: str, delimiter: str) -> bool:
    """Whether every cell that begins with a quotation mark is enclosed in them, in TSV within its line."""
    if '"' not in text:
        return True
    try:
        cells = itertools.chain.from_iterable(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
        return not any("\n" in cell for cell in cells) if delimiter == "\t" else all(True for _ in cells)
    except csv.Error:
        return False


def _parse(text: str, delimiter: str, header: bool, quoting: bool) -> tuple[tuple[str, ...], tuple[list[str], ...]]:
    """Parse with pandas; ValueError for lines with too many cells or a quotation mark that is never closed."""
    import pandas as pd

    frame = pd.read_csv(
        io.StringIO(text),
        sep=delimiter,
        header=0 if header else None,
        dtype=str,
        keep_default_na=False,
        na_filter=False,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        nrows=settings.UPLOAD_ROWS + 1,
    )
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("the first line has fewer cells than the second")
    names = tuple(str(name).strip() for name in frame.columns)
    return names, tuple(frame.iloc[:, place].fillna("").tolist() for place in range(len(names)))
