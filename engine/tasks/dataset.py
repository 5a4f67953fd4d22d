"""What a dataset is: named classes and three splits of labelled texts or pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Length = Literal["sentence", "review"]
_MAX_LENGTH: dict[Length, int] = {"sentence": 64, "review": 256}


@dataclass(frozen=True)
class Split:
    """Labelled texts.

    Attributes:
        texts: the (first) texts.
        pairs: the second texts, or None for single texts.
        labels: int64 (n,), positions in the dataset's `labels`.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray | Sequence[int]) -> Split:
        """The rows at these positions, in this order."""
        chosen = [int(index) for index in indices]
        pairs = None if self.pairs is None else [self.pairs[index] for index in chosen]
        return Split([self.texts[index] for index in chosen], pairs, self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A classification task.

    Attributes:
        id: what a spec's ``dataset.source`` says.
        title: for people.
        labels: names of the classes.
        length: whether its texts are sentences or longer; decides the default number of tokens.
        splits: train, validation and test.
        sha256: of the texts, labels and splits, whatever file they came from.
        provenance: plain JSON data: where it came from, what was removed and counted, how it was split.
    """

    id: str
    title: str
    labels: tuple[str, ...]
    length: Length
    splits: Mapping[SplitName, Split]
    sha256: str
    provenance: Mapping[str, Any]

    @property
    def is_pair(self) -> bool:
        """Whether each example is a pair of texts."""
        return self.splits["train"].pairs is not None

    @property
    def majority(self) -> float:
        """Share of the most frequent class in the validation split: accuracy of knowing nothing."""
        labels = self.splits["validation"].labels
        return float(np.bincount(labels).max() / len(labels))

    @property
    def default_max_length(self) -> int:
        """Tokens per example unless a spec says otherwise: 64 for sentences, 256 for reviews."""
        return _MAX_LENGTH[self.length]
