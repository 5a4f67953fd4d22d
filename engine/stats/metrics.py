"""What a trained classifier got right and wrong on a list of items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import DataError


@dataclass(frozen=True)
class Outcomes:
    """One classifier's answers, item by item.

    Attributes:
        labels: int64 (n,), the right classes.
        probabilities: float32 (n, C), the answers; rows sum to one.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise DataError("There are no items to measure on.", "Give a dataset whose split is not empty.")
        if self.probabilities.shape[:1] != self.labels.shape:
            raise ValueError(f"{len(self.labels)} labels, but answers of shape {self.probabilities.shape}")

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """int64 (n,), the most probable class of each item; the lowest of several equal ones."""
        return self.probabilities.argmax(axis=1).astype(np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """bool (n,), which items were answered rightly."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Share of right answers, from 0 to 1."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean negative log-probability of the right classes, in nats."""
        chosen = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())

    def confusion(self) -> NDArray[np.int64]:
        """Counts (C, C): rows are the right classes, columns the answers."""
        return confusion_matrix(self.labels, self.predicted, self.probabilities.shape[1])

    def most_confident(self, *, right: bool, count: int = 10) -> NDArray[np.int64]:
        """Items answered rightly (or wrongly) with the highest probability, surest first.

        Returns:
            At most `count` positions; ties keep the order of the items.
        """
        items = np.flatnonzero(self.correct == right)
        confidence = self.probabilities[items].max(axis=1) if len(items) else np.zeros(0)
        return items[np.argsort(-confidence, kind="stable")[:count]].astype(np.int64)

    def rows(self, items: ArrayLike) -> list[dict[str, Any]]:
        """Plain data of some items: position, right class, answer and its probability."""
        return [
            {
                "item": int(i),
                "label": int(self.labels[i]),
                "predicted": int(self.predicted[i]),
                "probability": float(self.probabilities[i].max()),
            }
            for i in np.asarray(items, dtype=np.int64)
        ]


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are the right classes, columns the answers.

    Raises:
        ValueError: for a class outside 0 to `classes` - 1.
    """
    true, answer = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    both = np.concatenate([true, answer])
    if len(both) and (both.min() < 0 or both.max() >= classes):
        raise ValueError(f"classes from {both.min()} to {both.max()}, but there are {classes}")
    return np.bincount(true * classes + answer, minlength=classes * classes).reshape(classes, classes)
