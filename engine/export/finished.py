"""A run that is over, opened for export: its row, its spec and its record. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, StoreError
from engine.methods.contract import Method
from engine.methods.registry import method_named
from engine.spec import MethodChoice, RunSpec, parse_spec
from engine.store.paths import RunFolder
from engine.store.run_reader import RunReader
from engine.store.run_row import RunRow
from engine.store.runs import Runs


@dataclass(frozen=True)
class Finished:
    """A run with everything an export reads.

    Attributes:
        row: its line in the table of runs.
        folder: its files.
        spec: the resolved spec.
        reader: its record; open while `opened` lasts.
    """

    row: RunRow
    folder: RunFolder
    spec: RunSpec
    reader: RunReader

    @property
    def methods(self) -> tuple[type[Method], ...]:
        """Its method and those it stands on, outermost first."""
        return tuple(method_named(choice.name) for choice in chain_of(self.spec.method))

    @property
    def base_sha256(self) -> str:
        """Of the base weights it was trained from; empty when it was not recorded."""
        return str(self.reader.meta("provenance", {}).get("weights", {}).get("sha256", ""))

    @property
    def summary(self) -> dict[str, Any]:
        """What the run reported at its end; empty when it did not finish."""
        return self.row.summary or {}

    def check_finished(self) -> None:
        """Refuse a run without a result.

        Raises:
            EngineError: when it has not finished.
        """
        if self.row.state != "finished":
            raise EngineError(
                f"Run {self.row.id} has no trained result: it is {self.row.state}.",
                "Choose a finished run, or export its record with `recording`, `csv` or `spec`.",
            )

    def check_recorded(self) -> None:
        """Refuse a finished run whose record is gone; one that has not begun has none yet.

        Raises:
            StoreError: with the file that is missing.
        """
        if self.row.state == "finished" and not self.reader.version():
            raise StoreError(
                f"The record of run {self.row.id} is missing: {self.folder.database} is not there or empty.",
                "Put the file back, or train the run's spec again.",
            )


@contextmanager
def opened(home: Path, run_id: str) -> Iterator[Finished]:
    """Open a run, whatever its state.

    Raises:
        UnknownName: when there is no such run.
    """
    runs = Runs(home)
    try:
        row = runs.get(run_id)
        folder = runs.folder(run_id)
        with RunReader(folder.database) as reader:
            yield Finished(row, folder, parse_spec(row.spec), reader)
    finally:
        runs.close()


def chain_of(choice: MethodChoice) -> list[MethodChoice]:
    """A method's choice and those it stands on, outermost first."""
    return [choice, *(chain_of(choice.on) if choice.on else [])]
