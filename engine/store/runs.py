"""All runs of a home: one row each in ``engine.db``, which tables, comparisons and the queue read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import SpecError, StoreError, UnknownName
from engine.events import Phase
from engine.spec import RunSpec, parse_spec
from engine.store.database import Database, storing
from engine.store.paths import Layout, RunFolder
from engine.store.rights import refuse_strangers
from engine.store.run_row import COLUMNS, SCHEMA, TRANSITIONS, RunRow, State, StopHow, read_row
from engine.store.submission import new_folder, new_row, seeds_of

_COLUMNS = ", ".join(COLUMNS)
_Rows = list[RunRow]


class Runs:
    """The runs below one home; safe to share between threads.

    States change only by conditional updates, so that of two who want the same change one gets it.
    """

    def __init__(self, home: Path) -> None:
        self.layout = Layout(Path(home))
        self.database = Database(self.layout.engine_db, SCHEMA)

    def folder(self, run_id: str) -> RunFolder:
        """The files of a run."""
        return self.layout.run(run_id)

    def submit(
        self,
        spec: RunSpec | Mapping[str, Any],
        plan: Mapping[str, Any],
        *,
        owner: str,
        parent: str | None = None,
        priority: int = 0,
        slot: str | None = None,
        worker: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a run and return its id.

        Args:
            spec: the resolved spec.
            plan: the plan as JSON data.
            owner: who may stop it.
            parent: the run that this one continues with other settings.
            priority: higher ones start first.
            slot: where it runs, when the caller carries it out itself at once.
            worker: the caller's handle, in that case.

        Raises:
            SpecError: when the spec is not valid.
            StoreError: when the store cannot be written.
        """
        checked = spec if isinstance(spec, RunSpec) else parse_spec(dict(spec))
        row = new_row(checked, plan, owner=owner, parent=parent, priority=priority)
        if worker is not None:
            row |= {"state": "active", "slot": slot, "worker": json.dumps(worker), "attempts": 1}
            row["started"] = row["created"]
        folder = new_folder(self.layout, checked)
        names = ", ".join(["id", *row])
        marks = ", ".join("?" * (len(row) + 1))
        try:
            self.database.change(f"INSERT INTO run({names}) VALUES({marks})", [folder.id, *row.values()])
        except StoreError:
            shutil.rmtree(folder.root, ignore_errors=True)
            raise
        return folder.id

    def get(self, run_id: str) -> RunRow:
        """One run.

        Raises:
            UnknownName: when there is no such run.
        """
        rows = self.database.read(f"SELECT {_COLUMNS} FROM run WHERE id = ?", (run_id,))
        if not rows:
            raise UnknownName("run", run_id, [row.id for row in self.list(limit=20)])
        return read_row(rows[0])

    def find(self, text: str) -> RunRow:
        """One run by its id, by the only beginning or end of an id that fits, or the newest by ``last``.

        Raises:
            UnknownName: when none or several fit.
        """
        if text == "last":
            return self.get(next((row.id for row in self.list(limit=1)), "last"))
        rows = self.database.read("SELECT id FROM run")
        ids = [row["id"] for row in rows]
        if text in ids:
            return self.get(text)
        fitting = [run_id for run_id in ids if text and (run_id.startswith(text) or run_id.endswith(text))]
        return self.get(fitting[0] if len(fitting) == 1 else text)

    def list(
        self,
        *,
        states: Sequence[State] | None = None,
        ids: Sequence[str] | None = None,
        owner: str | None = None,
        method: str | None = None,
        model: str | None = None,
        dataset: str | None = None,
        spec_hash: str | None = None,
        hidden: bool = False,
        limit: int | None = None,
    ) -> _Rows:
        """Runs that fit every filter given, newest first; hidden ones only when asked."""
        equal = {"owner": owner, "method": method, "model": model, "dataset": dataset, "spec_hash": spec_hash}
        conditions = ["1" if hidden else "NOT hidden"]
        values: list[Any] = []
        for column, wanted in equal.items():
            if wanted is not None:
                conditions.append(f"{column} = ?")
                values.append(wanted)
        for column, several in (("state", states), ("id", ids)):
            if several is not None:
                conditions.append(f"{column} IN ({', '.join('?' * len(several))})")
                values.extend(several)
        values.append(-1 if limit is None else limit)
        where = " AND ".join(conditions)
        rows = self.database.read(
            f"SELECT {_COLUMNS} FROM run WHERE {where} ORDER BY created DESC, id DESC LIMIT ?", values
        )
        return [read_row(row) for row in rows]

    def version(self) -> int:
        """A number that grows whenever any run's row changes."""
        rows = self.database.read("SELECT version FROM change")
        return int(rows[0]["version"])

    def last_turns(self) -> dict[str, float]:
        """When each owner last had a run started, in seconds since 1970."""
        rows = self.database.read("SELECT owner, max(started) AS at FROM run WHERE started IS NOT NULL GROUP BY owner")
        return {row["owner"]: row["at"] for row in rows}

    def find_identical(self, spec: RunSpec, sources: Mapping[str, str] | None = None) -> RunRow | None:
        """The newest finished run of the same resolved spec, seeds and device, or None.

        Args:
            spec: the resolved spec.
            sources: hashes of weights and data, when the run must have been planned on the same ones;
                a file may have changed under its name.
        """
        rows = self.database.read(
            f"SELECT {_COLUMNS} FROM run WHERE spec_hash = ? AND seeds = ? AND device = ? "
            "AND state = 'finished' AND NOT hidden ORDER BY created DESC",
            (spec.hash(), json.dumps(seeds_of(spec)), spec.train.device),
        )
        found = map(read_row, rows)
        return next((row for row in found if sources is None or row.plan.get("sources") == sources), None)

    def move(self, run_id: str, to: State, *, when: Sequence[State] | None = None, **fields: Any) -> bool:
        """Change a run's state, and columns with it, if it is in a state from which that is allowed.

        Args:
            run_id: the run.
            to: the new state.
            when: only from these states; by default from all that `TRANSITIONS` allows.
            fields: other columns to set; JSON ones as data.

        Returns:
            Whether it changed.
        """
        sources = [state for state, target in TRANSITIONS if target == to and (when is None or state in when)]
        values = {"state": to, **{name: _stored(value) for name, value in fields.items()}}
        settings = ", ".join(f"{name} = ?" for name in values)
        changed = self.database.change(
            f"UPDATE run SET {settings} WHERE id = ? AND state IN ({', '.join('?' * len(sources))})",
            [*values.values(), run_id, *sources],
        )
        return changed == 1

    def claim(self, run_id: str, slot: str, worker: Mapping[str, Any], *company: str) -> bool:
        """Give a queued run to a worker, and others to share its pass; whether any was still there to be given."""
        changed = self.database.change(
            "UPDATE run SET state = 'active', slot = ?, worker = ?, started = coalesce(started, ?), beat = NULL, "
            f"attempts = attempts + 1 WHERE id IN (?{', ?' * len(company)}) AND state = 'queued'",
            (slot, json.dumps(worker), time.time(), run_id, *company),
        )
        return changed > 0

    def finish(
        self,
        run_id: str,
        state: State,
        *,
        summary: Mapping[str, Any] | None = None,
        error: str | None = None,
        todo: str | None = None,
    ) -> bool:
        """End an active run; whether it was active."""
        fields: dict[str, Any] = {
            "finished": time.time(),
            "error": error,
            "todo": todo,
            "stop": None,
            "stop_asked": None,
        }
        if summary is not None:
            fields["summary"] = summary
        if state == "finished":
            fields["phase"] = "finished"
        return self.move(run_id, state, when=["active"], **fields)

    def requeue(self, run_id: str, *, lost: bool = True) -> bool:
        """Put an active run back into the queue; whether it was active.

        Args:
            run_id: the run.
            lost: whether its worker was lost while carrying it out, which is counted.
        """
        fields: dict[str, Any] = {"phase": "queued", "slot": None, "worker": None, "beat": None}
        fields["losses"] = self.get(run_id).losses + int(lost)
        return self.move(run_id, "queued", when=["active"], **fields)

    def progress(self, run_id: str, phase: Phase, done: int, total: int) -> None:
        """Where an active run is. In phase ``training`` the counts are steps."""
        steps = (done, total) if phase == "training" else (None, None)
        self.database.change(
            "UPDATE run SET phase = ?, phase_done = ?, phase_total = ?, step = coalesce(?, step), "
            "steps = coalesce(?, steps) WHERE id = ? AND state = 'active'",
            (phase, done, total, *steps, run_id),
        )

    def beat(self, run_ids: Sequence[str]) -> None:
        """Their worker lives."""
        marks = ", ".join("?" * len(run_ids))
        self.database.change(
            f"UPDATE run SET beat = ? WHERE id IN ({marks}) AND state = 'active'", (time.time(), *run_ids)
        )

    def stop_request(self, run_id: str) -> StopHow | None:
        """Whether, and how, somebody asked the run to stop."""
        rows = self.database.read("SELECT stop FROM run WHERE id = ?", (run_id,))
        return rows[0]["stop"] if rows else None

    def request_stop(self, run_id: str, how: StopHow, asker: str) -> RunRow:
        """Ask a run to stop; one that has not begun is stopped at once.

        A second request may change ``keep`` to ``discard``, but does not restart the clock.

        Raises:
            NotAllowed: when somebody else started it.
            SpecError: when it is over already.
        """
        row = self.get(run_id)
        refuse_strangers(row, asker, "stop")
        if self.move(run_id, "stopped", when=["queued"], finished=time.time()):
            if how == "discard":
                self.discard_checkpoint(run_id)
            return self.get(run_id)
        changed = self.database.change(
            "UPDATE run SET stop = ?, stop_asked = coalesce(stop_asked, ?) WHERE id = ? AND state = 'active'",
            (how, time.time(), run_id),
        )
        if not changed:
            state = self.get(run_id).state
            raise SpecError(f"Run {run_id} is not running: it is {state}.", "There is nothing to stop.")
        return self.get(run_id)

    def resume(self, run_id: str, asker: str) -> RunRow:
        """Queue a stopped or failed run again; it goes on from its checkpoint, or from the start without one.

        Raises:
            NotAllowed: when somebody else started it.
            SpecError: when it is neither stopped nor failed.
        """
        row = self.get(run_id)
        refuse_strangers(row, asker, "resume")
        cleared = dict.fromkeys(("finished", "error", "todo", "stop", "stop_asked", "slot", "worker", "beat"))
        if not self.move(run_id, "queued", when=["stopped", "failed"], phase="queued", losses=0, **cleared):
            raise SpecError(
                f"Run {run_id} cannot be resumed: it is {self.get(run_id).state}.",
                "Only a stopped or failed run can; start a new one with its spec instead.",
            )
        return self.get(run_id)

    def discard_checkpoint(self, run_id: str) -> None:
        """Remove the checkpoint of a run that will not go on."""
        shutil.rmtree(self.folder(run_id).checkpoint, ignore_errors=True)

    def hide(self, run_id: str, hidden: bool = True) -> None:
        """Take a run out of lists, or put it back; its files stay."""
        self.get(run_id)
        self.database.change("UPDATE run SET hidden = ? WHERE id = ?", (int(hidden), run_id))

    def usage(self) -> dict[str, int]:
        """Bytes on disk of every run's folder, also of folders without a row."""
        with storing(self.layout.runs):
            if not self.layout.runs.exists():
                return {}
            return {path.name: RunFolder(path).bytes() for path in self.layout.runs.iterdir() if path.is_dir()}

    def delete(self, run_id: str) -> int:
        """Remove a run's row and files for good; the bytes that were freed.

        Raises:
            SpecError: when it is queued or active.
        """
        folder = self.folder(run_id)
        freed = folder.bytes()
        gone = self.database.change("DELETE FROM run WHERE id = ? AND state NOT IN ('queued', 'active')", (run_id,))
        if not gone and self.get(run_id):
            raise SpecError(f"Run {run_id} is not over.", "Stop it first.")
        with storing(folder.root):
            shutil.rmtree(folder.root)
        return freed

    def close(self) -> None:
        """Let go of the file."""
        self.database.close()


def _stored(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list) else value
