"""Commands about runs, from `run` and `submit` to `export` and `prune`, and those that measure finished ones."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import settings
from engine.cli.listing import emit, spec_of, table
from engine.errors import SpecError
from engine.spec import RunSpec, with_recipe
from engine.store.rights import MACHINE
from engine.store.run_row import STATES, RunRow
from engine.store.runs import Runs

if TYPE_CHECKING:
    from engine.plan import Plan

DAY = 86_400.0


def run(arguments: argparse.Namespace) -> int:
    """Train in the foreground; the last line printed is the summary as JSON."""
    from engine.jobs.foreground import run_here
    from engine.plan import make_plan

    plan = make_plan(spec_of(arguments))
    with _progress(not (arguments.quiet or arguments.json) and sys.stderr.isatty()):
        row = run_here(settings.home(), plan.spec, plan.to_json(), owner=MACHINE)
    if row.summary is None or row.state != "finished":
        print(json.dumps({"run": row.id, "status": row.state, "error": row.error, "todo": row.todo}))
        print(f"{row.state}: {row.error or ''} {row.todo or ''}".strip(), file=sys.stderr)
        return 130 if row.state == "stopped" else 1
    print(json.dumps(row.summary))
    return 0


@contextlib.contextmanager
def _progress(wanted: bool) -> Iterator[None]:
    """One line on the terminal that says where the newest run is."""
    over = threading.Event()

    def show() -> None:
        runs = Runs(settings.home())
        while not over.wait(0.5):
            row = next(iter(runs.list(states=["active"], limit=1)), None)
            if row:
                print(f"\r{row.phase} {row.phase_done}/{row.phase_total}   ", end="", file=sys.stderr, flush=True)
        print("\r", end="", file=sys.stderr)

    thread = threading.Thread(target=show, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if wanted:
            thread.join()


def submit(arguments: argparse.Namespace) -> int:
    """Queue runs for the engine."""
    from engine.jobs import client
    from engine.plan import make_plan

    asked = spec_of(arguments)
    with_recipe(asked, seed=asked.train.seed + arguments.seeds - 1)  # refused before anything is queued
    rows = []
    for number in range(arguments.seeds):
        plan = make_plan(with_recipe(asked, seed=asked.train.seed + number))
        same = None if arguments.again else _identical(plan)
        run_id = same.id if same else client.submit(settings.home(), plan.spec, plan.to_json(), owner=MACHINE)
        rows.append({"run": run_id, "seed": plan.spec.train.seed, "state": "finished before" if same else "queued"})
    return emit(arguments, rows, table(rows))


def _identical(plan: Plan) -> RunRow | None:
    runs = Runs(settings.home())
    try:
        return runs.find_identical(plan.spec, plan.sources)
    finally:
        runs.close()


def runs(arguments: argparse.Namespace) -> int:
    """List the runs, newest first."""
    from engine.jobs.foreground import settle_lost

    if arguments.state and arguments.state not in STATES:
        raise SpecError(f"There is no state {arguments.state!r}.", f"Known: {', '.join(STATES)}.")
    settle_lost(settings.home())
    rows = Runs(settings.home()).list(states=[arguments.state] if arguments.state else None)
    return emit(arguments, [_plain(row) for row in rows], table([_short(row) for row in rows]))


def _short(row: RunRow) -> dict[str, Any]:
    accuracy = row.summary["accuracy"]["test"] if row.summary else None
    return {
        "run": row.id,
        "state": row.state,
        "method": row.method,
        "model": Path(row.model).name,
        "dataset": Path(row.dataset).name,
        "seed": row.seed,
        "step": f"{row.step}/{row.steps}",
        "test accuracy": f"{100 * accuracy:.1f} %" if accuracy is not None else "",
    }


def _plain(row: RunRow) -> dict[str, Any]:
    return vars(row)


def show(arguments: argparse.Namespace) -> int:
    """Show one run."""
    from engine.jobs.foreground import settle_lost

    settle_lost(settings.home())
    row = Runs(settings.home()).find(arguments.run)
    lines = [f"{key:14} {value}" for key, value in _short(row).items()]
    if row.error:
        lines.append(f"{'why':14} {row.error} {row.todo or ''}")
    if row.summary:
        lines += ["", json.dumps(row.summary, indent=2)]
    return emit(arguments, _plain(row), "\n".join([*lines, "", RunSpec.model_validate(row.spec).to_yaml()]))


def stop(arguments: argparse.Namespace) -> int:
    """Stop a run, as the machine's own user."""
    from engine.jobs import client

    row = Runs(settings.home()).find(arguments.run)
    row = client.stop(settings.home(), row.id, "discard" if arguments.discard else "keep", MACHINE)
    return emit(arguments, _plain(row), f"{row.id} is {'stopping' if row.state == 'active' else row.state}")


def resume(arguments: argparse.Namespace) -> int:
    """Queue a stopped run again."""
    from engine.jobs import client

    row = Runs(settings.home()).find(arguments.run)
    row = client.resume(settings.home(), row.id, MACHINE)
    return emit(arguments, _plain(row), f"{row.id} is {row.state}")


def answer(arguments: argparse.Namespace) -> int:
    """Let base models and runs answer a text, in this process."""
    from engine.answer import answer as ask

    store = Runs(settings.home())
    found = ask(settings.home(), [store.find(name).id for name in arguments.run], arguments.text, arguments.pair)
    rows = [
        {
            "who": entry["title"],
            "answer": entry["predicted"],
            **{label: f"{p:.3f}" for label, p in zip(entry["labels"], entry["probabilities"], strict=True)},
        }
        for entry in found["answers"]
    ]
    return emit(arguments, found, table(rows))


def export(arguments: argparse.Namespace) -> int:
    """Write a run's result."""
    from engine.export import export_run

    row = Runs(settings.home()).find(arguments.run)
    written = export_run(settings.home(), row.id, arguments.format, Path(arguments.to))
    return emit(arguments, {"run": row.id, "format": arguments.format, "file": str(written)}, f"wrote {written}")


def overlap(arguments: argparse.Namespace) -> int:
    """Say how far the masks of finished runs agree."""
    from engine.probes.recorded import mask_of
    from engine.stats.overlap import left_out, overlaps
    from engine.store.run_reader import RunReader

    store = Runs(settings.home())
    masks = []
    for name in arguments.run:
        row = store.find(name)
        with RunReader(store.folder(row.id).database) as reader:
            count = reader.latest().get("mask/selected", (0, 0.0))[1]
            mask = mask_of(f"{row.method} {row.id}", row.method, reader.metas(), reader.selection(), count)
        if mask is None:
            raise SpecError(f"Run {row.id} has no mask on record: none, or too many entries.", "Leave it out.")
        masks.append(mask)
    if len(masks) < 2:
        raise SpecError("One mask has nothing to be compared with.", "Name at least two runs.")
    found = overlaps(masks)
    rows = [
        {
            "first": pair.first,
            "second": pair.second,
            "common": pair.common,
            "by lot": f"{pair.expected:.1f}",
            "within tensors": f"{pair.within:.1f}",
            "jaccard": f"{pair.jaccard:.4f}",
        }
        for pair in found
    ]
    text = "\n".join([table(rows), "", *(pair.sentence for pair in found), *filter(None, [left_out(masks, found)])])
    return emit(arguments, [vars(pair) for pair in found], text)


def budgets(arguments: argparse.Namespace) -> int:
    """Measure one run at growing sizes of its mask."""
    from engine.export.budgets import budgets as measure

    row = Runs(settings.home()).find(arguments.run)
    folder = Path(arguments.write) if arguments.write else None
    found = measure(settings.home(), row.id, folder=folder)
    rows = [
        {
            "weights": f"{entry['params']:,}",
            "until step": entry["step"],
            "accuracy": f"{100 * entry['accuracy']:.1f} % [{100 * entry['ci95'][0]:.1f}, {100 * entry['ci95'][1]:.1f}]",
            **({"file": entry["file"]} if folder else {}),
        }
        for entry in found["rows"]
    ]
    return emit(arguments, found, table(rows))


def ages(arguments: argparse.Namespace) -> int:
    """Say how far the weights of one run moved, by when they were selected."""
    from engine.export.ages import ages as measure

    found = measure(settings.home(), Runs(settings.home()).find(arguments.run).id)
    rows = [
        {
            "selected at steps": f"{entry['first'] + 1:,} to {entry['last'] + 1:,}",
            "weights": f"{entry['count']:,}",
            "median change": f"{entry['quartiles'][1]:.2e}",
            "middle half": f"{entry['quartiles'][0]:.1e} to {entry['quartiles'][2]:.1e}",
            "unmoved": f"{entry['unmoved']:,}",
        }
        for entry in found["rows"]
    ]
    return emit(arguments, found, table(rows))


def prune(arguments: argparse.Namespace) -> int:
    """Delete runs that have been over for long; without ``--yes`` only say which."""
    store = Runs(settings.home())
    before = time.time() - arguments.older_than * DAY
    sizes = store.usage()
    old = [row for row in store.list(hidden=True) if row.is_over and (row.finished or row.created) < before]
    rows = [{"run": row.id, "state": row.state, "MiB": f"{sizes.get(row.id, 0) / 2**20:.1f}"} for row in old]
    if arguments.yes:
        for row in old:
            store.delete(row.id)
    heading = "deleted" if arguments.yes else "would delete (add --yes)"
    data = {"deleted": arguments.yes, "runs": [row.id for row in old], "bytes": sum(sizes.get(r.id, 0) for r in old)}
    return emit(arguments, data, f"{heading}:\n{table(rows)}")


def serve(arguments: argparse.Namespace) -> int:
    """Be the engine until idle."""
    from engine.jobs.options import Options
    from engine.jobs.serve import serve as be_the_engine

    minutes = settings.idle_minutes() if arguments.idle_minutes is None else arguments.idle_minutes
    served = be_the_engine(settings.home(), Options(idle_seconds=60 * minutes))
    text = "the engine has left" if served else "another engine serves this store already"
    return emit(arguments, {"served": served, "home": str(settings.home())}, text)


def bench(arguments: argparse.Namespace) -> int:
    """Run a benchmark; as JSON, what it prints comes as lines once it is over."""
    from engine.bench import main

    name, *rest = [word for word in arguments.rest if word != "--json"] or [""]
    if not (arguments.json or "--json" in arguments.rest):
        return main([name, *rest])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([name, *rest])
    emit(argparse.Namespace(json=True), {"benchmark": name, "printed": printed.getvalue().splitlines()}, "")
    return status
