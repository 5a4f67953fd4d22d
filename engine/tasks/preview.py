"""What a model will see of a dataset: real rows, and the exact first batch token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engine.spec import RunSpec
from engine.tasks.dataset import SPLITS, Dataset
from engine.tasks.encoding import encode
from engine.tasks.order import batch_order

_NO_LIMIT = 2**30


@dataclass(frozen=True)
class PreviewRow:
    """One example of the first batch, as text."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class Preview:
    """A dataset as the page shows it before launch. Texts are raw: show them as text, never as HTML.

    Attributes:
        rows: the examples of the first batch, in order.
        tokens: their tokens, special tokens and padding included, all rows equally long.
        batch: the same batch as arrays, exactly as training will use it.
        truncated: how many of the rows were cut to fit.
        counts: rows per split and class.
        provenance: the dataset's.
    """

    rows: list[PreviewRow]
    tokens: list[list[str]]
    batch: dict[str, np.ndarray]
    truncated: int
    counts: dict[str, dict[str, int]]
    provenance: dict[str, Any]


def preview(dataset: Dataset, tokenizer: Tokenizer, spec: RunSpec) -> Preview:
    """The first batch that a run with this spec trains on, and the dataset's counts.

    Args:
        dataset: the loaded dataset.
        tokenizer: from `tokenizer_of`.
        spec: its batch size, seed of data order and tokens per example are used; ``auto`` is the
            dataset's default.
    """
    train, recipe = dataset.splits["train"], spec.train
    max_length = dataset.default_max_length if recipe.max_length == "auto" else recipe.max_length
    chosen = train.take(batch_order(len(train), recipe.batch_size, 1, recipe.seed_of("data"))[0])
    encoded = encode(chosen, tokenizer, max_length)
    batch = encoded.batch(np.arange(len(chosen)))
    tokens = [[tokenizer.id_to_token(int(token)) or "" for token in row] for row in batch["input_ids"]]
    pairs: list[str] | list[None] = chosen.pairs or [None] * len(chosen)
    rows = [
        PreviewRow(text, pair, dataset.labels[label])
        for text, pair, label in zip(chosen.texts, pairs, chosen.labels, strict=True)
    ]
    truncated = int((encode(chosen, tokenizer, _NO_LIMIT).lengths > max_length).sum())
    return Preview(rows, tokens, batch, truncated, _counts(dataset), dict(dataset.provenance))


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    sizes = {name: np.bincount(dataset.splits[name].labels, minlength=len(dataset.labels)) for name in SPLITS}
    return {name: {label: int(n) for label, n in zip(dataset.labels, sizes[name], strict=True)} for name in SPLITS}
