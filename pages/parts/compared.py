"""Finished runs side by side: runs of one spec are one group, and its seeds speak for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from safetensors.numpy import load_file

from engine.stats.intervals import Interval
from engine.stats.verdict import Candidate, Verdict, verdict
from engine.store.run_row import RunRow
from pages.parts import feed, words
from pages.parts.figures.comparison import Curve, Point
from pages.parts.tables import method_title


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds only.

    Attributes:
        label: distinct among the groups compared.
        rows: its runs, by seed.
    """

    label: str
    rows: tuple[RunRow, ...]

    @property
    def params(self) -> dict[str, int]:
        """What its runs trained, as counted at their ends: mean over the seeds, for `method` and `head`."""
        found = [words.params_of(row) for row in self.rows]
        return {key: round(float(np.mean([params[key] for params in found]))) for key in ("method", "head")}

    @property
    def candidate(self) -> Candidate:
        """Right or wrong per seed and test item, for the statistics."""
        correct = {row.seed: _correct(row.id) for row in self.rows}
        data = feed.StoredRun(self.rows[0].id).snapshot().metas.get("provenance", {}).get("data", {})
        return Candidate(self.label, correct, str(data.get("sha256", self.rows[0].dataset)))


def groups_of(rows: Sequence[RunRow]) -> list[Group]:
    """Finished runs by spec, in order of method and size; equal labels are told apart by what differs in the specs."""
    by_hash: dict[str, list[RunRow]] = {}
    for row in rows:
        by_hash.setdefault(row.spec_hash, []).append(row)
    several = len({row.model for row in rows}) > 1
    by_label: dict[str, list[Group]] = {}
    for found in by_hash.values():
        group = Group("", tuple(sorted({row.seed: row for row in found}.values(), key=lambda row: row.seed)))
        by_label.setdefault(_name(group, with_model=several), []).append(group)
    groups = [
        replace(group, label=f"{label}{apart}")
        for label, alike in by_label.items()
        for group, apart in zip(alike, _apart(alike), strict=True)
    ]
    return sorted(groups, key=lambda group: (group.rows[0].method, group.params["method"], group.label))


def _name(group: Group, *, with_model: bool) -> str:
    row = group.rows[0]
    model = f", {PurePath(row.model).name}" if with_model else ""
    return f"{method_title(row.method)} {words.count(group.params['method'])}{model}"


def _apart(groups: Sequence[Group]) -> list[str]:
    """For each of several groups of one name, one or two settings that differ; the beginning of its hash if not."""
    specs = [_settings(group.rows[0].spec) for group in groups]
    keys = sorted({key for spec in specs for key in spec if len({one.get(key) for one in specs}) > 1})[:2]
    named = ["".join(f", {key.split('.')[-1]} {spec.get(key, 'none')}" for key in keys) for spec in specs]
    often = Counter(named)
    return [
        "" if len(groups) == 1 else name if often[name] == 1 else f"{name} ({group.rows[0].spec_hash[:4]})"
        for name, group in zip(named, groups, strict=True)
    ]


def _settings(part: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """All settings of a spec but its seed, by their path, as text."""
    found: dict[str, str] = {}
    for key, value in part.items():
        if isinstance(value, Mapping):
            found |= _settings(value, f"{above}{key}.")
        elif above + key != "train.seed":
            found[above + key] = str(value)
    return found


@st.cache_resource(max_entries=256, show_spinner=False)
def _correct(run_id: str) -> np.ndarray:
    """Which test items a finished run got right: bool (n,)."""
    saved = load_file(feed.runs().folder(run_id).result / "test.safetensors")
    return np.asarray(saved["logits"].argmax(axis=1) == saved["labels"])


def lines(groups: Sequence[Group]) -> pd.DataFrame:
    """One line per group."""
    return pd.DataFrame([_line(group) for group in groups])


def _line(group: Group) -> dict[str, object]:
    interval = group.candidate.interval
    summaries = [row.summary or {} for row in group.rows]
    return {
        "Method": group.label,
        "Seeds": len(group.rows),
        "Trained": group.params["method"],
        "Head": group.params["head"],
        "Test accuracy": interval.estimate,
        "Interval": _ends(interval),
        "Learning rate": group.rows[0].spec["train"]["lr"],
        "Time": float(np.mean([s["seconds"] for s in summaries])),
        "Peak memory": max(s["peak_memory_bytes"] for s in summaries) / 2**20,
        "Answer time": _answer_time(summaries),
        "On disk": max(s["bytes_on_disk"] for s in summaries) / 1024,
    }


def _answer_time(summaries: Sequence[dict[str, Any]]) -> float | None:
    """Of the model as it is, in multiples of the base model's; None for runs that did not measure it."""
    found = [s["latency"]["trained"] / s["latency"]["base"] for s in summaries if s.get("latency")]
    return float(np.median(found)) if found else None


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "unknown"
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}, over {interval.n:,} {interval.over}"


def curves(groups: Sequence[Group]) -> list[Curve]:
    """The recorded scalars of every group."""
    return [
        Curve(
            group.label,
            group.rows[0].method,
            tuple(feed.StoredRun(row.id).snapshot().scalars for row in group.rows),
        )
        for group in groups
    ]


def points(groups: Sequence[Group]) -> list[Point]:
    """Accuracy against trained parameters, per group."""
    found = []
    for group in groups:
        interval, row = group.candidate.interval, group.rows[0]
        found.append(
            Point(group.label, row.method, group.params["method"], interval.estimate, interval.low, interval.high)
        )
    return found


def verdict_of(groups: Sequence[Group]) -> Verdict:
    """What can be concluded from these runs."""
    return verdict([group.candidate for group in groups])


def majority(groups: Sequence[Group]) -> float | None:
    """The largest class's share, when all runs were measured on the same data."""
    found = {
        feed.StoredRun(row.id).snapshot().metas.get("baseline", {}).get("majority")
        for group in groups
        for row in group.rows
    }
    return next(iter(found)) if len(found) == 1 else None
