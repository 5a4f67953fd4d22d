"""What a trained run leaves: predictions on the test set, the trained tensors, and a summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from scipy.special import softmax

from engine.methods.contract import chain
from engine.stats.intervals import wilson
from engine.stats.metrics import Outcomes
from engine.tasks.dataset import Split
from engine.tasks.encoding import Encoded
from engine.training.build import Built, head_tensors
from engine.training.evaluation import loss_and_accuracy
from engine.training.execution import Progress, Steps
from engine.training.result_file import TEST, write_result, write_whole

SHOWN = 8
"""Examples shown of those most confidently right, and of those most confidently wrong."""


@dataclass(frozen=True)
class Measured:
    """Logits and accuracy of a finished model on one split."""

    logits: np.ndarray
    loss: float
    accuracy: float


def measure(steps: Steps, encoded: Encoded, progress: Progress) -> Measured:
    """Logits of the last weights over a whole split."""
    logits = steps.predict(encoded, progress=progress)
    loss, accuracy = loss_and_accuracy(logits, encoded.labels)
    return Measured(logits, loss, accuracy)


def write(folder: Path, built: Built, test: Measured, labels: np.ndarray, spec_hash: str) -> int:
    """Write trained tensors and test predictions below the run's folder.

    Returns:
        Bytes on disk of the trained tensors.

    Raises:
        StoreError: when the disk is full.
    """
    result = folder / "result"
    tensors = {}
    for level, method in enumerate(chain(built.method)):
        tensors.update({f"{level}/{key}": tensor for key, tensor in method.result().items()})
    path = write_result(
        result, tensors, head_tensors(built), {"spec_hash": spec_hash, "method": built.spec.method.name}
    )
    answers: dict[str, np.ndarray] = {"logits": test.logits.astype(np.float32), "labels": labels.astype(np.int64)}
    write_whole(result / TEST, lambda new: save_file(answers, new))
    return path.stat().st_size


def describe(test: Measured, labels: np.ndarray, names: tuple[str, ...], split: Split) -> dict[str, Any]:
    """Test accuracy with its interval, confusion matrix, and the most telling examples."""
    outcomes = Outcomes(labels.astype(np.int64), softmax(test.logits.astype(np.float64), axis=1).astype(np.float32))
    interval = wilson(int(outcomes.correct.sum()), len(labels))
    telling = [*outcomes.most_confident(right=True, count=SHOWN), *outcomes.most_confident(right=False, count=SHOWN)]
    return {
        "accuracy": outcomes.accuracy,
        "ci95": [interval.low, interval.high],
        "items": len(labels),
        "labels": list(names),
        "confusion": outcomes.confusion().tolist(),
        "examples": [_shown(row, names, split) for row in outcomes.rows(telling)],
    }


def _shown(row: dict[str, Any], names: tuple[str, ...], split: Split) -> dict[str, Any]:
    item = row["item"]
    return {
        "index": item,
        "text": split.texts[item],
        "pair": split.pairs[item] if split.pairs else None,
        "label": names[row["label"]],
        "predicted": names[row["predicted"]],
        "probability": row["probability"],
        "right": row["label"] == row["predicted"],
    }
