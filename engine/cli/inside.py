"""Commands that show what a run recorded inside its model: the decision plane, turns of layers, and findings."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from engine import settings
from engine.cli.listing import emit, table
from engine.errors import SpecError
from engine.probes.found import Importance, Path, Scores, Trials, importance_of, path_of, scores_of, trials_of
from engine.probes.recorded import Plane, plane_of, turns_of
from engine.store.run_reader import RunReader
from engine.store.runs import Runs

COLUMNS = 20
"""Stretches of steps that ``layers`` prints."""


def plane(arguments: argparse.Namespace) -> int:
    """Where chosen and other weights lie by value and gradient at one recorded moment."""
    store = Runs(settings.home())
    row = store.find(arguments.run)
    with RunReader(store.folder(row.id).database) as reader:
        steps = [step for _, step in reader.frame_index("plane")]
        frame = reader.frame("plane", step=arguments.step)
        found = plane_of(reader.metas(), *frame) if frame else None
    if found is None:
        raise SpecError(
            f"Run {row.id} has no decision plane on record.",
            "Choose a run of a method that selects single weights; steps captured as CUDA graphs show no gradients.",
        )
    cells = _cells(found)
    data = {
        "run": row.id,
        "step": found.step,
        "recorded": steps,
        "boundary": found.boundary,
        "threshold": found.threshold,
        "examples": found.examples,
        "off": found.off,
        "unseen": found.unseen,
        "cells": cells,
    }
    told = [table([_short(cell) for cell in cells])] if arguments.bins else _by_decade(found, len(cells))
    return emit(arguments, data, "\n".join([*_about(found), "", *told]))


def _cells(plane: Plane) -> list[dict[str, Any]]:
    """Bins that hold any weight, those of the largest gradients first."""
    places = np.argwhere(sum(plane.tables.values()))[::-1]
    return [
        {
            "weight": [float(plane.weights[x]), float(plane.weights[x + 1])],
            "gradient": [float(plane.gradients[y]), float(plane.gradients[y + 1])],
            **{name: int(counts[y, x]) for name, counts in plane.tables.items()},
        }
        for y, x in places.tolist()
    ]


def _short(cell: dict[str, Any]) -> dict[str, Any]:
    ends = {f"|{name}| from": f"{cell[name][0]:.2e}" for name in ("weight", "gradient")}
    return ends | {name: f"{cell[name]:,}" for name in ("rest", "chosen", "new")}


def _by_decade(plane: Plane, bins: int) -> list[str]:
    """The counts of all bins, added up by power of ten: once over gradients, once over weights."""
    lines: list[str] = []
    for name, edges, axis in (("gradient", plane.gradients, 1), ("weight", plane.weights, 0)):
        decades = np.floor(np.log10(edges[:-1]) + 1e-9).astype(int)
        counts = {kind: table.sum(axis=axis) for kind, table in plane.tables.items()}
        rows = [
            {f"|{name}| from": f"1e{decade:+03d}"}
            | {kind: f"{int(counts[kind][decades == decade].sum()):,}" for kind in ("rest", "chosen", "new")}
            for decade in np.unique(decades)[::-1].tolist()
            if any(counts[kind][decades == decade].any() for kind in counts)
        ]
        lines += [table(rows), ""]
    return [
        *lines,
        f"{bins:,} bins hold weights, here by the power of ten of their lower ends: --bins prints each, --json too.",
    ]


def _about(plane: Plane) -> list[str]:
    of = f"over {plane.examples:,} single examples, before training" if plane.examples else "of the step's batch"
    lines = [f"after step {plane.step:,}; gradients {of}"]
    if plane.boundary is not None and plane.threshold is not None:
        power, exp, eps = (plane.boundary[key] for key in ("power", "exp", "eps"))
        lines.append(f"boundary: |gradient|^{power:g} / (|weight| + {eps:g})^{exp:g} = {plane.threshold:.4g}")
    lines.append(
        f"exactly 0 or too small to place: {plane.off['rest']:,} others, "
        f"{plane.off['chosen'] + plane.off['new']:,} chosen"
    )
    if plane.unseen:
        lines.append(f"in tensors whose gradients are not computed: {plane.unseen:,} weights")
    return lines


def layers(arguments: argparse.Namespace) -> int:
    """Which layers trained, over the steps."""
    store = Runs(settings.home())
    row = store.find(arguments.run)
    with RunReader(store.folder(row.id).database) as reader:
        metas = reader.metas()
        steps = [step for _, step in reader.frame_index("layers")]
        frames = [frame for step in steps if (frame := reader.frame("layers", step=step)) is not None]
    blocks = int(metas.get("architecture", {}).get("layers", 0))
    found = turns_of(metas.get("layer_rows", ()), blocks, frames, row.step, COLUMNS)
    if found is None:
        raise SpecError(f"Run {row.id} has no turns of layers on record.", "Choose a run of LISA or one like it.")
    starts = [int(end) for end in found.ends[:-1]]
    rows = [
        {
            "place": place,
            **{str(start + 1): f"{100 * share:.0f}%" for start, share in zip(starts, shares.tolist(), strict=True)},
        }
        for place, shares in zip(found.places, found.shares, strict=True)
    ]
    changes = [{"step": step, "active": arrays["active"].tolist()} for step, arrays in frames]
    data = {
        "run": row.id,
        "tensors": [entry["name"] for entry in metas["layer_rows"]],
        "changes": changes,
        "places": found.places,
        "ends": found.ends.tolist(),
        "shares": found.shares.tolist(),
    }
    heading = "share of its weights that trained, in stretches that begin with step"
    return emit(arguments, data, f"{heading}\n{table(rows)}")


def findings(arguments: argparse.Namespace) -> int:
    """What a run's method measured of the layers or heads to choose by."""
    store = Runs(settings.home())
    row = store.find(arguments.run)
    with RunReader(store.folder(row.id).database) as reader:
        metas = reader.metas()
        steps = [step for _, step in reader.frame_index("importance")]
        frames = [frame for step in steps if (frame := reader.frame("importance", step=step)) is not None]
    told: list[str] = []
    if (path := path_of(metas)) is not None:
        told += _path(path)
    if (trials := trials_of(metas)) is not None:
        told += _trials(trials)
    if (scores := scores_of(metas)) is not None:
        told += _scores(scores)
    learnt = importance_of(metas, frames)
    if learnt is not None:
        told += _importance(learnt)
    if not told:
        raise SpecError(
            f"Run {row.id} has no findings on record.",
            "Choose a run of RDP LoRA, SubTuning, IST, surgical fine-tuning or localised heads; runs from before "
            "findings were recorded have none.",
        )
    changes = [] if learnt is None else zip(learnt.steps.tolist(), learnt.values.tolist(), strict=True)
    data = {
        "run": row.id,
        **metas["findings"],
        "changes": [{"step": step, "importance": values} for step, values in changes],
    }
    return emit(arguments, data, "\n".join(told))


def _path(path: Path) -> list[str]:
    low, high = path.span
    scaled = ", scaled to length one" if path.normalised else ""
    rows = [
        {
            "after layer": vertex - 1 if vertex else "(input)",
            "first component": f"{path.places[vertex, 0]:.4g}",
            "second": f"{path.places[vertex, 1]:.4g}",
            "distance": "" if line is None else f"{path.distance[vertex]:.4g}",
            "from the line": "" if line is None else f"{line[0] - 1 if line[0] else '(input)'} to {line[1] - 1}",
            "stays up to": f"{path.tolerance[vertex]:.4g}",
            "adapters": "yes" if vertex - 1 in path.chosen else "",
        }
        for vertex, line in enumerate(path.lines)
    ]
    return [
        f"path of the hidden states: means over {path.tokens:,} tokens of {path.examples:,} training examples, "
        f"before training{scaled}; distances in {path.hidden:,} dimensions",
        f"variance in the plane: {path.shares[0]:.1%} and {path.shares[1]:.1%}",
        f"tolerance that leaves these corners: {low:.4g} to below {high:.4g}",
        table(rows),
    ]


def _trials(trials: Trials) -> list[str]:
    rows = [
        {
            "round": number,
            "layer": trial.layer,
            "held-out loss": f"{trial.loss:.4f}",
            "behind the chosen, 95 %": ""
            if trial.interval is None
            else f"{trial.behind:+.4f} [{trial.interval[0]:+.4f}, {trial.interval[1]:+.4f}]",
            "chosen": "yes" if trial.layer == each.chosen else "",
        }
        for number, each in enumerate(trials.rounds, 1)
        for trial in each.trials
    ]
    about = (
        f"trials of {trials.steps:,} steps on {trials.fit:,} training examples; loss on n = {trials.held:,} others, "
        "differences paired by example"
    )
    return [about, table(rows)]


def _scores(scores: Scores) -> list[str]:
    rows = [
        {
            scores.unit: scores.title(row),
            "score": f"{row.value:.4g}",
            "trained": "yes" if row.chosen else "",
        }
        for row in sorted(scores.rows, key=lambda row: -row.value)
    ]
    when = f"after step {scores.step:,}" if scores.step else "before training"
    return [f"{scores.what}; on {scores.examples:,} training examples, {when}", table(rows)]


def _importance(learnt: Importance) -> list[str]:
    kept = np.unique(np.linspace(0, len(learnt.steps) - 1, min(COLUMNS, len(learnt.steps))).round().astype(int))
    rows = [
        {"after step": int(learnt.steps[place])}
        | {f"layer {layer}": f"{value:+.3g}" for layer, value in zip(learnt.layers, learnt.values[place], strict=True)}
        for place in kept
    ]
    least, most = learnt.examples
    on = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    about = f"importance by layer; each judgement compares {learnt.sets} sets of layers on n = {on} examples"
    return [about, table(rows)]
