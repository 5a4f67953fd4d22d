"""Training steps replayed as CUDA graphs: one launch where the eager step makes a thousand.

A small model keeps a GPU waiting for the next launch. Here all examples, their order and the
learning rates lie on the device, and a counter there says which step it is, so that a replay needs
nothing from the host. Shapes are static per length: a batch is padded to the next multiple of
`BUCKET` tokens. The first batch of a length is an eager step, which warms up; at the second one the
step is captured.

Where a method's own work cannot be captured, forward and backward pass are, and the rest is eager.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from engine.sparse.optimizer import put
from engine.tasks.encoding import Encoded
from engine.training import recipe
from engine.training.build import Built
from engine.training.evaluation import Sample
from engine.training.execution import Alone, Logits, Progress, StepWork, Witness, padded_forward
from engine.training.replay import Replays

BUCKET = 8
"""Lengths that a graph is made for: multiples of this."""


class GraphSteps(Alone):
    """Implements `engine.training.execution.Steps` on a GPU.

    Args:
        built: the run's objects.
        encoded: training examples.
        order: which of them each step reads, int64 (steps, batch).
    """

    def __init__(self, built: Built, encoded: Encoded, order: np.ndarray) -> None:
        super().__init__(built)
        train = built.spec.train
        self._built, self._work = built, StepWork(built, padded_forward(built))
        self._examples = Examples(encoded, order, train.device)
        rates = [float(train.lr) * recipe.lr_factor(step, train.steps, train.warmup) for step in range(train.steps)]
        self._rates = torch.tensor(rates, device=train.device)
        self._rate = torch.zeros((), device=train.device)
        self._step = torch.zeros(1, dtype=torch.int64, device=train.device)
        self._numbers = torch.zeros(train.steps, 3, device=train.device)
        self._replays = Replays(train.device)
        self._kept: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._read = self._taken = 0
        self._whole = built.method.captured == "step"
        self._samples: dict[bytes, Sample] = {}

    def show(self, witness: Witness) -> None:
        self._work.witness = witness

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self._work.optimizer

    def start(self, done: int) -> None:
        self._step.fill_(done)
        self._read = self._taken = done
        if self._whole:
            self._work.hook_gradients()
        else:
            trained = [parameter for parameter in self._built.model.parameters() if parameter.requires_grad]
            self._kept = [(parameter, torch.zeros_like(parameter)) for parameter in trained]

    def take(self, step: int) -> int:
        length = self._examples.length(step)
        if self._whole:
            self._replays.run(length, lambda: self._captured_step(step, length))
        else:
            self._replays.run(length, lambda: self._captured_gradients(length))
            self._rest(step)
        self._taken = step + 1
        return self._examples.batch_size * length

    def read(self) -> list[tuple[int, tuple[float, float, float]]]:
        rows = self._numbers[self._read : self._taken].cpu().tolist()
        found = [(self._read + place, tuple(row)) for place, row in enumerate(rows)]
        self._read = self._taken
        return found

    def predict(self, encoded: Encoded, indices: np.ndarray | None = None, progress: Progress | None = None) -> Logits:
        if indices is None:
            return super().predict(encoded, None, progress)
        if indices.tobytes() not in self._samples:
            self._samples[indices.tobytes()] = Sample(self._model, self._work.forward, encoded, indices, self._device)
        return self._samples[indices.tobytes()].logits()

    def _captured_step(self, step: int, length: int) -> None:
        """A whole step; `step` is of no use to a method whose step can be captured."""
        loss, accuracy = self._work.backward(*self._examples.batch(self._step, length))
        self._rate.copy_(self._rates.index_select(0, self._step)[0])
        norm = self._work.apply(step, self._rate)
        self._note(torch.stack([loss, accuracy, norm]))
        self._step.add_(1)

    def _captured_gradients(self, length: int) -> None:
        """Forward and backward pass; the gradients stay where they are."""
        torch._foreach_zero_([gradient for _, gradient in self._kept])
        for parameter, gradient in self._kept:
            parameter.grad = gradient
        loss, accuracy = self._work.backward(*self._examples.batch(self._step, length))
        self._note(torch.stack([loss, accuracy, torch.zeros_like(loss)]))

    def _rest(self, step: int) -> None:
        """What a method does with the gradients, eagerly."""
        for parameter, gradient in self._kept:
            parameter.grad = gradient
        for name, parameter in self._built.method.streamed():
            self._work.consume(name, parameter)
        self._rate.copy_(self._rates[step])
        self._numbers[step, 2] = self._work.apply(step, self._rate)
        self._step.add_(1)

    def _note(self, numbers: torch.Tensor) -> None:
        put(self._numbers, self._step, numbers[None])


class Examples:
    """All training examples on the device, as tables, so that a counter there is enough to make a batch.

    Args:
        encoded: the examples.
        order: which of them each step reads, int64 (steps, batch).
        device: where the tables lie.
    """

    def __init__(self, encoded: Encoded, order: np.ndarray, device: str) -> None:
        every = encoded.batch(np.arange(len(encoded)))
        self.batch_size = order.shape[1]
        self._limit = int(encoded.max_length)
        self._longest = encoded.lengths[order].max(1)
        self._order, self._lengths, self._labels = (
            torch.from_numpy(array).to(device) for array in (order, encoded.lengths, every.pop("labels"))
        )
        self._columns = torch.arange(self._limit, device=device)
        every.pop("attention_mask")
        pads = {"input_ids": encoded.pad_id}
        self._tables = {
            key: torch.from_numpy(_widened(array, self._limit, pads.get(key, 0))).to(device)
            for key, array in every.items()
        }

    def length(self, step: int) -> int:
        """Tokens that the batch of a step is padded to."""
        return min(self._limit, -(-int(self._longest[step]) // BUCKET) * BUCKET)

    def batch(self, step: torch.Tensor, length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The batch of the step that `step`, int64 (1,), counts to, and its labels; nothing is asked of the device."""
        rows = self._order.index_select(0, step)[0]
        batch = {key: table.index_select(0, rows)[:, :length].long() for key, table in self._tables.items()}
        batch["attention_mask"] = (self._columns[:length] < self._lengths.index_select(0, rows)[:, None]).long()
        return batch, self._labels.index_select(0, rows)


def _widened(table: np.ndarray, width: int, fill: int) -> np.ndarray:
    """A table (n, columns) as int32 (n, width)."""
    wide = np.full((len(table), width), fill, dtype=np.int32)
    wide[:, : table.shape[1]] = table
    return wide
