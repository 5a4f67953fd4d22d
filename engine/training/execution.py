"""Training steps as the plan chose to execute them: the numbers of each step, taken one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from engine.tasks.encoding import Encoded
from engine.training import recipe
from engine.training.build import Built
from engine.training.evaluation import Batch, Forward, predict, to_device
from engine.training.ragged import RaggedForward

Logits = np.ndarray
Progress = Callable[[int, int], None]
"""Takes examples done, and all of them."""


class Witness(Protocol):
    """Looks at gradients while they are there, and changes nothing."""

    def streamed(self, name: str, parameter: torch.nn.Parameter) -> None:
        """A streamed gradient is complete, and its method has not seen it yet."""

    def complete(self) -> None:
        """The backward pass is over, and `Method.before_step` comes next."""

    def chosen(self) -> None:
        """`Method.before_step` is over, and nothing is updated yet."""


class Steps(Protocol):
    """Executes optimizer steps; what they measured waits on the device until it is read."""

    def show(self, witness: Witness) -> None:
        """Let somebody look at the gradients of every step that is not captured as a whole."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Of the dense tensors."""

    def start(self, done: int) -> None:
        """Called once, before the first step taken, with the number of steps done before."""

    def take(self, step: int) -> int:
        """Step `step`, from 0; returns its padded tokens."""

    def wait(self) -> None:
        """Until the device has done all steps taken."""

    def read(self) -> list[tuple[int, tuple[float, float, float]]]:
        """Of all steps since the last reading: its number, loss, accuracy and gradient norm before clipping."""

    def elsewhere(self) -> float:
        """Seconds that these steps took outside these calls, since last asked: of what is done for several runs."""

    def predict(self, encoded: Encoded, indices: np.ndarray | None = None, progress: Progress | None = None) -> Logits:
        """What the model answers now, float32 (examples, classes); to all examples where no indices are given."""


class StepWork:
    """The work of one step on tensors, the same for every way to execute it."""

    def __init__(self, built: Built, forward: Forward) -> None:
        train = built.spec.train
        self.built, self.forward = built, forward
        self.optimizer = recipe.dense_optimizer([p for _, p in built.dense], train)
        self.witness: Witness | None = None

    def backward(self, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of one batch; returns its loss and accuracy, 0-d."""
        logits = self.forward(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        extra = self.built.method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        return loss.detach(), _accuracy(logits, labels)

    @torch.no_grad()
    def estimate(self, step: int, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of `backward`, for a method that asks for losses alone; returns the means of all it saw."""
        seen: list[torch.Tensor] = []

        def loss_of() -> torch.Tensor:
            logits = self.forward(batch)
            loss = functional.cross_entropy(logits.float(), labels)
            seen.append(torch.stack([loss, _accuracy(logits, labels)]))
            return loss

        self.built.method.estimate(step, loss_of)
        loss, accuracy = torch.stack(seen).mean(0)
        return loss, accuracy

    def apply(self, step: int, lr: float | torch.Tensor) -> torch.Tensor:
        """Clip, update, and drop the gradients; returns their norm before clipping, 0-d."""
        method = self.built.method
        if self.witness is not None:
            self.witness.complete()
        method.before_step(step)
        if self.witness is not None:
            self.witness.chosen()
        norm, scale = recipe.clip(
            (p for _, p in self.built.dense), method.gradient_square(), self.built.spec.train.clip
        )
        method.update(lr, scale)
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
        method.after_step(step)
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    def consume(self, name: str, parameter: torch.nn.Parameter) -> None:
        """Hand one complete gradient to the method, and before that to who looks at it."""
        if self.witness is not None:
            self.witness.streamed(name, parameter)
        self.built.method.on_gradient(name, parameter)

    def hook_gradients(self) -> None:
        """Hand each streamed tensor's gradient to the method as soon as it is complete."""
        for name, parameter in self.built.method.streamed():

            def consume(p: Any, name: str = name) -> None:
                self.consume(name, p)

            parameter.register_post_accumulate_grad_hook(consume)


class Alone:
    """Steps of one run by itself, whose model answers too."""

    def __init__(self, built: Built) -> None:
        self._model, self._device = built.model, built.spec.train.device

    def elsewhere(self) -> float:
        return 0.0

    def predict(self, encoded: Encoded, indices: np.ndarray | None = None, progress: Progress | None = None) -> Logits:
        return predict(self._model, encoded, self._device, indices, progress)

    def wait(self) -> None:
        wait_for(self._device)


class EagerSteps(Alone):
    """One operation after another, on padded or ragged batches.

    Args:
        built: the run's objects.
        encoded: training examples.
        order: which of them each step reads, int64 (steps, batch).
    """

    def __init__(self, built: Built, encoded: Encoded, order: np.ndarray) -> None:
        super().__init__(built)
        self._work, self._train = StepWork(built, forward_of(built)), built.spec.train
        self._encoded, self._order = encoded, order
        self._waiting: list[tuple[int, torch.Tensor]] = []

    def show(self, witness: Witness) -> None:
        self._work.witness = witness

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self._work.optimizer

    def start(self, done: int) -> None:
        self._work.hook_gradients()

    def take(self, step: int) -> int:
        train = self._train
        batch = to_device(self._encoded.batch(self._order[step]), train.device)
        labels = batch.pop("labels")
        if self._work.built.method.differentiates:
            loss, accuracy = self._work.backward(batch, labels)
        else:
            loss, accuracy = self._work.estimate(step, batch, labels)
        norm = self._work.apply(step, float(train.lr) * recipe.lr_factor(step, train.steps, train.warmup))
        self._waiting.append((step, torch.stack([loss, accuracy, norm.to(loss.device)])))
        return batch["attention_mask"].numel()

    def read(self) -> list[tuple[int, tuple[float, float, float]]]:
        if not self._waiting:
            return []
        values = torch.stack([numbers for _, numbers in self._waiting]).cpu().tolist()
        steps = [step for step, _ in self._waiting]
        self._waiting = []
        return [(step, tuple(row)) for step, row in zip(steps, values, strict=True)]


def steps_of(built: Built, encoded: Encoded, order: np.ndarray) -> Steps:
    """As the plan chose."""
    if built.spec.train.execution == "graph":
        from engine.training.graph import GraphSteps

        return GraphSteps(built, encoded, order)
    if built.spec.train.execution == "packed":
        from engine.training.pack.steps import Member

        return Member(built, encoded, order)
    return EagerSteps(built, encoded, order)


def forward_of(built: Built) -> Forward:
    """From a padded batch without labels to logits (n, classes)."""
    if built.spec.train.execution == "ragged":
        return RaggedForward(built.model, built.setting.source.family)
    return padded_forward(built)


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given; a processor always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def padded_forward(built: Built) -> Forward:
    """The model as it is; a decoder without the cache that only writing needs."""
    extra = {"use_cache": False} if built.setting.source.family.kind == "decoder" else {}

    def padded(batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = built.model(**batch, **extra).logits
        return logits

    return padded
