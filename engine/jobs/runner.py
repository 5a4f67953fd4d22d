"""The functions that do the work, named as ``module:function`` so that nothing heavy is imported to say which."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import Diverged, EngineError, Stopped
from engine.store.run_row import State
from engine.store.runs import Runs

RUNNER = "engine.training.run:run_job"
ANSWERER = "engine.answer:answer_request"


@dataclass(frozen=True)
class Loaded:
    """A function, imported, and what it keeps warm between calls.

    Attributes:
        call: does one thing.
        together: does several that share a pass; None where nothing can.
        caches: given to each call.
    """

    call: Callable[..., Any]
    together: Callable[..., Any] | None
    caches: Any


def load(name: str) -> Loaded:
    """Import ``module:function``, and ``functions`` for several at once if its module has that.

    The module's ``Caches``, if it has them, are what is kept warm.
    """
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    caches: Any = getattr(module, "Caches", dict)()
    return Loaded(getattr(module, function), getattr(module, f"{function}s", None), caches)


def carry_out_together(home: Path, run_ids: Sequence[str], runner: Loaded) -> None:
    """The same for active runs that share a pass."""
    assert runner.together is not None, "only those are given several"
    with contextlib.closing(Runs(home)) as runs:
        error, todo = "The run ended without a result.", "Its log has the details."
        try:
            runner.together(home, run_ids, runner.caches)
        except Exception as unexpected:
            traceback.print_exc(file=sys.stderr)
            error = f"The run failed unexpectedly: {type(unexpected).__name__}: {unexpected}"[:600]
        for run_id in run_ids:
            runs.finish(run_id, "failed", error=error, todo=todo)


def carry_out(home: Path, run_id: str, runner: Loaded) -> None:
    """Carry out an active run; whatever the runner does, the run is over in words afterwards.

    The runner ends the run itself; what it raises, or leaves open, is recorded here.
    """
    runs = Runs(home)
    try:
        runner.call(home, run_id, runner.caches)
        runs.finish(run_id, "failed", error="The run ended without a result.", todo="Its log has the details.")
    except Stopped as error:
        if not error.keep:
            runs.discard_checkpoint(run_id)
        runs.finish(run_id, "stopped", todo=error.todo)
    except EngineError as error:
        state: State = "diverged" if isinstance(error, Diverged) else "failed"
        runs.finish(run_id, state, error=error.what, todo=error.todo)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        cause = f"The run failed unexpectedly: {type(error).__name__}: {error}"
        runs.finish(run_id, "failed", error=cause[:600], todo="Its log has the details.")
    finally:
        runs.close()
