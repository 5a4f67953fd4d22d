"""Parses `python -m engine ...` and calls one command; errors become one plain line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.cli import listing, running
from engine.errors import EngineError

Command = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except EngineError as error:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": error.what, "todo": error.todo}))
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="PEFTscope's engine, from a terminal.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_listing(commands)
    _add_running(commands)
    _add_results(commands)
    _add_service(commands)
    return parser


def _add(
    commands: Commands, name: str, command: Command, text: str, *, json_too: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    if json_too:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_listing(commands: Commands) -> None:
    methods = _add(commands, "methods", listing.methods, "List the methods, or show one.")
    methods.add_argument("name", nargs="?", help="show this one with its settings")
    _add(commands, "models", listing.models, "List the models that can be named in a spec.")
    datasets = _add(commands, "datasets", listing.datasets, "List the datasets, or look into a file.")
    datasets.add_argument("file", nargs="?", help="a CSV, TSV or JSON Lines file to look into")
    plan = _add(commands, "plan", listing.plan, "Say what a spec would train and cost, without training.")
    _spec_arguments(plan)
    _add(commands, "doctor", listing.doctor, "Check this machine, its packages, the model and the store.")


def _spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a YAML or JSON file with the run's spec")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field, as in train.seed=3"
    )


def _add_running(commands: Commands) -> None:
    run = _add(commands, "run", running.run, "Train in the foreground, without a server.", json_too=False)
    _spec_arguments(run)
    run.add_argument("--quiet", action="store_true", help="print the summary only")
    submit = _add(commands, "submit", running.submit, "Queue a run for the engine, starting it when needed.")
    _spec_arguments(submit)
    submit.add_argument("--seeds", type=int, default=1, help="queue this many runs, with consecutive seeds")
    submit.add_argument("--again", action="store_true", help="train even if an identical finished run exists")
    runs = _add(commands, "runs", running.runs, "List the runs.")
    runs.add_argument("--state", help="only runs in this state")
    show = _add(commands, "show", running.show, "Show one run.")
    show.add_argument("run")
    stop = _add(commands, "stop", running.stop, "Stop a run.")
    stop.add_argument("run")
    stop.add_argument("--discard", action="store_true", help="do not keep its checkpoint")
    resume = _add(commands, "resume", running.resume, "Go on with a stopped run from its checkpoint.")
    resume.add_argument("run")


def _add_results(commands: Commands) -> None:
    answer = _add(commands, "try", running.answer, "Let the base model and finished runs answer one text.")
    answer.add_argument("run", nargs="+")
    answer.add_argument("--text", required=True)
    answer.add_argument("--pair", help="second sentence, for sentence pairs")
    export = _add(commands, "export", running.export, "Write a finished run's result to a file or folder.")
    export.add_argument("run")
    export.add_argument("--as", dest="format", required=True, help="delta, peft, merged, result, recording, ...")
    export.add_argument("--to", required=True, metavar="FILE")
    prune = _add(commands, "prune", running.prune, "Delete old runs, or show what that would free.")
    prune.add_argument("--older-than", type=float, default=30.0, metavar="DAYS")
    prune.add_argument("--yes", action="store_true", help="really delete")


def _add_service(commands: Commands) -> None:
    serve = _add(commands, "serve", running.serve, "Run the engine: queue, workers, answers.", json_too=False)
    serve.add_argument("--idle-minutes", type=float, default=30.0, help="leave after this long without work")
    bench = _add(commands, "bench", running.bench, "Measure what the README claims.", json_too=False)
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="a benchmark's name and its options")
