"""Logits of a model over a split, sentences of like length together to save padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from engine.estimate import GPU_EVAL_BATCH
from engine.tasks.encoding import Encoded
from engine.training.replay import Replays

Batch = Mapping[str, torch.Tensor]
Forward = Callable[[Batch], torch.Tensor]
EVAL_BATCH = 64


def to_device(batch: dict[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """A batch of arrays as tensors on the device."""
    return {key: torch.from_numpy(array).to(device, non_blocking=True) for key, array in batch.items()}


@torch.no_grad()
def predict(
    model: nn.Module,
    encoded: Encoded,
    device: str,
    indices: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Logits in the order of `indices` (all examples by default).

    Returns:
        float32 array (examples, classes).
    """
    chosen = np.arange(len(encoded)) if indices is None else np.asarray(indices)
    by_length = np.argsort(encoded.lengths[chosen], kind="stable")
    size = EVAL_BATCH if device == "cpu" else GPU_EVAL_BATCH
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(chosen), size):
        batch = to_device(encoded.batch(chosen[by_length[start : start + size]]), device)
        batch.pop("labels")
        parts.append(model(**batch).logits.float())
        if progress:
            progress(min(start + size, len(chosen)), len(chosen))
    model.train(was_training)
    return _in_order(torch.cat(parts), by_length)


class Sample:
    """A few examples that are asked again and again while a model trains; on a GPU that is a graph.

    Args:
        model: whose tensors stay where they are.
        forward: from a batch to the model's logits, without asking the processor for anything.
        encoded: a split.
        indices: of the examples.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, forward: Forward, encoded: Encoded, indices: np.ndarray, device: str) -> None:
        self._model, self._forward, self._replays = model, forward, Replays(device)
        self._by_length = np.argsort(encoded.lengths[indices], kind="stable")
        self._batch = to_device(encoded.batch(indices[self._by_length]), device)
        self._batch.pop("labels")
        self._logits: torch.Tensor | None = None

    def logits(self) -> np.ndarray:
        """Of the model as it is now, float32 (examples, classes)."""
        was_training = self._model.training
        self._model.eval()
        self._replays.run("answers", self._answer)
        self._model.train(was_training)
        assert self._logits is not None
        return _in_order(self._logits, self._by_length)

    @torch.no_grad()
    def _answer(self) -> None:
        logits = self._forward(self._batch).float()
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)


def _in_order(logits: torch.Tensor, by_length: np.ndarray) -> np.ndarray:
    """Sorted logits back in the order of the examples."""
    found = logits.cpu().numpy()
    ordered: np.ndarray = np.empty_like(found)
    ordered[by_length] = found
    return ordered


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross entropy (nats) and share of correct predictions."""
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    return float(loss), float((logits.argmax(1) == labels).mean())
