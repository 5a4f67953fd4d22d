"""From labelled rows to a dataset: cleaning, removing duplicates, splitting. One rule for every source.

The split of a row depends on nothing but its text: SHA-256 of the normalised text (Unicode
NFKC, lower case, white space collapsed; both texts of a pair, joined by a line break), its
first 8 bytes as a big-endian number modulo 10: 0 to 7 train, 8 validation, 9 test. Rows with
the same normalised text are one row, so no text can stand in two splits; the first is
kept, and a text with two different labels is dropped altogether.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import DataError
from engine.tasks.dataset import SPLITS, Dataset, Length, Split, SplitName

SPLIT_VERSION = 1
SPLIT_RULE = (
    "80/10/10 by SHA-256 of the normalised text (NFKC, lower case, white space collapsed), "
    "first 8 bytes modulo 10: 0-7 train, 8 validation, 9 test"
)
MIN_ROWS = 50
MAX_CLASSES = 100
_SENTENCE_WORDS = 48
_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """Labelled texts as read, before cleaning.

    Attributes:
        texts, labels: one each per row; an empty one marks a row to drop.
        pairs: the second texts, or None.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    pairs: Sequence[str] | None = None


def normalise(text: str) -> str:
    """The form of a text that decides its split and its duplicates."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def split_of(key: str) -> SplitName:
    """The split of a normalised text."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def make_dataset(id: str, title: str, rows: Rows, provenance: Mapping[str, Any]) -> Dataset:
    """Clean, deduplicate and split labelled rows.

    Classes are numbered in sorted order of their names (numerically when all are numbers).
    Rows of validation and test whose class never occurs in training are dropped and counted:
    no method could learn it, and accuracy would only measure that.

    Raises:
        DataError: for too few rows, one class only, more than `MAX_CLASSES`, or an empty split.
    """
    keys, dropped_empty = _keys(rows)
    kept, duplicates, conflicting = _distinct(keys, rows.labels)
    if len(kept) < MIN_ROWS:
        raise DataError(
            f"{title} has {len(kept):,} usable rows (of {len(rows.texts):,}: {dropped_empty} empty, {duplicates} "
            f"duplicate, {conflicting} with contradictory labels); at least {MIN_ROWS} are needed.",
            "Add rows, or check that the right columns are chosen.",
        )
    _check_classes(title, [rows.labels[i] for i in kept])
    places: dict[SplitName, list[int]] = {name: [] for name in SPLITS}
    for i in kept:
        places[split_of(keys[i])].append(i)
    names = _sorted_labels({rows.labels[i] for i in places["train"]})
    unseen = _drop_unseen(places, rows.labels, names)
    _check_splits(title, places, names)
    splits = {name: _split(rows, places[name], names) for name in SPLITS}
    counted = {
        "rows": len(rows.texts),
        "duplicates_removed": duplicates,
        "contradictory_removed": conflicting,
        "dropped": {"empty": dropped_empty, "label_not_in_training": unseen},
        "splits": {name: len(splits[name]) for name in SPLITS},
        "label_mapping": {name: number for number, name in enumerate(names)},
        "split_rule": SPLIT_RULE,
        "split_version": SPLIT_VERSION,
    }
    return Dataset(
        id, title, tuple(names), _length(splits["train"]), splits, _digest(names, splits), {**provenance, **counted}
    )


def _keys(rows: Rows) -> tuple[list[str], int]:
    """Normalised text per row, empty for a row without text or label, and how many those are."""
    firsts = [normalise(text) for text in rows.texts]
    if rows.pairs is None:
        keys = [first if label else "" for first, label in zip(firsts, rows.labels, strict=True)]
    else:
        seconds = (normalise(text) for text in rows.pairs)
        joined = zip(firsts, seconds, rows.labels, strict=True)
        keys = [f"{first}\n{second}" if first and second and label else "" for first, second, label in joined]
    return keys, keys.count("")


def _distinct(keys: Sequence[str], labels: Sequence[str]) -> tuple[list[int], int, int]:
    """Rows to keep, repeated rows removed, and rows removed because their text has several labels."""
    first: dict[str, int] = {}
    conflicts: set[str] = set()
    for i, key in enumerate(keys):
        if key and labels[first.setdefault(key, i)] != labels[i]:
            conflicts.add(key)
    kept = [i for key, i in first.items() if key not in conflicts]
    conflicting = sum(key in conflicts for key in keys)
    filled = len(keys) - keys.count("")
    return kept, filled - conflicting - len(kept), conflicting


def _check_classes(title: str, labels: Sequence[str]) -> None:
    classes = _sorted_labels(set(labels))
    if len(classes) == 1:
        raise DataError(
            f"{title} has one class only: every label is {classes[0]!r}.", "Choose the column that holds the classes."
        )
    if len(classes) > MAX_CLASSES:
        some = ", ".join(repr(name[:40]) for name in classes[:_SHOWN])
        raise DataError(
            f"{title} has {len(classes):,} different labels ({some}, ...); at most {MAX_CLASSES} classes can be "
            "learned here, and numbers to be predicted (regression) cannot.",
            "Choose the column that holds the classes.",
        )


def _sorted_labels(labels: set[str]) -> list[str]:
    """Numerically when all are numbers, else alphabetically."""
    try:
        return sorted(labels, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(labels)


def _drop_unseen(places: dict[SplitName, list[int]], labels: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Take rows of classes without training rows out of the splits, and count them by class."""
    known = set(names)
    unseen: Counter[str] = Counter()
    for name in ("validation", "test"):
        unseen.update(labels[i] for i in places[name] if labels[i] not in known)
        places[name] = [i for i in places[name] if labels[i] in known]
    return dict(sorted(unseen.items()))


def _check_splits(title: str, places: Mapping[SplitName, list[int]], names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError(
            f"{title} has one class only in its training split: {names[0]!r}.", "Add rows of the other classes."
        )
    empty = [name for name in SPLITS if not places[name]]
    if empty:
        raise DataError(f"{title} is so small that its {' and '.join(empty)} split came out empty.", "Add rows.")


def _split(rows: Rows, places: Sequence[int], names: Sequence[str]) -> Split:
    number = {name: i for i, name in enumerate(names)}
    return Split(
        texts=[rows.texts[i] for i in places],
        pairs=None if rows.pairs is None else [rows.pairs[i] for i in places],
        labels=np.array([number[rows.labels[i]] for i in places], dtype=np.int64),
    )


def _length(train: Split) -> Length:
    """Reviews are texts of which more than a tenth have over 48 words (both texts of a pair counted)."""
    words = [text.count(" ") + 1 for text in train.texts]
    if train.pairs is not None:
        words = [count + text.count(" ") + 1 for count, text in zip(words, train.pairs, strict=True)]
    return "review" if np.percentile(words, 90) > _SENTENCE_WORDS else "sentence"


def _digest(names: Sequence[str], splits: Mapping[SplitName, Split]) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for name in SPLITS:
        split = splits[name]
        digest.update(f"\0{name}\0{len(split)}\0".encode())
        digest.update(split.labels.astype("<i8").tobytes())
        for texts in (split.texts, split.pairs or ()):
            digest.update("\0".join(texts).encode())
    return digest.hexdigest()
