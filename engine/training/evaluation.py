"""Logits of a model over a split, longest sentences together to save padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from engine.tasks.encoding import Encoded

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
    lengths = encoded.offsets[chosen + 1] - encoded.offsets[chosen]
    by_length = np.argsort(lengths, kind="stable")
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(chosen), EVAL_BATCH):
        batch = to_device(encoded.batch(chosen[by_length[start : start + EVAL_BATCH]]), device)
        batch.pop("labels")
        parts.append(model(**batch).logits.float())
        if progress:
            progress(min(start + EVAL_BATCH, len(chosen)), len(chosen))
    model.train(was_training)
    sorted_logits = torch.cat(parts).cpu().numpy()
    logits = np.empty_like(sorted_logits)
    logits[by_length] = sorted_logits
    return logits


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross entropy (nats) and share of correct predictions."""
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    return float(loss), float((logits.argmax(1) == labels).mean())
