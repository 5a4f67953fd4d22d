"""Texts as sequences of tokens, and which of them stand in which batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from engine.tasks.encoding import Encoded

LIMITS, SHARES = (1, 62, 254), (0.5, 0.35, 0.15)
"""A sequence is a single sentence, or as many as fit into so many tokens; drawn anew for each, with these shares."""
WINDOW = 8192
"""Sequences sorted by length at a time, so that little is padded and batches still differ from epoch to epoch."""


def encode_documents(documents: Iterable[Sequence[str]], tokenizer: Tokenizer, seed: int) -> Encoded:
    """Sentences of each document joined to sequences of differing lengths, special tokens added.

    Args:
        documents: lists of sentences.
        tokenizer: with the tokens [CLS] and [SEP].
        seed: of the lengths.
    """
    listed = list(documents)
    tokenizer.no_padding()
    encodings = iter(tokenizer.encode_batch_fast([s for d in listed for s in d], add_special_tokens=False))
    rng = np.random.Generator(np.random.PCG64(seed))
    start, end = ([tokenizer.token_to_id(token)] for token in ("[CLS]", "[SEP]"))
    joined = [
        np.array([*start, *tokens, *end], dtype=np.int32)
        for document in listed
        for tokens in _joined([next(encodings).ids for _ in document], rng)
    ]
    return Encoded(
        input_ids=np.concatenate(joined),
        offsets=np.cumsum([0, *map(len, joined)], dtype=np.int64),
        type_ids=None,
        labels=np.zeros(len(joined), dtype=np.int64),
        max_length=max(LIMITS) + 2,
        pad_id=0,
    )


def _joined(sentences: Sequence[list[int]], rng: np.random.Generator) -> Iterator[list[int]]:
    """Runs of sentences, each as long as its limit allows; a single sentence may be as long as the largest limit."""
    current: list[int] = []
    limit = rng.choice(LIMITS, p=SHARES)
    for sentence in sentences:
        if current and len(current) + len(sentence) > limit:
            yield current
            current, limit = [], rng.choice(LIMITS, p=SHARES)
        current = [*current, *sentence][: max(LIMITS)]
    yield current


def batches(lengths: np.ndarray, tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Batches without end: every epoch all sequences once, in another order, near lengths together.

    Args:
        lengths: int64 (n,).
        tokens: padded tokens per batch, at most; a single sequence may have more.
        seed: of the order.
    """
    epoch = 0
    while True:
        rng = np.random.Generator(np.random.PCG64([seed, epoch]))
        order = rng.permutation(len(lengths))
        parts = [
            part
            for start in range(0, len(order), WINDOW)
            for part in _cut(order[start : start + WINDOW], lengths, tokens)
        ]
        yield from (parts[place] for place in rng.permutation(len(parts)))
        epoch += 1


def _cut(window: np.ndarray, lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """A window by length, in parts of at most so many padded tokens."""
    ordered = window[np.argsort(lengths[window], kind="stable")[::-1]]
    start = 0
    while start < len(ordered):
        count = max(1, tokens // int(lengths[ordered[start]]))
        yield ordered[start : start + count]
        start += count
