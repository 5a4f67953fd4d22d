"""Makes the figures of a run's moment, each once for all viewers who look at the same moment."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from engine.probes.found import importance_of, path_of, scores_of, trials_of
from engine.probes.recorded import plane_of, turns_of
from pages.parts import words
from pages.parts.figures.bias import bias_grid
from pages.parts.figures.change import change_grid, path_chart, scatter_chart
from pages.parts.figures.chart import Chart
from pages.parts.figures.cost import cost_charts
from pages.parts.figures.curves import accuracy_chart, loss_chart
from pages.parts.figures.grid import Grid
from pages.parts.figures.importance import importance_grid, importance_note
from pages.parts.figures.mask import entries_of, growth_chart, mask_grid, matrix_grid
from pages.parts.figures.palette import Style, Theme, style_of
from pages.parts.figures.path import distance_chart, path_note, polyline_chart
from pages.parts.figures.plane import ends_of, note_of, plane_chart
from pages.parts.figures.rank import rank_grid, rank_timeline, rank_warning, schedule_chart
from pages.parts.figures.scores import scores_chart, scores_note
from pages.parts.figures.trials import trials_chart, trials_note
from pages.parts.figures.turns import COLUMNS, turns_grid
from pages.parts.panel import Moment
from pages.parts.picture import theme

Made = TypeVar("Made")
FIRST = np.empty(0), np.empty(0)


@dataclass(frozen=True)
class Subject:
    """What the views know of a run beside its record.

    Attributes:
        key: distinguishes widgets.
        method: its name.
        plan: the plan as JSON data.
        over: whether it has ended.
        picked: name of the tensor whose mask is shown close up; empty for none.
        pick: told the name of a tensor that was clicked.
    """

    key: str
    method: str
    plan: dict[str, Any]
    over: bool
    picked: str = ""
    pick: Callable[[str], None] | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """What a figure is made from. Two scenes are equal when the same figures come of them."""

    moment: Moment
    subject: Subject
    theme: Theme

    @cached_property
    def key(self) -> tuple[object, ...]:
        """What tells scenes apart."""
        moment, subject = self.moment, self.subject
        shown = (moment.record.id, moment.snapshot.version, moment.step, moment.playing, moment.newest)
        return *shown, subject.over, subject.picked, self.theme

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scene) and self.key == other.key

    @property
    def style(self) -> Style:
        """How the run's method is drawn."""
        return style_of(self.subject.method, self.theme)

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return int(self.moment.snapshot.metas["architecture"]["layers"])

    def rows(self, key: str) -> list[dict[str, Any]]:
        """Described rows of the model; none before the run has described them."""
        found: list[dict[str, Any]] = self.moment.snapshot.metas.get(key) or []
        return found

    def frames(self, kind: str) -> list[tuple[int, dict[str, np.ndarray]]]:
        """Frames of a kind up to the moment, at least the first one if there is any."""
        every = self.moment.record.all_frames(kind)
        return [frame for frame in every if frame[0] <= self.moment.step] or every[:1]


def made(make: Callable[[Scene], Made], moment: Moment, subject: Subject) -> Made:
    """What `make` makes of a moment, from the memory that all sessions share."""
    result: Made = _made(make, Scene(moment, subject, theme()))
    return result


# Not Streamlit's cache: working out its keys would take longer than most figures.
@functools.lru_cache(maxsize=512)
def _made(make: Callable[[Scene], Any], scene: Scene) -> Any:
    return make(scene)


def loss(scene: Scene) -> Chart:
    """Training and validation loss."""
    moment = scene.moment
    return loss_chart(moment.scalars, moment.total, scene.style, scene.theme, moment.marked)


def accuracy(scene: Scene) -> Chart:
    """Training and validation accuracy with the two guides."""
    moment = scene.moment
    baseline = dict(moment.snapshot.metas.get("baseline", {}))
    part = words.part(moment.snapshot.metas.get("curve"))
    steps, values = moment.snapshot.scalars.get("validation/accuracy", FIRST)
    if len(steps) and steps[0] == 0:
        baseline.setdefault("step0", float(values[0]))
    return accuracy_chart(moment.scalars, baseline, moment.total, scene.style, scene.theme, moment.marked, part)


def mask(scene: Scene) -> Grid | None:
    """Share of each tensor selected."""
    frame, layout = scene.moment.record.frame("mask", scene.moment.step), scene.rows("layout")
    return mask_grid(layout, frame[1]["count"], scene.layers, frame[0]) if frame and layout else None


def growth(scene: Scene) -> Chart:
    """Selected entries against the budget."""
    moment, budget = scene.moment, scene.subject.plan["params"]["method"]
    return growth_chart(moment.scalars, budget, moment.total, scene.style, scene.theme, moment.marked)


def matrix(scene: Scene) -> Grid | None:
    """The picked tensor's mask; None when none is picked, or the mask is not recorded entry by entry."""
    layout = scene.rows("layout")
    place = next((i for i, row in enumerate(layout) if row["name"] == scene.subject.picked), None)
    frame = scene.moment.record.frame("mask", scene.moment.step)
    if place is None or frame is None:
        return None
    count = int(frame[1]["count"][place])
    index, steps = entries_of(scene.moment.record.selection(), place, count, frame[0])
    return matrix_grid(layout[place], scene.layers, index, steps, frame[0]) if len(index) == count else None


def plane(scene: Scene) -> tuple[Chart, str] | None:
    """The decision plane, and what has no place in it."""
    moment, metas = scene.moment, scene.moment.snapshot.metas
    frame = moment.record.frame("plane", moment.step)
    found = plane_of(metas, *frame) if frame else None
    if found is None:
        return None
    every = [plane_of(metas, *each) for each in moment.record.all_frames("plane")]
    ends, most = ends_of([each for each in every if each is not None])
    return plane_chart(found, ends, most, scene.style, scene.theme), note_of(found)


def turns(scene: Scene) -> Grid | None:
    """Which layers train, over the steps so far."""
    moment, frames = scene.moment, scene.frames("layers")
    steps = max(moment.step, 1)
    found = turns_of(scene.rows("layer_rows"), scene.layers, frames, steps, COLUMNS) if frames else None
    return turns_grid(found) if found else None


def path(scene: Scene) -> tuple[Chart, Chart, str] | None:
    """The path through the layers, how far its corners stand out, and what both rest on."""
    found = path_of(scene.moment.snapshot.metas)
    if found is None:
        return None
    drawn = (make(found, scene.style, scene.theme) for make in (polyline_chart, distance_chart))
    return *drawn, path_note(found)


def trials(scene: Scene) -> tuple[Chart, str] | None:
    """The trials of a search for layers, and what they rest on."""
    found = trials_of(scene.moment.snapshot.metas)
    return (trials_chart(found, scene.style, scene.theme), trials_note(found)) if found else None


def scores(scene: Scene) -> tuple[Chart, str] | None:
    """What was measured of each layer or head, and when."""
    found = scores_of(scene.moment.snapshot.metas)
    return (scores_chart(found, scene.style, scene.theme), scores_note(found)) if found else None


def importance(scene: Scene) -> tuple[Grid, str] | None:
    """Importance of layers up to the moment, and what it rests on."""
    found = importance_of(scene.moment.snapshot.metas, scene.frames("importance"))
    return (importance_grid(found), importance_note(found)) if found else None


def rank(scene: Scene) -> Grid | None:
    """Rank of each matrix."""
    record, matrices = scene.moment.record, scene.rows("rank_matrices")
    frame, first = record.frame("rank", scene.moment.step), record.frame("rank", 0)
    if frame is None or first is None or not matrices:
        return None
    highest = int(max(first[1]["allocated"].max(), frame[1]["allocated"].max()))
    return rank_grid(matrices, frame[1], highest, scene.layers, frame[0])


def schedule(scene: Scene) -> Chart:
    """Total rank against the budget's schedule."""
    moment = scene.moment
    return schedule_chart(moment.scalars, moment.total, scene.style, scene.theme, moment.marked)


def ranks(scene: Scene) -> tuple[Grid, str] | None:
    """Ranks over the run, and a warning when they never move."""
    frames, matrices = scene.frames("rank"), scene.rows("rank_matrices")
    if not frames or not matrices:
        return None
    steps = np.array([step for step, _ in frames])
    given = np.stack([arrays["allocated"] for _, arrays in frames])
    warning = rank_warning(steps, given, scene.moment.total, scene.subject.over and scene.moment.newest)
    return rank_timeline(matrices, steps, given, scene.layers), warning


def change(scene: Scene) -> Grid | None:
    """Relative change of each matrix."""
    frame, matrices = scene.moment.record.frame("change", scene.moment.step), scene.rows("matrices")
    if frame is None or not matrices:
        return None
    return change_grid(matrices, frame[1]["relative"], "relative", scene.layers, frame[0])


def changes(scene: Scene) -> tuple[Chart, Chart] | None:
    """Magnitude against direction, and both over the steps."""
    frames, matrices = scene.frames("change"), scene.rows("matrices")
    if not frames or not matrices:
        return None
    step, last = frames[-1]
    scatter = scatter_chart(matrices, last["magnitude"], last["direction"], scene.layers, step, scene.theme)
    magnitude, direction = (np.stack([arrays[name] for _, arrays in frames]) for name in ("magnitude", "direction"))
    steps = np.array([at for at, _ in frames])
    return scatter, path_chart(steps, magnitude, direction, scene.moment.total, scene.style, scene.theme)


def biases(scene: Scene) -> Grid | None:
    """Mean change of each bias vector."""
    frame, rows = scene.moment.record.frame("bias", scene.moment.step), scene.rows("biases")
    return bias_grid(rows, frame[1]["mean"], scene.layers, frame[0]) if frame and rows else None


def costs(scene: Scene) -> list[Chart]:
    """One chart for each cost that the device reported."""
    return cost_charts(scene.moment.scalars, scene.moment.total, scene.style)
