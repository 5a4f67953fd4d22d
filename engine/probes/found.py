"""What a run's record holds of the findings its method chose layers or heads by; torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Path:
    """The path of the mean hidden state through the model, and the corners of it that were kept.

    Vertex 0 is what goes into the first layer, vertex l + 1 what layer l puts out.

    Attributes:
        places: float (V, 2), the vertices in the plane of their first two principal components.
        shares: of the vertices' variance, along either axis.
        distance: (V,), of a vertex from the straight line that was divided there; NaN at both ends.
        lines: between which two vertices that line ran; None at both ends.
        tolerance: (V,), up to which distance a simplified path still has the vertex; infinite at both ends.
        chosen: layers that were chosen.
        hidden: dimensions of a hidden state.
        normalised: whether every vertex has length one.
        examples, tokens: that a vertex is the mean over.
    """

    places: np.ndarray
    shares: tuple[float, float]
    distance: np.ndarray
    lines: tuple[tuple[int, int] | None, ...]
    tolerance: np.ndarray
    chosen: tuple[int, ...]
    hidden: int
    normalised: bool
    examples: int
    tokens: int

    @property
    def layers(self) -> int:
        """Of the model."""
        return len(self.places) - 1

    @property
    def corners(self) -> list[int]:
        """Vertices of the simplified path: both ends, and what the chosen layers put out."""
        return sorted({0, self.layers, *(layer + 1 for layer in self.chosen)})

    @property
    def span(self) -> tuple[float, float]:
        """From which tolerance to below which the simplification has just these corners; infinite without any."""
        inner = range(1, self.layers)
        left = [self.tolerance[vertex] for vertex in inner if vertex - 1 not in self.chosen]
        kept = [self.tolerance[vertex] for vertex in inner if vertex - 1 in self.chosen]
        return float(max(left, default=0.0)), float(min(kept, default=np.inf))


def path_of(metas: Mapping[str, Any]) -> Path | None:
    """The recorded path; None when there is none."""
    found = metas.get("findings", {}).get("path")
    if found is None:
        return None
    places = np.array(found["places"], dtype=float).reshape(-1, 2)
    distance, tolerance = np.full(len(places), np.nan), np.full(len(places), np.inf)
    lines: list[tuple[int, int] | None] = [None] * len(places)
    for split in found["splits"]:
        vertex = split["vertex"]
        distance[vertex], tolerance[vertex] = split["distance"], split["tolerance"]
        lines[vertex] = (split["first"], split["last"])
    first, second = found["shares"]
    return Path(
        places,
        (first, second),
        distance,
        tuple(lines),
        tolerance,
        tuple(found["layers"]),
        found["hidden"],
        found["normalised"],
        found["examples"],
        found["tokens"],
    )


@dataclass(frozen=True)
class Trial:
    """One layer tried beside those chosen before.

    Attributes:
        layer: which.
        loss: mean over the held-out examples.
        behind: how far that is above the loss of the layer chosen in this round.
        interval: of it, 95 %, paired by example; None for the chosen layer, and where nothing can be said.
    """

    layer: int
    loss: float
    behind: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Round:
    """One round of a greedy search.

    Attributes:
        chosen: the layer that was taken.
        trials: by layer; those without a finite loss are left out.
        failed: how many these were.
    """

    chosen: int
    trials: tuple[Trial, ...]
    failed: int

    @property
    def close(self) -> tuple[int, ...]:
        """Layers that the held-out examples cannot tell from the chosen one."""
        others = [trial for trial in self.trials if trial.layer != self.chosen]
        return tuple(trial.layer for trial in others if trial.interval is None or trial.interval[0] <= 0)


@dataclass(frozen=True)
class Trials:
    """A greedy search for layers.

    Attributes:
        rounds: in order.
        held: examples that a loss is the mean over.
        fit: examples that a trial trains on.
        steps, batch, rate: of each trial.
    """

    rounds: tuple[Round, ...]
    held: int
    fit: int
    steps: int
    batch: int
    rate: float


def trials_of(metas: Mapping[str, Any]) -> Trials | None:
    """The recorded trials; None when there are none."""
    found = metas.get("findings", {}).get("trials")
    if found is None:
        return None
    rounds = tuple(
        Round(each["chosen"], tuple(_trial(trial) for trial in each["trials"]), each["failed"])
        for each in found["rounds"]
    )
    return Trials(rounds, *(found[key] for key in ("held", "fit", "steps", "batch", "rate")))


def _trial(found: Mapping[str, Any]) -> Trial:
    ends = found["ci"]
    return Trial(found["layer"], found["loss"], found["behind"], None if ends is None else (ends[0], ends[1]))


@dataclass(frozen=True, eq=False)
class Importance:
    """What a run learnt of its layers, judgement by judgement.

    Attributes:
        layers: the L layers it is about.
        steps: (F,), steps done when it became so; the first is 0.
        values: float (F, L), importance from then on.
        interval: steps between judgements.
        drawn: layers that a step updates.
        sets: sets of layers that a judgement compares.
        suppressed: layers in each of these.
        examples: least and most that a judgement rests on.
    """

    layers: tuple[int, ...]
    steps: np.ndarray
    values: np.ndarray
    interval: int
    drawn: int
    sets: int
    suppressed: int
    examples: tuple[int, int]

    @property
    def weights(self) -> np.ndarray:
        """float (F, L), weight of each layer in the draw: the sigmoid of its importance."""
        weights: np.ndarray = 1 / (1 + np.exp(-self.values))
        return weights


def importance_of(
    metas: Mapping[str, Any], frames: Sequence[tuple[int, Mapping[str, np.ndarray]]]
) -> Importance | None:
    """The recorded importance; None when there is none.

    Args:
        metas: of the record.
        frames: of kind ``importance``, by step; each holds from its step to the next one's.
    """
    found = metas.get("findings", {}).get("importance")
    if found is None or not frames:
        return None
    return Importance(
        layers=tuple(found["layers"]),
        steps=np.array([step for step, _ in frames]),
        values=np.stack([arrays["importance"] for _, arrays in frames]),
        examples=(min(found["examples"]), max(found["examples"])),
        **{key: found[key] for key in ("interval", "drawn", "sets", "suppressed")},
    )


@dataclass(frozen=True)
class Score:
    """What was measured of one layer or head.

    Attributes:
        layer: which; `part` is the number of the head in it, 0 for a layer as a whole.
        value: of the score.
        chosen: whether it trains.
    """

    layer: int
    part: int
    value: float
    chosen: bool


@dataclass(frozen=True)
class Scores:
    """What a run measured of all its layers or heads, at one time.

    Attributes:
        unit: ``layer`` or ``head``.
        what: was measured, in words: a name, a colon, an explanation.
        rows: by layer and part.
        examples: that a score rests on.
        step: steps done when it was measured.
    """

    unit: str
    what: str
    rows: tuple[Score, ...]
    examples: int
    step: int

    def title(self, row: Score) -> str:
        """A layer or head in words."""
        return f"layer {row.layer}, head {row.part}" if self.unit == "head" else f"layer {row.layer}"


def scores_of(metas: Mapping[str, Any]) -> Scores | None:
    """The recorded scores; None when there are none."""
    found = metas.get("findings", {}).get("scores")
    if found is None:
        return None
    rows = tuple(Score(*row) for row in found["rows"])
    return Scores(rows=rows, **{key: found[key] for key in ("unit", "what", "examples", "step")})
