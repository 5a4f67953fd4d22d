"""One run's row and files while it is carried out, and how it ends: in words for its owner, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from engine.errors import Diverged, EngineError, Stopped, StoreError
from engine.events import Sink
from engine.plan import Params
from engine.spec import parse_spec
from engine.store.control import RowControl
from engine.store.paths import RunFolder
from engine.store.run_file import RunWriter
from engine.store.runs import Runs
from engine.training import checkpoint
from engine.training.build import Caches
from engine.training.courtesy import Courtesy
from engine.training.phases import Carried, conclude, prepare

FINISH_TRIES = 3
log = logging.getLogger(__name__)


class Job:
    """An active run, from its row in the queue to its last state.

    Attributes:
        run: its objects, once it is prepared.
        state: its last state, once it is over.
    """

    def __init__(self, home: Path, run_id: str) -> None:
        self.state: str | None = None
        self.sink: RunWriter | None = None
        self._run: Carried | None = None
        self._id, self._runs = run_id, Runs(home)
        self._row, self._folder = self._runs.get(run_id), self._runs.folder(run_id)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(EngineError):
            self._open.close()
        self._runs.close()

    @property
    def run(self) -> Carried:
        """Its objects."""
        assert self._run is not None, "prepared before it is trained"
        return self._run

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """What goes wrong inside ends the run, and is said in its row and its file."""
        try:
            yield
        except Exception as error:
            if self.state is not None:
                raise  # it is over, and cannot be recorded as such
            self._end(_ending(error, self._folder))

    def prepare(self, caches: Caches) -> None:
        """Everything before the first step."""
        spec, params = parse_spec(self._row.spec), Params(**self._row.plan["params"])
        writer = RunWriter(self._folder.database, progress=lambda *where: self._runs.progress(self._id, *where))
        self.sink = self._open.enter_context(writer)
        courtesy = self._open.enter_context(Courtesy())
        control = RowControl(self._runs, self._id)
        self._run = prepare(spec, params, self._folder, self.sink, control, caches, courtesy)

    def open(self, company: int) -> None:
        """What is measured before the first step of one of `company` runs that train together."""
        loop = self.run.loop
        if company > 1:
            text = (
                f"Trained in one pass with {company - 1} other runs: time, memory and energy are those of all of them."
            )
            self.run.sink.note("info", text, loop.done)
            loop.share_with(company)
        loop.open()

    def send_on_alone(self, error: Exception) -> None:
        """The pass it shared with others failed: back to the queue, to go on by itself from its checkpoint.

        Raises:
            StoreError: when that cannot be recorded.
        """
        with contextlib.suppress(EngineError):
            self.run.sink.note(
                "warning", f"The pass it shared failed ({_plain_cause(error)['error']}); it goes on alone."
            )
            self._open.close()
        self.state = "queued"
        self._runs.requeue(self._id)

    def conclude(self, company: int = 1) -> None:
        """Everything after the last step; `company` is the number of runs that were trained together."""
        self._end({"state": "finished", "summary": conclude(self.run, company)})

    def _end(self, ending: dict[str, Any]) -> None:
        try:
            if self.sink is not None:
                _tell(self.sink, ending)
            self._open.close()
        except EngineError as error:  # the run's own file cannot be written
            ending = {"state": "failed", "error": error.what, "todo": error.todo}
        self.state = str(ending["state"])
        # They hold what it trained together with others, who may go on.
        self._run = None
        self._finish(ending)
        if self.state == "finished":
            checkpoint.drop(self._folder.checkpoint)

    def _finish(self, ending: dict[str, Any]) -> None:
        """Record how it ended; a file that is busy or full for a moment must not make a finished run a failed one.

        Raises:
            StoreError: when it cannot be recorded after several tries.
        """
        for _ in range(FINISH_TRIES - 1):
            try:
                self._runs.finish(self._id, **ending)
                return
            except StoreError:
                time.sleep(1.0)
        self._runs.finish(self._id, **ending)


def _ending(error: BaseException, folder: RunFolder) -> dict[str, Any]:
    """State, cause and advice for a run that did not finish."""
    if isinstance(error, Stopped):
        if not error.keep:
            checkpoint.drop(folder.checkpoint)
        return {"state": "stopped", "error": None, "todo": error.todo or None}
    if isinstance(error, EngineError):
        return {
            "state": "diverged" if isinstance(error, Diverged) else "failed",
            "error": error.what,
            "todo": error.todo,
        }
    log.error("the run failed\n%s", "".join(traceback.format_exception(error)))
    return {"state": "failed", **_plain_cause(error)}


def _plain_cause(error: BaseException) -> dict[str, str]:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return {"error": "The device ran out of memory.", "todo": "Use a smaller batch or fewer tokens per example."}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return {"error": "The disk is full.", "todo": "Free some space, then resume the run."}
    return {"error": f"The run failed unexpectedly: {text[:500]}", "todo": "Its log has the details."}


def _tell(sink: Sink, ending: dict[str, Any]) -> None:
    """Note the ending in the run's own file, if that can still be written."""
    if ending.get("error"):
        try:
            sink.note("error", f"{ending['error']} {ending['todo'] or ''}".strip())
        except EngineError as error:
            log.error("the ending could not be noted: %s", error)
