"""Commands that look and change nothing: methods, models, datasets, plan, doctor."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import yaml

from engine import settings
from engine.devices import cpu_threads, cuda_devices
from engine.errors import EngineError, SpecError, shown
from engine.methods import registry
from engine.spec import RunSpec, parse_spec, read_spec
from engine.store.provenance import cpu_name


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text; the keys of the first row are the heading."""
    if not rows:
        return "none"
    keys = list(rows[0])
    cells = [[str(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(key), *(len(line[i]) for line in cells)) for i, key in enumerate(keys)]
    lines = [keys, *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def emit(arguments: argparse.Namespace, data: Any, text: str) -> int:
    """Print data as JSON when asked for, else the text."""
    print(json.dumps(data, default=str, ensure_ascii=False) if arguments.json else text)
    return 0


def spec_of(arguments: argparse.Namespace) -> RunSpec:
    """The spec file with the changes of ``--set`` applied.

    Raises:
        SpecError: for a malformed file or change.
    """
    data = read_spec(arguments.spec).model_dump(mode="json", exclude_unset=True)
    for change in arguments.set:
        path, equals, value = change.partition("=")
        if not equals:
            raise SpecError(f"--set takes FIELD=VALUE, not {shown(change)}.", "For example: --set train.seed=3")
        place = data
        *parents, last = path.split(".")
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise SpecError(f"--set {path}: {key} has no fields.", "Check the field's path.")
        try:
            place[last] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise SpecError(f"--set {path}: {shown(value)} is not YAML.", "Close its brackets and quotes.") from None
    return parse_spec(data)


def methods(arguments: argparse.Namespace) -> int:
    """List the methods, or show one with its settings."""
    if arguments.name:
        return _one_method(arguments)
    rows = [
        {"name": m.name, "family": m.family, "title": m.title, "year": m.paper.year, "lr": m.lr.value}
        for m in registry.methods().values()
    ]
    return emit(arguments, rows, table(rows))


def _one_method(arguments: argparse.Namespace) -> int:
    method = registry.method_named(arguments.name)
    schema = method.Config.model_json_schema()
    text = inspect.cleandoc(method.__doc__ or "")
    settings_rows = [
        {"setting": name, "default": field.get("default"), "what": field.get("description", "")}
        for name, field in schema.get("properties", {}).items()
    ]
    data = {
        "name": method.name,
        "title": method.title,
        "family": method.family,
        "paper": vars(method.paper),
        "formula": method.formula,
        "symbols": method.symbols,
        "lr": asdict(method.lr),
        "exports": list(method.export_formats),
        "settings": schema,
        "text": text,
        "notes": method.notes,
    }
    head = f"{method.title} ({method.family}): {method.paper.authors}, {method.paper.venue}. {method.paper.url}"
    return emit(arguments, data, "\n\n".join([head, text, method.notes, table(settings_rows)]))


def models(arguments: argparse.Namespace) -> int:
    """List the models."""
    from engine.models.catalogue import models as entries

    rows = [vars(entry) for entry in entries()]
    short = [{key: row[key] for key in ("id", "title", "available", "description")} for row in rows]
    return emit(arguments, rows, table(short) + "\nAlso: a local folder, or a hub id.")


def datasets(arguments: argparse.Namespace) -> int:
    """List the datasets, or look into a file of the user's own."""
    from engine.tasks.catalogue import datasets as entries
    from engine.tasks.files import inspect_file

    if arguments.file:
        look = asdict(inspect_file(arguments.file))
        return emit(arguments, look, "\n".join(f"{key}: {value}" for key, value in look.items()))
    rows = [vars(entry) for entry in entries()]
    short = [{key: row[key] for key in ("id", "title", "available", "description")} for row in rows]
    return emit(arguments, rows, table(short) + "\nAlso: a CSV, TSV or JSON Lines file, or a hub id.")


def plan(arguments: argparse.Namespace) -> int:
    """Say what a spec would train and cost."""
    from engine.plan import make_plan

    made = make_plan(spec_of(arguments))
    count = made.params
    asked = f"{count.requested:,} asked for, " if count.requested else ""
    lines = [
        made.spec.to_yaml(),
        f"trains    {asked}{count.method:,} by the method + head {count.head:,}"
        f" = {100 * count.method / count.model:.3g} % of {count.model:,}",
        f"memory    ~{made.memory_bytes / 2**20:,.0f} MiB (estimated)",
        f"time      ~{made.seconds:,.0f} s (estimated)",
        *(f"warning   {text}" for text in made.warnings),
    ]
    return emit(arguments, made.to_json(), "\n".join(lines))


def doctor(arguments: argparse.Namespace) -> int:
    """Check what a run needs, one line each; the exit status is 1 when something is wrong."""
    rows = [
        _check("python", lambda: sys.version.split()[0]),
        *(_check(name, lambda name=name: metadata.version(name)) for name in ("torch", "transformers", "peft")),
        _check("processor", lambda: f"{cpu_name()}, {cpu_threads()} threads"),
        _check("cuda devices", lambda: str(cuda_devices())),
        _check("store", _store_room),
        _check("model minilm-l6", _embedded_model),
        _check("dataset rotten_tomatoes", _embedded_dataset),
        _check("engine", _engine_state),
    ]
    emit(arguments, rows, table(rows))
    return int(any(row["state"] != "ok" for row in rows))


def _check(name: str, look: Any) -> dict[str, str]:
    try:
        return {"check": name, "state": "ok", "found": look()}
    except (EngineError, OSError, metadata.PackageNotFoundError) as error:
        return {"check": name, "state": "wrong", "found": str(error)}


def _store_room() -> str:
    home = settings.home()
    home.mkdir(parents=True, exist_ok=True)
    return f"{home}, {shutil.disk_usage(home).free / 2**30:.1f} GiB free"


def _embedded_model() -> str:
    from engine.models.catalogue import resolve_model

    return f"sha256 {resolve_model('minilm-l6').sha256[:12]}"


def _embedded_dataset() -> str:
    from engine.spec import DatasetChoice
    from engine.tasks.catalogue import load_dataset

    sizes = {
        name: len(split.labels) for name, split in load_dataset(DatasetChoice(source="rotten_tomatoes")).splits.items()
    }
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())


def _engine_state() -> str:
    from engine.jobs.client import engine_state

    state = engine_state(settings.home())
    return f"running, pid {state.pid}" if state else "not running (it is started when a run is submitted)"
