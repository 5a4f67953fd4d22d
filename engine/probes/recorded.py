"""What a run's record holds of its mask, of its decisions and of its layers' turns; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.methods.registry import methods
from engine.stats.overlap import Mask


def mask_of(
    label: str, method: str, metas: Mapping[str, Any], selection: Mapping[str, np.ndarray], count: float
) -> Mask | None:
    """The recorded entries of a run by tensor name; None without a mask, or when not all of it was recorded.

    Args:
        label: names the run.
        method: its method's name.
        metas: of its record.
        selection: of its record: ``tensor`` and ``index``, one element per entry.
        count: how many entries it selected, the last of its ``mask/selected``.
    """
    layout = metas.get("layout")
    if not layout or not len(selection["index"]) or len(selection["index"]) != count:
        return None
    order = np.argsort(selection["tensor"], kind="stable")
    tensors, index = selection["tensor"][order], selection["index"][order]
    numbers, starts = np.unique(tensors, return_index=True)
    parts = np.split(index, starts[1:])
    return Mask(
        label,
        str(metas.get("provenance", {}).get("weights", {}).get("sha256", "")),
        {row["name"]: int(row["eligible"]) for row in layout},
        {row["name"]: tuple(row["shape"]) for row in layout},
        {layout[number]["name"]: part for number, part in zip(numbers.tolist(), parts, strict=True)},
        getattr(methods().get(method), "scattered", True),
    )


@dataclass(frozen=True, eq=False)
class Plane:
    """Weights by value and gradient at one moment.

    Attributes:
        step: steps done.
        tables: counts (gradient bins, weight bins) of ``rest``, ``chosen`` and ``new`` weights.
        off: of each, how many are exactly 0 or too small for the axes.
        unseen: weights whose gradients the step did not compute.
        weights, gradients: ends of the bins.
        boundary: power, exp and eps of the method's score; None when no single line parts the weights.
        threshold: the lowest score of a chosen weight; None where none was chosen in these terms.
        examples: how many single examples the gradients are of; 0 when they are those of a step's batch.
        squared: whether they are the root of the mean square over these, or else the size of their mean.
    """

    step: int
    tables: dict[str, np.ndarray]
    off: dict[str, int]
    unseen: int
    weights: np.ndarray
    gradients: np.ndarray
    boundary: Mapping[str, Any] | None
    threshold: float | None
    examples: int
    squared: bool

    def line(self, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
        """|weight| and |gradient| along the boundary, within the bins; empty where there is none."""
        low, high = self.gradients[0], self.gradients[-1]
        if self.boundary is None or self.threshold is None:
            return np.empty(0), np.empty(0)
        power, exp, eps = (float(self.boundary[key]) for key in ("power", "exp", "eps"))
        if not power:  # |weight|^-exp = threshold
            return np.full(2, self.threshold ** (-1 / exp) - eps), np.array([low, high])
        x = np.geomspace(self.weights[0], self.weights[-1], points)
        y = (self.threshold * (x + eps) ** exp) ** (1 / power)
        inside = (y >= low) & (y <= high)
        return x[inside], y[inside]


def plane_of(metas: Mapping[str, Any], step: int, frame: Mapping[str, np.ndarray]) -> Plane | None:
    """One recorded moment of the decision plane; None before the run has described it.

    Args:
        metas: of its record.
        step: of the frame.
        frame: arrays of kind ``plane``.
    """
    about = metas.get("plane")
    if not about:
        return None
    line, threshold = about["boundary"], about["threshold"]
    if line is not None and line["moment"] == "step":
        own = float(frame["threshold"][0])
        threshold = own if np.isfinite(own) and own > 0 else None
    elif line is not None and line["power"] and step:
        threshold = None  # it chose by other gradients, before the first step
    return Plane(
        step,
        {name: frame[name].astype(np.int64) for name in ("rest", "chosen", "new")},
        dict(zip(("rest", "chosen", "new"), frame["off"].tolist(), strict=True)),
        int(frame["unseen"][0]),
        np.array(about["weights"]),
        np.array(about["gradients"]),
        line,
        threshold,
        0 if step else int(about.get("examples", 0)),
        bool(about.get("squared", False)),
    )


@dataclass(frozen=True, eq=False)
class Turns:
    """Which layers trained, over the steps.

    Attributes:
        places: what the rows are, for example ``layer 0``.
        ends: (C + 1,), columns are the steps from one to before the next, from 0.
        shares: float (P, C), share of a place's weights that trained, averaged over the steps of a column.
    """

    places: tuple[str, ...]
    ends: np.ndarray
    shares: np.ndarray


def turns_of(
    rows: Sequence[Mapping[str, Any]],
    layers: int,
    frames: Sequence[tuple[int, Mapping[str, np.ndarray]]],
    steps: int,
    columns: int,
) -> Turns | None:
    """The recorded turns of layers; None before any step.

    Args:
        rows: meta ``layer_rows``.
        layers: number of blocks.
        frames: of kind ``layers``, by step; each holds from its step to the next one's.
        steps: done at the moment shown.
        columns: the most to give.
    """
    if not frames or not rows or steps < 1:
        return None
    places = [min(max(row["layer"], -1), layers) for row in rows]
    found = sorted(set(places))
    sizes = np.array([float(np.prod(row["shape"])) for row in rows])
    member = np.array([[place == at for place in places] for at in found]) * sizes
    shares = np.stack([member @ arrays["active"] for _, arrays in frames], axis=1) / member.sum(1, keepdims=True)
    starts = np.array([step for step, _ in frames])
    current = np.searchsorted(starts, np.arange(steps), side="right") - 1
    ends = np.unique(np.linspace(0, steps, min(columns, steps) + 1).round().astype(int))
    summed = np.add.reduceat(shares[:, current], ends[:-1], axis=1)
    names = {-1: "embeddings", layers: "after the layers"}
    return Turns(tuple(names.get(at, f"layer {at}") for at in found), ends, summed / np.diff(ends))
