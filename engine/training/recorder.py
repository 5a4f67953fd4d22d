"""Takes the frames of a run: calls the probes when the schedule says so and hands them to the sink."""

from __future__ import annotations

import time
from typing import Any

from engine.events import Sink
from engine.methods.contract import Method, chain
from engine.probes import bias, change, describe, mask, rank
from engine.probes.schedule import FrameSchedule
from engine.training.build import Built
from engine.training.costs import Energy, PeakMemory

EXACT_ENTRIES = 2_000_000
"""Masks of up to this many entries are recorded entry by entry; larger ones as counts only."""


class Recorder:
    """Records the inside views and the costs of one run.

    Args:
        built: the run's objects.
        sink: takes the frames.
        steps: steps of the whole run.
    """

    def __init__(self, built: Built, sink: Sink, steps: int) -> None:
        self.sink = sink
        self.method = built.method
        self.steps = steps
        self.schedule = FrameSchedule(steps)
        self.memory = PeakMemory(built.spec.train.device)
        self.energy = Energy(built.spec.train.device)
        self.tokens = 0
        self._known = 0
        self._started = time.monotonic()
        self._selective = first(self.method, lambda part: part.selection())
        self._ranked = first(self.method, lambda part: part.ranks())
        self._change = self._change_probe(built) if feeds(self.method, "change") else None
        self._bias = self._bias_probe(built) if feeds(self.method, "bias") else None

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
        self._frame(0)

    def due(self, step: int, last: bool) -> bool:
        """Whether a frame is taken after step `step` (from 0)."""
        return self.schedule.due(step + 1) or last

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
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._known, self.tokens = state["known"], state["tokens"]
        self.schedule.spent = state["spent"]
        self._started = time.monotonic() - state["elapsed"]

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
        trained = time.monotonic() - self._started - self.schedule.spent
        if self._change is not None and self.schedule.affords_change(done, trained):
            started = time.perf_counter()
            self.sink.frame("change", done, self._change.frame())
            self.schedule.spend(time.perf_counter() - started, change=True)

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
        bases = dict(built.base.named_parameters())
        return change.ChangeProbe(self.method, rows, bases, built.spec.train.device)

    def _bias_probe(self, built: Built) -> bias.BiasProbe:
        rows = [row for row in built.setting.architecture.backbone if row.part == "bias"]
        return bias.BiasProbe(self.method, rows, dict(built.base.named_parameters()), built.spec.train.device)


def first(method: Method, look: Any) -> Method | None:
    """The outermost method of a chain for which `look` finds something."""
    return next((part for part in chain(method) if look(part) is not None), None)


def feeds(method: Method, view: str) -> bool:
    """Whether any method of a chain feeds a view."""
    return any(view in part.views for part in chain(method))
