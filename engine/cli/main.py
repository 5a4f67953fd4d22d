"""Parses `python -m engine ...` and calls one command; errors become one plain line, or JSON when asked for."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from engine.cli import inside, listing, models, running
from engine.errors import EngineError, clipped

Command = Callable[[argparse.Namespace], int]


class _WrongUsage(Exception):
    """What the command line says cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _WrongUsage(f"{message}.", self.format_usage().strip())


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[_Parser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _carry_out(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has seen enough. Python flushes once more when it leaves, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _carry_out(words: Sequence[str]) -> int:
    as_json = "--json" in words
    try:
        _check_text(words)
        arguments = _parser().parse_args(words)
        command: Command = arguments.command
        return command(arguments)
    except _WrongUsage as error:
        return _say(as_json, 2, *error.args)
    except EngineError as error:
        return _say(as_json, 1, error.what, error.todo)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _say(as_json, 1, f"{error.filename or 'A file'}: {error.strerror or error}.", "Check it and try again.")


def _check_text(words: Sequence[str]) -> None:
    """Refuse what is no text: it could be neither stored nor shown."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode("ascii", "backslashreplace").decode()
            raise _WrongUsage(f"{shown} holds bytes that are not UTF-8.", "Write it in UTF-8.") from None


def _say(as_json: bool, status: int, what: str, todo: str) -> int:
    """Say on both streams what went wrong; returns the exit status."""
    what, todo = clipped(what), clipped(todo)
    if as_json:
        print(json.dumps({"error": what, "todo": todo}, ensure_ascii=False))
    print(f"error: {what} {todo}".strip(), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m engine", description="PEFTscope's engine, from a terminal.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_listing(commands)
    _add_running(commands)
    _add_results(commands)
    _add_models(commands)
    _add_service(commands)
    return parser


def _add(commands: Commands, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print one JSON document, errors too")
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
    run = _add(commands, "run", running.run, "Train in the foreground, without a server.")
    _spec_arguments(run)
    run.add_argument("--quiet", action="store_true", help="print the summary only")
    submit = _add(commands, "submit", running.submit, "Queue a run for the engine, starting it when needed.")
    _spec_arguments(submit)
    submit.add_argument("--seeds", type=_one_or_more, default=1, help="queue this many runs, with consecutive seeds")
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
    overlap = _add(commands, "overlap", running.overlap, "Say how far the masks of runs agree, and how far by lot.")
    overlap.add_argument("run", nargs="+")
    plane = _add(commands, "plane", inside.plane, "Say where chosen and other weights lie by value and gradient.")
    plane.add_argument("run")
    plane.add_argument("--step", type=int, help="the newest recorded moment not after this step; the last by default")
    plane.add_argument("--bins", action="store_true", help="print every bin that holds weights, not their sums")
    layers = _add(commands, "layers", inside.layers, "Say which layers a run trained, over its steps.")
    layers.add_argument("run")
    findings = _add(
        commands, "findings", inside.findings, "Say what a method measured of the layers or heads to choose by."
    )
    findings.add_argument("run")
    budgets = _add(commands, "budgets", running.budgets, "Measure one run of ID3 at ten sizes of its mask.")
    budgets.add_argument("run")
    budgets.add_argument("--write", metavar="FOLDER", help="write each size as a delta")
    ages = _add(commands, "ages", running.ages, "Say how far weights moved, by when they were selected.")
    ages.add_argument("run")
    prune = _add(commands, "prune", running.prune, "Delete old runs, or show what that would free.")
    prune.add_argument("--older-than", type=_not_negative, default=30.0, metavar="DAYS")
    prune.add_argument("--yes", action="store_true", help="really delete")


def _add_models(commands: Commands) -> None:
    prompt = _add(commands, "prompt", models.prompt, "Ask a decoder questions with solved ones in front.")
    prompt.add_argument("--model", default="nano-llama", help="a decoder: an id, a folder or a hub id")
    prompt.add_argument("--task", required=True, help="sums, hidden, copy, reversal, rotation, anagram or sentiment")
    prompt.add_argument("--shots", default="0,1,2,4,8", help="how many solved questions, several with commas")
    prompt.add_argument("--questions", type=_one_or_more, default=200, help="how many, where the task leaves it open")
    divergence = _add(
        commands, "divergence", models.divergence, "From KL to Fisher: how far answers move when weights do."
    )
    divergence.add_argument("--model", default="nano-bert")
    divergence.add_argument("--dataset", default="rotten_tomatoes")
    divergence.add_argument("--k", type=_one_or_more, default=1_000, help="weights of each group")
    divergence.add_argument("--examples", type=_one_or_more, default=32)
    divergence.add_argument("--seed", type=int, default=0)
    pretrain = _add(commands, "pretrain", models.pretrain, "Make a nano model as the shipped ones were made.")
    pretrain.add_argument("name", help="nano-bert or nano-llama")
    pretrain.add_argument("--to", required=True, metavar="FOLDER", help="where the model is written")
    pretrain.add_argument("--work", metavar="FOLDER", help="where checkpoints are kept; in the store by default")
    pretrain.add_argument("--device", default="auto")
    pretrain.add_argument("--threads", type=_one_or_more, help="CPU threads")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--steps", type=_one_or_more, help="other than the recipe's")


def _add_service(commands: Commands) -> None:
    serve = _add(commands, "serve", running.serve, "Run the engine: queue, workers, answers.")
    serve.add_argument("--idle-minutes", type=_not_negative, help="leave after this long without work")
    bench = _add(commands, "bench", running.bench, "Measure what the README claims.")
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="a benchmark's name and its options")


def _one_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return number
