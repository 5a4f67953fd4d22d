"""What is written down when a run is submitted: its id, its folder and the first state of its row."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping
from typing import Any

from engine.spec import RunSpec
from engine.store.database import storing
from engine.store.paths import Layout, RunFolder


def new_folder(layout: Layout, spec: RunSpec) -> RunFolder:
    """Make the folder of a new run, under an id that is still free, with its spec in it.

    Raises:
        StoreError: when it cannot be written.
    """
    while True:
        folder = layout.run(new_id(spec.method.name))
        with storing(folder.root):
            try:
                folder.root.mkdir(parents=True)
            except FileExistsError:
                continue
            folder.spec.write_text(spec.to_yaml(), encoding="utf-8")
        return folder


def new_id(method: str, now: float | None = None) -> str:
    """An id: date, time, method and four random letters."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    word = "".join(letter for letter in method.lower() if letter.isalnum() and letter.isascii())[:24]
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(4))
    return f"{stamp}-{word or 'run'}-{letters}"


def seeds_of(spec: RunSpec) -> list[int]:
    """The seeds of the four streams, as they take effect."""
    return [spec.train.seed_of(stream) for stream in ("init", "head", "data", "method")]


def new_row(spec: RunSpec, plan: Mapping[str, Any], *, owner: str, parent: str | None, priority: int) -> dict[str, Any]:
    """The columns of a queued run, by name."""
    return {
        "spec_hash": spec.hash(),
        "spec": json.dumps(spec.canonical()),
        "plan": json.dumps(plan),
        "method": spec.method.name,
        "model": spec.model,
        "dataset": spec.dataset.source,
        "seed": spec.train.seed,
        "seeds": json.dumps(seeds_of(spec)),
        "device": spec.train.device,
        "owner": owner,
        "steps": spec.train.steps,
        "created": time.time(),
        "parent": parent,
        "priority": priority,
    }
