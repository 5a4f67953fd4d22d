"""Takes the frames of a run: calls the probes when the schedule says so and hands them to the sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.events import Sink
from engine.methods.contract import Method, chain
from engine.models.architecture import Parameter
from engine.probes import bias, change, describe, mask, plane, rank
from engine.probes.schedule import FrameSchedule
from engine.training.build import Built
from engine.training.costs import Energy, PeakMemory

EXACT_ENTRIES = 2_000_000
"""Masks of up to this many entries are recorded entry by entry; larger ones as counts only."""

EXACT_CHANGES = 2_000
"""Changes of what trains, or of importance, are recorded at their very steps up to this number, then at frames only."""


@dataclass
class Followed:
    """Something of which a frame is taken whenever it changes.

    Attributes:
        kind: of the frames.
        what: in words, at the beginning of a sentence.
        now: gives what tells its states apart.
        arrays: gives the frame of its present state.
        last: of `now`, when the last frame was taken.
        changes: frames so far.
    """

    kind: str
    what: str
    now: Callable[[], object]
    arrays: Callable[[], dict[str, np.ndarray]]
    last: object = None
    changes: int = 0


class Recorder:
    """Records the inside views and the costs of one run.

    Args:
        built: the run's objects.
        sink: takes the frames.
        steps: steps of the whole run.
        memory: watched since the run began.
    """

    def __init__(self, built: Built, sink: Sink, steps: int, memory: PeakMemory) -> None:
        self.sink = sink
        self.method = built.method
        self.steps = steps
        self.schedule = FrameSchedule(steps)
        self.memory = memory
        self.energy = Energy(built.spec.train.device)
        self.tokens = 0
        self._known = 0
        self._started = time.monotonic()
        self._selective = first(self.method, lambda part: part.selection())
        self._ranked = first(self.method, lambda part: part.ranks())
        self._change = self._change_probe(built) if feeds(self.method, "change") else None
        self._bias = self._bias_probe(built) if feeds(self.method, "bias") else None
        self.plane = self._plane_probe(built) if feeds(self.method, "plane") else None
        self._turning = first(self.method, lambda part: part.active_now()) if feeds(self.method, "layers") else None
        self._followed = [*self._follow_turns(), *self._follow_importance()]
        self._awaits = self.method.finds_late

    def start(self) -> None:
        """Describe the rows that frames refer to, and take the frame of step 0."""
        if self._selective is not None and (selection := self._selective.selection()):
            self.sink.meta("layout", describe(selection.parameters))
        if self._ranked is not None and (ranks := self._ranked.ranks()):
            self.sink.meta("rank_matrices", describe(ranks.parameters))
        if self._change is not None:
            self.sink.meta("matrices", describe(self._change.parameters))
        if self._bias is not None:
            self.sink.meta("biases", describe(self._bias.parameters))
        if self.plane is not None:
            self.sink.meta("plane", self.plane.describe())
            if (frame := self.plane.first()) is not None:
                self.sink.frame("plane", 0, frame)
        if self._turning is not None:
            self.sink.meta("layer_rows", describe(self._turning_rows()))
        self.follow(0)
        self._frame(0)

    def due(self, step: int, last: bool) -> bool:
        """Whether a frame is taken after step `step` (from 0)."""
        return self.schedule.due(step + 1) or last

    def watch(self, step: int, last: bool) -> None:
        """Look at the gradients of step `step` if it is one of those, and if that can be afforded."""
        due = step == 0 or self.due(step, last)
        if self.plane is None or not self.plane.sees or not due:
            return
        if self.schedule.affords("plane", step + 1, self._trained()):
            self.plane.arm()

    def watched(self, step: int) -> None:
        """Record what was seen of step `step`, if it was looked at."""
        if self.plane is not None and self.plane.armed:
            self.sink.frame("plane", step + 1, self.plane.frame())
            self.schedule.spend(self.plane.seconds, "plane")

    def looking(self) -> float:
        """Seconds of the step just taken that went into looking at it."""
        return self.plane.inside if self.plane is not None and self.plane.armed else 0.0

    def follow(self, done: int) -> None:
        """Record what trains from now on, and what was learnt of layers, if that is other than before."""
        if self._awaits and (findings := self.method.findings()):
            self.sink.meta("findings", findings)
            self._awaits = False
        for each in self._followed:
            if (now := each.now()) == each.last or (each.changes >= EXACT_CHANGES and not self.schedule.due(done)):
                continue
            self.sink.frame(each.kind, done, each.arrays(), keep=True)
            each.last, each.changes = now, each.changes + 1
            if each.changes == EXACT_CHANGES:
                often = f"{each.what} has changed {EXACT_CHANGES:,} times"
                self.sink.note("info", f"{often}; from here on changes are recorded at frames only.", done)

    def frame(self, step: int) -> None:
        """Take the frame after step `step`."""
        self._frame(step + 1)

    def costs(self, done: int) -> None:
        """Record peak memory and energy so far."""
        self.energy.sample()
        self.sink.scalar("cost/memory_bytes", done, self.memory.bytes())
        if self.energy.watts is not None:
            self.sink.scalar("cost/power_watts", done, self.energy.watts)
        if self.energy.joules is not None:
            self.sink.scalar("cost/energy_joules", done, self.energy.joules)

    def count_tokens(self, tokens: int) -> None:
        """Add a batch's padded tokens."""
        self.tokens += tokens

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain data."""
        return {
            "known": self._known,
            "tokens": self.tokens,
            "spent": self.schedule.spent,
            "elapsed": time.monotonic() - self._started,
            "changes": {each.kind: each.changes for each in self._followed},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._known, self.tokens = state["known"], state["tokens"]
        self.schedule.spent = state["spent"]
        self._started = time.monotonic() - state["elapsed"]
        for each in self._followed:
            # A checkpoint from before this was counted has none.
            each.last, each.changes = each.now(), state.get("changes", {}).get(each.kind, 0)

    def _frame(self, done: int) -> None:
        started = time.perf_counter()
        if self._selective is not None:
            self._mask_frame(done)
        if self._ranked is not None and (ranks := self._ranked.ranks()):
            self.sink.frame("rank", done, rank.frame(ranks))
            self.sink.scalar("rank/active", done, int(ranks.active.sum()))
            self.sink.scalar("rank/budget", done, ranks.budget)
        if self._bias is not None:
            self.sink.frame("bias", done, self._bias.frame())
        cheap = time.perf_counter() - started
        self.schedule.spend(cheap)
        if self._change is not None and self.schedule.affords("change", done, self._trained()):
            started = time.perf_counter()
            self.sink.frame("change", done, self._change.frame())
            self.schedule.spend(time.perf_counter() - started, "change")

    def _trained(self) -> float:
        """Seconds so far without those of probes."""
        return time.monotonic() - self._started - self.schedule.spent

    def _mask_frame(self, done: int) -> None:
        assert self._selective is not None
        selection = self._selective.selection()
        if selection is None:
            return
        count = len(selection.index)
        self.sink.scalar("mask/selected", done, count)
        self.sink.scalar("mask/unmoved", done, self._selective.unmoved())
        self.sink.frame("mask", done, {"count": mask.counts(selection)})
        # Of a mask that moves only the last state can be told by entries and the steps of their selection.
        if self._known < count <= EXACT_ENTRIES and (self._selective.grows or done == self.steps):
            self.sink.frame("selected", done, mask.newly_selected(selection, self._known), keep=True)
            self._known = count

    def _change_probe(self, built: Built) -> change.ChangeProbe:
        rows = built.setting.architecture.linears()
        bases = dict(built.placed.named_parameters())
        return change.ChangeProbe(self.method, rows, bases, built.spec.train.device)

    def _plane_probe(self, built: Built) -> plane.PlaneProbe:
        part = next(part for part in chain(self.method) if "plane" in part.views)
        rows = part.trainables(part.context.architecture, part.config)
        execution = built.spec.train.execution
        whole = execution == "packed" or (execution == "graph" and built.method.captured == "step")
        return plane.PlaneProbe(part, rows, built.spec.train.device, sees=not whole)

    def _follow_turns(self) -> Iterator[Followed]:
        if (turning := self._turning) is not None:

            def trains() -> dict[str, np.ndarray]:
                active = turning.active_now() or ()
                return {"active": np.array([row.name in active for row in self._turning_rows()], dtype=np.uint8)}

            yield Followed("layers", "What trains", turning.active_now, trains)

    def _follow_importance(self) -> Iterator[Followed]:
        learning = first(self.method, lambda part: part.importance_now())
        if learning is not None:

            def importance() -> dict[str, np.ndarray]:
                return {"importance": np.array(learning.importance_now())}

            yield Followed("importance", "Importance", lambda: tuple(importance()["importance"].tolist()), importance)

    def _turning_rows(self) -> tuple[Parameter, ...]:
        assert self._turning is not None
        return self._turning.trainables(self._turning.context.architecture, self._turning.config)

    def _bias_probe(self, built: Built) -> bias.BiasProbe:
        rows = [row for row in built.setting.architecture.backbone if row.part == "bias"]
        return bias.BiasProbe(self.method, rows, dict(built.placed.named_parameters()), built.spec.train.device)


def first(method: Method, look: Any) -> Method | None:
    """The outermost method of a chain for which `look` finds something."""
    return next((part for part in chain(method) if look(part) is not None), None)


def feeds(method: Method, view: str) -> bool:
    """Whether any method of a chain feeds a view."""
    return any(view in part.views for part in chain(method))
