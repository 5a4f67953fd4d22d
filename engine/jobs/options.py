"""How an engine is set up: the same on its command line and in a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine import settings
from engine.jobs.runner import ANSWERER, RUNNER


@dataclass(frozen=True)
class Options:
    """An engine's settings.

    Attributes:
        idle_seconds: it leaves after this long without work.
        cpu_slots: how many runs may use the CPU at once.
        runner: ``module:function`` that carries out a run.
        answerer: ``module:function`` that answers a question.
        code: the folder whose change makes the engine start anew.
        hung_seconds: a worker that has not beaten for this long is taken for lost.
        term_seconds: after a request to stop, the run is asked by signal.
        kill_seconds: after a request to stop, its processes are ended.
    """

    idle_seconds: float = field(default_factory=lambda: 60 * settings.idle_minutes())
    cpu_slots: int = field(default_factory=settings.cpu_slots)
    runner: str = RUNNER
    answerer: str = ANSWERER
    code: Path = settings.PROJECT / "engine"
    hung_seconds: float = 60.0
    term_seconds: float = 5.0
    kill_seconds: float = 10.0

    def argv(self) -> list[str]:
        """The settings as words of a command line."""
        words: list[str] = []
        for name, value in vars(self).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words


def read_options(argv: Sequence[str] | None = None) -> tuple[Path, Options]:
    """The home and the settings from a command line."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m engine.jobs.serve")
    parser.add_argument("--home", type=Path, default=settings.home())
    for name, value in vars(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    values = vars(parser.parse_args(argv))
    home = values.pop("home").absolute()
    values["code"] = Path(values["code"])
    return home, Options(**values)
