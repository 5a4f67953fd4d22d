"""A run's record in one JSON file, replayed without computing anything: curves, masks, ranks, changes.

Arrays of one kind of frame are stacked, narrowed to the smallest integer type that holds them,
compressed and written as text. `Recording` answers like `engine.store.run_reader.RunReader`, so
that a page shows it as it shows a run.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import DataError
from engine.export.finished import Finished
from engine.store.run_reader import Note, PhaseState, Series

FORMAT = "peftscope-recording/1"
POINTS = 240
"""Points kept of each curve."""
FRAMES = 80
"""Frames kept of each kind."""
WHOLE = ("layers", "importance")
"""Kinds of which every frame counts, because each holds until the next."""
EXACT_ENTRIES = 60_000
"""Masks of up to this many entries are recorded entry by entry; of larger ones the counts alone."""


def record(finished: Finished) -> dict[str, Any]:
    """A run's record as JSON data."""
    reader, row = finished.reader, finished.row
    kinds = [kind for kind in reader.frame_kinds() if kind != "selected"]
    entries = reader.selection()
    exact = 0 < len(entries["index"]) <= EXACT_ENTRIES
    return {
        "format": FORMAT,
        "run": {
            "id": row.id,
            "state": row.state,
            "method": row.method,
            "model": row.model,
            "dataset": row.dataset,
            "seed": row.seed,
            "steps": row.steps,
            "spec_hash": row.spec_hash,
            "created": row.created,
            "started": row.started,
            "finished": row.finished,
            "error": row.error,
        },
        "spec": finished.spec.canonical(),
        "plan": row.plan,
        "summary": row.summary,
        "metas": reader.metas(),
        "scalars": {key: _curve(*series) for key, series in reader.scalars(max_points=POINTS).items()},
        "frames": {kind: _frames(reader, kind) for kind in kinds},
        "selection": {name: pack(column) for name, column in entries.items()} if exact else None,
        "notes": [{"at": n.at, "level": n.level, "text": n.text, "step": n.step} for n in reader.notes()],
    }


def encode(data: dict[str, Any], *, compressed: bool) -> bytes:
    """The record as bytes; the same record gives the same bytes."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return gzip.compress(text, mtime=0) if compressed else text


def read_recording(path: Path) -> Recording:
    """Open a recording, compressed or not.

    Raises:
        DataError: when it is missing, damaged or of another format.
    """
    try:
        raw = path.read_bytes()
        data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"The recording {path} cannot be read: {error}.", "Export the run again.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path} is not a recording of this version.", "Export the run again.")
    return Recording(data)


class Recording:
    """A recorded run; its methods mean what `RunReader`'s do, and nothing in it ever changes."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self._stacks: dict[str, tuple[list[int], dict[str, np.ndarray]]] = {}

    @property
    def run(self) -> dict[str, Any]:
        """Id, method, model, dataset, seed and times of the run."""
        return dict(self.data["run"])

    def version(self) -> int:
        """Always 1."""
        return 1

    def phase(self) -> PhaseState:
        """The end."""
        steps = int(self.data["run"]["steps"])
        return PhaseState("finished", steps, steps, float(self.data["run"]["finished"] or 0.0))

    def keys(self) -> list[str]:
        """The names of all series."""
        return sorted(self.data["scalars"])

    def scalars(self, keys: Iterable[str] | None = None, max_points: int = POINTS) -> dict[str, Series]:
        """Series as (steps int64, values float64), as many points as were recorded."""
        wanted = self.keys() if keys is None else [key for key in keys if key in self.data["scalars"]]
        return {key: self._series(self.data["scalars"][key]) for key in wanted}

    def latest(self) -> dict[str, tuple[int, float]]:
        """The last (step, value) of every series."""
        series = self.scalars()
        return {key: (int(steps[-1]), float(values[-1])) for key, (steps, values) in series.items() if len(steps)}

    def frame_kinds(self) -> list[str]:
        """The kinds of which there are frames."""
        return sorted(self.data["frames"])

    def frame_index(self, kind: str) -> list[tuple[int, int]]:
        """(version, step) of each frame of a kind, by step."""
        return [(step, step) for step in self._stack(kind)[0]]

    def frame(
        self, kind: str, version: int | None = None, *, step: int | None = None
    ) -> tuple[int, dict[str, np.ndarray]] | None:
        """One frame as (step, arrays): the latest, or the newest not after a version or step."""
        steps, arrays = self._stack(kind)
        if not steps:
            return None
        limit = step if version is None else version
        place = len(steps) - 1 if limit is None else max(0, int(np.searchsorted(steps, limit, side="right")) - 1)
        return steps[place], {name: stack[place] for name, stack in arrays.items()}

    def selection(self, until_step: int | None = None) -> dict[str, np.ndarray]:
        """All entries selected until a step; none when the mask was too large to record exactly."""
        stored = self.data["selection"]
        if stored is None:
            return {name: np.empty(0, np.int32) for name in ("tensor", "index", "step")}
        chosen = {name: unpack(item).astype(np.int32) for name, item in stored.items()}
        early = chosen["step"] <= (np.iinfo(np.int32).max if until_step is None else until_step)
        return {name: column[early] for name, column in chosen.items()}

    def notes(self) -> list[Note]:
        """All notes, oldest first."""
        return [Note(**note) for note in self.data["notes"]]

    def meta(self, key: str, default: Any = None) -> Any:
        """One value that describes the run."""
        return self.data["metas"].get(key, default)

    def metas(self) -> dict[str, Any]:
        """All values that describe the run."""
        return dict(self.data["metas"])

    def close(self) -> None:
        """Nothing is open."""

    def _stack(self, kind: str) -> tuple[list[int], dict[str, np.ndarray]]:
        if kind not in self._stacks:
            stored = self.data["frames"].get(kind, {"steps": [], "arrays": {}})
            arrays = {name: unpack(item) for name, item in stored["arrays"].items()}
            self._stacks[kind] = (stored["steps"], arrays)
        return self._stacks[kind]

    @staticmethod
    def _series(stored: dict[str, Any]) -> Series:
        values = [np.nan if value is None else value for value in stored["value"]]
        return np.array(stored["step"], np.int64), np.array(values, np.float64)


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as text: type, shape and compressed little-endian bytes; integers as narrow as they fit."""
    narrow = _narrow(array) if array.dtype.kind in "iu" and array.size else array
    order = np.ascontiguousarray(narrow.astype(narrow.dtype.newbyteorder("<"), copy=False))
    text = base64.b64encode(zlib.compress(order.tobytes(), 9)).decode("ascii")
    return {"type": order.dtype.str, "shape": list(array.shape), "data": text}


def unpack(stored: dict[str, Any]) -> np.ndarray:
    """The array of `pack`; integers come back narrow."""
    raw = zlib.decompress(base64.b64decode(stored["data"]))
    return np.frombuffer(raw, dtype=np.dtype(stored["type"])).reshape(stored["shape"])


def _narrow(array: np.ndarray) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    kinds = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int8, np.int16, np.int32)
    for kind in kinds:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def _curve(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Six digits are more than a picture shows; a value that is not finite becomes null."""
    numbers = [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
    return {"step": steps.tolist(), "value": numbers}


def _frames(reader: Any, kind: str) -> dict[str, Any]:
    """All frames of a kind, thinned evenly if they may be, as stacks over steps."""
    steps = [step for _, step in reader.frame_index(kind)]
    if len(steps) > FRAMES and kind not in WHOLE:
        places = np.unique(np.linspace(0, len(steps) - 1, FRAMES).round().astype(int))
        steps = [steps[place] for place in places]
    found = [frame for step in steps if (frame := reader.frame(kind, step=step)) is not None]
    names = found[0][1].keys() if found else ()
    return {
        "steps": [step for step, _ in found],
        "arrays": {name: pack(np.stack([arrays[name] for _, arrays in found])) for name in names},
    }
