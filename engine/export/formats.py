"""The formats a run can be exported in, and the one entry point to all of them. Needs no torch until it writes one."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import EngineError, SpecError, StoreError, UnknownName
from engine.export import tensors, weights
from engine.export.finished import Finished, chain_of, opened
from engine.export.peft_result import peft_result
from engine.export.recording import encode, record
from engine.methods.registry import method_named
from engine.spec import MethodChoice
from engine.training.result_file import write_whole

Name = Literal["delta", "peft", "merged", "tensors", "result", "recording", "spec", "command", "csv"]


@dataclass(frozen=True)
class Format:
    """One way to take a run away.

    Attributes:
        name: what `--as` takes.
        title, description: for people.
        suffix: of its file; a folder's is that of its archive.
        folder: whether it is a folder; it becomes a zip archive when the target ends in ``.zip``.
        result: whether the run must have finished.
        recorded: whether it is made from what was recorded while the run was trained.
        write: writes it for an opened run to a path that does not exist yet.
    """

    name: Name
    title: str
    description: str
    suffix: str
    folder: bool
    result: bool
    write: Callable[[Finished, Path], None]
    recorded: bool = False


def _write_result(finished: Finished, target: Path) -> None:
    target.write_text(json.dumps(peft_result(finished), indent=2, allow_nan=False), encoding="utf-8")


def _write_recording(finished: Finished, target: Path) -> None:
    target.write_bytes(encode(record(finished), compressed=True))


def _write_spec(finished: Finished, target: Path) -> None:
    target.write_text(finished.spec.to_yaml(), encoding="utf-8")


def _write_command(finished: Finished, target: Path) -> None:
    target.write_text(command_of(finished.row.id) + "\n", encoding="utf-8")


def _write_csv(finished: Finished, target: Path) -> None:
    series = finished.reader.scalars(max_points=10**9)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["key", "step", "value"])
    for key, (steps, values) in series.items():
        writer.writerows((key, int(step), repr(float(value))) for step, value in zip(steps, values, strict=True))
    target.write_text(lines.getvalue(), encoding="utf-8")


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "delta",
            "Sparse delta",
            "The changed weights alone, with their places: one small safetensors file.",
            ".safetensors",
            False,
            True,
            weights.write_delta,
        ),
        Format(
            "peft",
            "Adapter for peft",
            "A folder that PeftModel.from_pretrained loads onto the base model.",
            ".zip",
            True,
            True,
            weights.write_peft,
        ),
        Format(
            "merged",
            "Whole model",
            "A folder that AutoModelForSequenceClassification.from_pretrained loads.",
            ".zip",
            True,
            True,
            weights.write_merged,
        ),
        Format(
            "tensors",
            "Trained tensors",
            "What was added and trained, and the head: one safetensors file. It cannot be merged into the base model; "
            "engine.export.tensors puts it around one.",
            ".safetensors",
            False,
            True,
            tensors.write_tensors,
        ),
        Format(
            "result",
            "Result for peft's comparison",
            "Settings and measurements in the JSON of peft's method comparison.",
            ".json",
            False,
            True,
            _write_result,
            recorded=True,
        ),
        Format(
            "recording",
            "Recording",
            "Curves and inside views, to be played back without computing.",
            ".json.gz",
            False,
            False,
            _write_recording,
            recorded=True,
        ),
        Format(
            "spec", "Spec", "What was run, as YAML, with every setting explicit.", ".yaml", False, False, _write_spec
        ),
        Format(
            "command", "Command", "The line that repeats the run from its spec.", ".sh", False, False, _write_command
        ),
        Format("csv", "Curves", "Every recorded number, as a table.", ".csv", False, False, _write_csv, recorded=True),
    )
}


def command_of(run_id: str) -> str:
    """The line that repeats a run, beside its exported spec."""
    return f"python -m engine run {run_id}.yaml"


def formats_of(choice: MethodChoice, state: str = "finished") -> tuple[Format, ...]:
    """What a run of this method offers in this state."""
    # On another method it is that one's tensors that are taken away: whether they can be merged is its affair.
    offered = set(method_named(chain_of(choice)[-1].name).export_formats)
    if choice.on is not None:
        offered -= {"delta"}  # entries of what was added mean nothing in the base model
    always = {"result", "recording", "spec", "command", "csv"}
    ready = (entry for entry in FORMATS.values() if state == "finished" or not entry.result)
    return tuple(entry for entry in ready if entry.name in offered | always)


def default_name(run_id: str, name: str) -> str:
    """The file's name that a download of this format gets."""
    return f"{run_id}-{name}{FORMATS[name].suffix}" if name != "spec" else f"{run_id}.yaml"


def export_run(home: Path, run_id: str, format: str, target: Path) -> Path:
    """Write one run in one format.

    Args:
        home: the store.
        run_id: the run.
        format: a key of `FORMATS`.
        target: the file to write; a folder for ``peft`` and ``merged``, or an archive when it ends
            in ``.zip``. An existing folder is filled only when it is empty; a file put into one gets
            its default name.

    Returns:
        What was written.

    Raises:
        UnknownName: for a run or format that does not exist.
        EngineError: for a run without a result, or a format that its method does not offer.
        StoreError: when its record is gone, or the disk is full or refuses; nothing half-written stays.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    entry, target = FORMATS[format], Path(target).expanduser()
    with opened(home, run_id) as finished:
        if entry.result:
            finished.check_finished()
        if entry.recorded:
            finished.check_recorded()
        _check_offered(finished, entry)
        if not entry.folder:
            path = target / default_name(run_id, format) if target.is_dir() else target
            return write_whole(path, lambda new: entry.write(finished, new))
        if target.suffix == ".zip":
            return write_whole(target, lambda new: _archive(finished, entry, new))
        return _write_folder(finished, entry, target)


def _check_offered(finished: Finished, entry: Format) -> None:
    offered = [item.name for item in formats_of(finished.spec.method, finished.row.state)]
    if entry.name not in offered:
        title = " on ".join(method.title for method in finished.methods)
        raise SpecError(f"A run of {title} cannot be exported as {entry.name}.", f"It offers: {', '.join(offered)}.")


def _write_folder(finished: Finished, entry: Format, target: Path) -> Path:
    """Fill a new folder beside the target, then rename it, so that there is never half of one."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise EngineError(f"{target} exists already.", "Name a new or empty folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as made:
            inside = Path(made) / "export"
            inside.mkdir()
            entry.write(finished, inside)
            if target.exists():
                target.rmdir()
            inside.rename(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{target} cannot be written: {reason}.", "Free some disk space, or write elsewhere."
        ) from None
    return target


def _archive(finished: Finished, entry: Format, target: Path) -> None:
    """The folder of a format as a zip archive."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as made:
        inside = Path(made) / f"{finished.row.id}-{entry.name}"
        inside.mkdir()
        entry.write(finished, inside)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(inside.rglob("*")):
                with path.open("rb") as file, archive.open(path.relative_to(made).as_posix(), "w") as out:
                    shutil.copyfileobj(file, out)
