"""What a method's steps hold on a GPU, by the CUDA allocator: gradients, optimizer state, temporaries, and the rest.

Between two steps nothing is there but weights and state. Within one, gradients are alive from their own backward
operation until the method drops them, and whatever else the method or the optimizer asks for is a temporary.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from engine.tasks.encoding import Encoded
from engine.training.build import Built
from engine.training.execution import EagerSteps

WARM_STEPS = 3
"""Steps before anything is measured: optimizers make their state in the first ones."""


@dataclass
class Peaks:
    """Bytes.

    Attributes:
        weights: of the model.
        state: what stays from step to step beside the weights.
        gradients: the most that are alive at once.
        temporaries: the most that taking gradients in, choosing and updating ask for beyond what was there.
        whole: the highest point of a step.
    """

    weights: int
    state: int = 0
    gradients: int = 0
    temporaries: int = 0
    whole: int = 0

    @property
    def rest(self) -> int:
        """Activations, and what else the passes need: what the highest point holds beside weights, state, gradients."""
        return self.whole - self.weights - self.state - self.gradients


def measure(built: Built, encoded: Encoded, order: np.ndarray) -> Peaks:
    """Take eager steps on a CUDA device and note what they held, after a few to warm up.

    Args:
        built: the run's objects, scored where its method scores first; used up by this.
        encoded: training examples.
        order: which of them each step reads, int64 (steps, batch), with more than `WARM_STEPS` steps.
    """
    watch, steps = _Watch(built), EagerSteps(built, encoded, order)
    steps.start(0)
    for step in range(len(order)):
        if step == WARM_STEPS:
            watch.forget()
        watch.take(steps, step)
    return watch.peaks


def settle(device: str) -> None:
    """Free what earlier runs left; let libraries take the room they keep from their first products on."""
    gc.collect()
    layer = nn.Linear(64, 64, device=device)
    layer(torch.ones(64, 64, device=device)).sum().backward()


class _Watch:
    """Looks at the allocator around a method's hooks; made before the steps register theirs."""

    def __init__(self, built: Built) -> None:
        self._built = built
        self._alive: list[weakref.ref[torch.Tensor]] = []
        self._highest = self._updating = 0
        self.peaks = Peaks(_storages([*built.model.parameters(), *built.model.buffers()]))
        on_gradient, before_step = built.method.on_gradient, built.method.before_step

        def taken(name: str, parameter: nn.Parameter) -> None:
            if parameter.grad is not None:
                self._alive.append(weakref.ref(parameter.grad))
            self._note()
            entered = torch.cuda.memory_allocated()
            on_gradient(name, parameter)
            self._temporary(entered)

        def prepared(step: int) -> None:
            self._note()
            self._updating = torch.cuda.memory_allocated()
            before_step(step)

        built.method.on_gradient, built.method.before_step = taken, prepared  # type: ignore[method-assign]

    def take(self, steps: EagerSteps, step: int) -> None:
        """Take one step and note what it held."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._highest, self._alive = 0, []
        others = self._built.resident
        self.peaks.state = max(self.peaks.state, torch.cuda.memory_allocated() - others - self.peaks.weights)
        steps.take(step)
        self._temporary(self._updating)
        self.peaks.whole = max(self.peaks.whole, self._highest - others)
        steps.read()

    def forget(self) -> None:
        """Drop all that was noted but the weights."""
        self.peaks = Peaks(self.peaks.weights)

    def _note(self) -> None:
        """The gradients alive now; the peak starts anew."""
        held = [gradient for one in self._alive if (gradient := one()) is not None]
        held += [parameter.grad for parameter in self._built.model.parameters() if parameter.grad is not None]
        self.peaks.gradients = max(self.peaks.gradients, _storages(held))
        self._peak()

    def _temporary(self, entered: int) -> None:
        """What the peak since the last look lies above `entered`."""
        self.peaks.temporaries = max(self.peaks.temporaries, self._peak() - entered)

    def _peak(self) -> int:
        """Since the last look."""
        peak = torch.cuda.max_memory_allocated()
        self._highest = max(self._highest, peak)
        torch.cuda.reset_peak_memory_stats()
        return peak


def _storages(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that some tensors stand on, each counted once, those of a sparse gradient included."""
    dense = [part for one in tensors for part in ((one._values(), one._indices()) if one.is_sparse else (one,))]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in dense}.values())


def bound(sizes: Sequence[int], selected: int) -> float:
    """What gradients and state of a selective method may take, as a share of full fine-tuning's with AdamW.

    Full fine-tuning holds a gradient and two moments per weight; a selective method its largest gradient,
    and the state of what it selects; 0.02 are for the rest.
    """
    return max(sizes) / (3 * sum(sizes)) + selected / sum(sizes) + 0.02
