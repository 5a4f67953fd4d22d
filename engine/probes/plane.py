"""Where chosen and other weights lie in the plane of |weight| and |gradient|, as a step sees them.

A streamed gradient is gone as soon as its method has seen it, so that the probe looks first. Both
are those of the step before its update: what the method chose by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.methods.contract import Method
from engine.methods.observed import Choice
from engine.models.architecture import Parameter
from engine.sparse.gradient import StreamedGradient
from engine.sparse.plane import PlaneCounts, edges, lowest_score

CLASSES = ("rest", "chosen", "new")
"""Weights that are not chosen, those that were chosen before the step, and those chosen in it."""


class PlaneProbe:
    """Counts the weights of one method in the plane, at the steps for which it is armed.

    Args:
        method: the method that chooses, attached.
        rows: what it may choose from.
        device: where its tensors are.
        sees: whether gradients are shown to it; not those of steps that are captured whole.
    """

    def __init__(self, method: Method, rows: tuple[Parameter, ...], device: str, *, sees: bool) -> None:
        self.sees = sees
        self.seconds = self.inside = 0.0
        """What it has cost since it was armed, in all and within the step."""
        self._method, self._device = method, device
        self._rows = {row.name: (number, row) for number, row in enumerate(rows)}
        self._line = method.boundary()
        self._armed = False
        self._selected: dict[int, np.ndarray] = {}
        self._names: set[str] = set()
        self._reset()

    @property
    def armed(self) -> bool:
        """Whether the step under way is looked at."""
        return self._armed

    def describe(self) -> dict[str, Any]:
        """The meta value ``plane``: boundary, threshold of a choice before the first step, and what is seen."""
        choice = self._method.choice()
        weights, gradients = edges()
        found: dict[str, Any] = {
            "sees": self.sees,
            "boundary": None,
            "threshold": None,
            "weights": weights.tolist(),
            "gradients": gradients.tolist(),
        }
        if choice is not None:
            found |= {"examples": choice.examples, "squared": choice.squared, "threshold": _finite(choice.threshold)}
        if self._line is not None:
            found["boundary"] = asdict(self._line)
            if self._line.moment == "start" and not self._line.power:
                found["threshold"] = _finite(self._lowest(*self._method.newest(0)))
        return found

    def first(self) -> dict[str, np.ndarray] | None:
        """The frame of a choice before the first step; None where that looked at no gradient."""
        choice = self._method.choice()
        return None if choice is None else self._of_choice(choice)

    def arm(self) -> None:
        """Look at the next step."""
        self._reset()
        self._armed, self.seconds, self.inside = True, 0.0, 0.0
        with self._timed():
            selection = self._method.selection()
            if selection is not None and len(selection.index):
                self._known = len(selection.index)
                order = np.argsort(selection.tensor, kind="stable")
                numbers, starts = np.unique(selection.tensor[order], return_index=True)
                parts = np.split(selection.index[order].astype(np.int64), starts[1:])
                self._selected = dict(zip(numbers.tolist(), parts, strict=True))

    def streamed(self, name: str, parameter: nn.Parameter) -> None:
        if not self._armed or parameter.grad is None or name not in self._rows:
            return
        with self._timed(inside=True):
            number, row = self._rows[name]
            gradient = StreamedGradient.of(parameter.grad)
            self._every.add(gradient.weights(parameter), gradient.values)
            self._seen += row.eligible
            if (index := self._selected.get(number)) is not None:
                place = torch.from_numpy(index).to(self._device)
                values = parameter.detach().view(-1).index_select(0, place).float()
                self._chosen.add(values, gradient.at(place))
                self._taken += len(index)
            self._names.add(name)

    def complete(self) -> None:
        if not self._armed or not self._method.ranked():
            return
        with self._timed(inside=True):
            for name, tensor in self._method.ranked():
                if tensor.grad is not None:
                    self._every.add(tensor.detach().reshape(-1).float(), tensor.grad.reshape(-1).float())
                    self._seen += tensor.numel()
                    self._names.add(name)

    def chosen(self) -> None:
        if not self._armed:
            return
        with self._timed(inside=True):
            if self._method.ranked():
                self._kept_gradients()
            elif self._method.selection() is not None:
                values, gradients = self._method.newest(self._known)
                self._added = len(values)
                self._new.add(values, gradients)
                if self._added and self._line is not None and self._line.moment == "step":
                    self._lowest_new = self._lowest(values, gradients)

    def frame(self) -> dict[str, np.ndarray]:
        """Counts of the step that was looked at; the probe is not armed any more.

        Returns:
            ``rest``, ``chosen`` and ``new``, int32 tables of `engine.sparse.plane`; ``off``, int64 (3,), those of
            each that are too small for the axes or exactly 0; ``unseen``, int64 (1,), weights whose gradients the
            step does not compute; ``threshold``, float64 (1,), the lowest score chosen in this step, or NaN.
        """
        with self._timed():
            every, chosen, new = self._every.table(), self._chosen.table(), self._new.table()
            tables = [every - chosen - new, chosen, new]
            totals = [self._seen - self._taken - self._added, self._taken, self._added]
        self._armed = False
        unseen = sum(row.eligible for name, (_, row) in self._rows.items() if name not in self._names)
        return _arrays(tables, totals, unseen, self._lowest_new)

    def _kept_gradients(self) -> None:
        """Of a method that sets gradients to 0: all that are still there were chosen."""
        lowest = []
        for _, tensor in self._method.ranked():
            if tensor.grad is None:
                continue
            gradient = tensor.grad.reshape(-1).float()
            kept = gradient.nonzero().flatten()
            values, gradient = tensor.detach().reshape(-1)[kept].float(), gradient[kept]
            self._chosen.add(values, gradient)
            self._taken += len(kept)
            if len(kept) and self._line is not None:
                lowest.append(self._lowest(values, gradient))
        self._lowest_new = min(lowest, default=float("nan"))

    def _lowest(self, values: torch.Tensor, gradients: torch.Tensor) -> float:
        assert self._line is not None
        if not len(values):
            return float("nan")
        return lowest_score(values, gradients, self._line.power, self._line.exp, self._line.eps)

    def _of_choice(self, choice: Choice) -> dict[str, np.ndarray]:
        selection = self._method.selection()
        taken = 0 if selection is None else len(selection.index)
        every = sum(row.eligible for _, row in self._rows.values())
        tables = [choice.rest, choice.chosen, np.zeros_like(choice.chosen)]
        return _arrays(tables, [every - taken, taken, 0], 0, float("nan"))

    def _reset(self) -> None:
        self._every, self._chosen, self._new = (PlaneCounts(self._device) for _ in CLASSES)
        self._selected, self._names = {}, set()
        self._known = self._seen = self._taken = self._added = 0
        self._lowest_new = float("nan")

    @contextmanager
    def _timed(self, *, inside: bool = False) -> Iterator[None]:
        """Book what is done inside; the step's own work that a GPU has not done yet is no cost of the probe."""
        self._wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            spent = time.perf_counter() - started
            self.seconds += spent
            self.inside += spent if inside else 0.0

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)


def _arrays(tables: list[np.ndarray], totals: list[int], unseen: int, threshold: float) -> dict[str, np.ndarray]:
    off = [max(0, total - int(table.sum())) for total, table in zip(totals, tables, strict=True)]
    return {
        **{name: table.astype(np.int32) for name, table in zip(CLASSES, tables, strict=True)},
        "off": np.array(off, np.int64),
        "unseen": np.array([unseen], np.int64),
        "threshold": np.array([threshold], np.float64),
    }


def _finite(value: float | None) -> float | None:
    """A threshold that can be drawn on a logarithmic axis."""
    return value if value is not None and np.isfinite(value) and value > 0 else None
