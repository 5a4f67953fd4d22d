"""Datasets from files of the user's own: looking at them, storing uploads, loading."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine import settings
from engine.errors import DataError, shown
from engine.models.checksums import file_sha256
from engine.spec import DatasetChoice
from engine.tasks.cache import cache_key, read_cached, write_cached
from engine.tasks.columns import Columns, chosen_columns, guess_columns, looks_like_header
from engine.tasks.dataset import Dataset
from engine.tasks.splitting import SPLIT_VERSION, Rows, make_dataset
from engine.tasks.tables import LABEL_LINES, Table, check_regular, check_size, read_table

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
_SAMPLE = 10


@dataclass(frozen=True)
class FileLook:
    """What a page shows of a file before its columns are chosen. Cells are raw text, never HTML.

    Attributes:
        columns: names; ``"0"``, ``"1"``, ... without header.
        rows: how many.
        sample: the first rows, by column.
        guesses: likely columns.
        encoding, delimiter, quoting, header: how the file was read.
    """

    columns: tuple[str, ...]
    rows: int
    sample: list[dict[str, str]]
    guesses: Columns
    encoding: str
    delimiter: str
    quoting: bool
    header: bool


def inspect_file(path: str | Path, header: bool | None = None) -> FileLook:
    """Look at a file: its columns, a few rows, and which columns are likely what.

    Args:
        path: below one of the configured roots.
        header: whether the first line names the columns; None to guess.

    Raises:
        PathRefused: outside the roots.
        DataError: as `read_table`.
    """
    allowed = settings.allowed_path(path)
    if header is None:
        header = looks_like_header(read_table(allowed, header=False))
    table = read_table(allowed, header)
    cells = zip(*(values[:_SAMPLE] for values in table.values), strict=True)
    return FileLook(
        columns=table.columns,
        rows=len(table),
        sample=[dict(zip(table.columns, row, strict=True)) for row in cells],
        guesses=guess_columns(table),
        encoding=table.encoding,
        delimiter=table.delimiter,
        quoting=table.quoting,
        header=table.header,
    )


def store_upload(data: bytes, filename: str) -> Path:
    """Keep an uploaded file in the store, named by its content; of the given name only the ending is used.

    Raises:
        DataError: for too many bytes, none, or an ending that is not one of `SUFFIXES`.
        OSError: when the disk refuses.
    """
    check_size(len(data), "The upload")
    suffix = Path(filename).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"Files ending in {suffix[:20]!r} are not read.", f"Give one of {', '.join(SUFFIXES)}.")
    if not data.strip():
        raise DataError("The upload is empty.", "Give a file with rows.")
    path = settings.home() / "uploads" / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.new")
        temporary.write_bytes(data)
        temporary.replace(path)
    return path


def load_file(choice: DatasetChoice) -> Dataset:
    """The dataset in a file, from the cache when the file and the choice of columns have not changed.

    Raises:
        PathRefused: outside the roots.
        DataError: for a file that cannot be read or learned from.
    """
    path = settings.allowed_path(choice.source)
    if choice.subset is not None:
        raise DataError(f"A file has no subsets; `subset: {shown(choice.subset)}` was given.", "Leave it out.")
    check_regular(path)
    if not path.exists():
        raise DataError(f"There is no file {path}.", "Check the path.")
    check_size(path.stat().st_size, path.name)
    stat = path.stat()
    wanted = choice.model_dump()
    key = cache_key("file", str(path), stat.st_size, stat.st_mtime_ns, settings.UPLOAD_ROWS, wanted, SPLIT_VERSION)
    cached = read_cached(key)
    if cached is not None:
        return cached
    dataset = _read(path, choice)
    write_cached(key, dataset)
    return dataset


def _read(path: Path, choice: DatasetChoice) -> Dataset:
    table = read_table(path, choice.header)
    columns = chosen_columns(table, choice)
    provenance = {
        "source": f"file {_shown(path)}",
        "sha256": file_sha256(path),
        "licence": "",
        "columns": {"text": columns.text, "pair": columns.pair, "label": columns.label},
        "encoding": table.encoding,
        "delimiter": {"\t": "tab", LABEL_LINES: "label, space, text", "": "JSON"}.get(table.delimiter, table.delimiter),
        "quoting": table.quoting,
        "header": table.header,
    }
    return make_dataset(choice.source, _shown(path), rows_of(table, columns), provenance)


def rows_of(table: Table, columns: Columns) -> Rows:
    """The texts and labels of a table; white space around them is dropped."""

    def cells(name: str | None) -> list[str]:
        return [cell.strip() for cell in table.column(name)] if name is not None else []

    pairs = cells(columns.pair) if columns.pair is not None else None
    return Rows(cells(columns.text), cells(columns.label), pairs)


def _shown(path: Path) -> str:
    """A file's name for people; uploads are named by their content and shown by its beginning."""
    if re.fullmatch(r"[0-9a-f]{32}", path.stem):
        return f"upload {path.stem[:8]}{path.suffix}"
    return path.name
