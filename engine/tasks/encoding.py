"""Texts as token ids, kept ragged and padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from engine.tasks.dataset import Split

_CHUNK = 4096


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, without padding.

    Attributes:
        input_ids: int32, all examples end to end.
        offsets: int64 (n + 1,), where each begins.
        type_ids: uint8 like `input_ids`, or None when all are 0.
        labels: int64 (n,).
        max_length: tokens allowed per example, special tokens included.
        pad_id: the padding token.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    type_ids: np.ndarray | None
    labels: np.ndarray
    max_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, int64 (n,)."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Examples as int64 arrays, padded on the right to the longest of them.

        Returns:
            ``input_ids`` and ``attention_mask`` (len(indices), longest), ``token_type_ids`` of the
            same shape unless all are 0 in the split, and ``labels`` (len(indices),).
        """
        chosen = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.offsets[chosen], self.lengths[chosen]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        # Positions beyond an example's end point at its first token and are overwritten by padding.
        places = starts[:, None] + np.where(mask, columns, 0)
        batch = {
            "input_ids": np.where(mask, self.input_ids[places], self.pad_id).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "labels": self.labels[chosen],
        }
        if self.type_ids is not None:
            batch["token_type_ids"] = np.where(mask, self.type_ids[places], 0).astype(np.int64)
        return batch


def encode(split: Split, tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Tokenise a split: special tokens added, the longer text of a pair cut first.

    The tokenizer's own truncation and padding are set aside while it works and put back
    afterwards, so one tokenizer must not be used by two threads at once.

    Args:
        split: the texts.
        tokenizer: from `tokenizer_of`; its padding says which token pads.
        max_length: tokens per example, special tokens included.
    """
    padding, truncation = tokenizer.padding, tokenizer.truncation
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        ids, types, lengths = _tokenise(split, tokenizer)
    finally:
        tokenizer.no_truncation()
        if truncation:
            tokenizer.enable_truncation(**truncation)
        if padding:
            tokenizer.enable_padding(**padding)
    return Encoded(
        input_ids=ids,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        type_ids=types if types.any() else None,
        labels=split.labels,
        max_length=max_length,
        pad_id=int((padding or {}).get("pad_id", 0)),
    )


def _tokenise(split: Split, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Ids, type ids and lengths; in chunks, since the library's own objects take far more memory than arrays."""
    inputs = split.texts if split.pairs is None else list(zip(split.texts, split.pairs, strict=True))
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(inputs), _CHUNK):
        encodings = tokenizer.encode_batch_fast(inputs[start : start + _CHUNK])
        lengths += [len(encoding) for encoding in encodings]
        ids.append(np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int32))
        if split.pairs is not None:
            types.append(np.array([kind for encoding in encodings for kind in encoding.type_ids], dtype=np.uint8))
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return flat, np.concatenate(types) if types else np.zeros(len(flat), dtype=np.uint8), lengths
