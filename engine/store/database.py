"""One SQLite file, opened the way all of the lab's files are: WAL, one short write transaction at a time."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import StoreError
from engine.store.paths import refuse_network_folder

BUSY_SECONDS = 5.0
_ADVICE = {
    sqlite3.SQLITE_FULL: "Free some space, then resume the run: what was recorded before is safe.",
    sqlite3.SQLITE_IOERR: "Free some space or check the disk, then resume the run: what was recorded before is safe.",
    sqlite3.SQLITE_BUSY: "Another program holds the file; close it and try again.",
    sqlite3.SQLITE_LOCKED: "Another program holds the file; close it and try again.",
    sqlite3.SQLITE_READONLY: "Give yourself the right to write to this folder, or set PEFTSCOPE_HOME to another.",
    sqlite3.SQLITE_CANTOPEN: "Give yourself the right to write to this folder, or set PEFTSCOPE_HOME to another.",
    sqlite3.SQLITE_NOTADB: "The file is damaged; move it away.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged; move it away.",
}


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system say about a file into a StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        # Only the low byte names the kind; extended codes add detail above it.
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        raise StoreError(
            f"Cannot use {path}: {error}.", _ADVICE.get(code, "Run `doctor` to look at the store.")
        ) from error
    except OSError as error:
        raise StoreError(
            f"Cannot use {path}: {error.strerror or error}.", "Check the disk's space and the folder's rights."
        ) from error


def open_for_writing(path: Path, schema: str) -> sqlite3.Connection:
    """Open or create a file in WAL mode; commits survive a killed process, not always a power cut.

    Raises:
        StoreError: when the folder is on a network or the file cannot be written.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_network_folder(path.parent)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL; of two that do so at once one is refused without the usual waiting."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode or 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open an existing file read-only, also when it lies in a folder that cannot be written.

    Raises:
        sqlite3.OperationalError: when there is no such file.
    """
    connection = _read_only(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        code = (error.sqlite_errorcode or 0) & 0xFF
        if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or not path.exists():
            raise
        # WAL needs a side file; where none can be made nobody can be writing either.
        connection = _read_only(path, "immutable=1")
    return connection


def _read_only(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, with the write lock taken at once so that it never has to be upgraded."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Database:
    """One file shared by the threads of this process, opened at first use."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._schema = schema
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_for_writing(self.path, self._schema)
            self._connection.row_factory = sqlite3.Row
        return self._connection

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock, storing(self.path):
            return self._open().execute(sql, values).fetchall()

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement in its own transaction; the number of rows it changed."""
        with self._lock, storing(self.path), transaction(self._open()) as connection:
            return connection.execute(sql, values).rowcount

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Several statements as one."""
        with self._lock, storing(self.path), transaction(self._open()) as connection:
            yield connection

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
