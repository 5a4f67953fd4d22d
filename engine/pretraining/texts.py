"""What the nano models read: film reviews, without any sentence that is ever used to judge a model.

Only the training splits of the embedded datasets are read. Of these, every sentence is dropped
that, normalised, equals a text of a validation or test split or a sentence of one; what is kept
is checked once more by hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import DataError
from engine.tasks.dataset import Dataset
from engine.tasks.reviews import REVIEW_SETS, load_reviews
from engine.tasks.splitting import normalise

_END_OF_SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+")


@dataclass(frozen=True)
class Reviews:
    """Documents as lists of sentences, and how they were chosen.

    Attributes:
        documents: the sentences of each review, in order.
        provenance: plain data for a model card.
    """

    documents: tuple[tuple[str, ...], ...]
    provenance: dict[str, Any]


def training_reviews() -> Reviews:
    """The sentences that may be read.

    Raises:
        DataError: when the package with the reviews is missing, or a forbidden sentence would be read.
    """
    datasets = [load_reviews(name) for name in REVIEW_SETS]
    forbidden = forbidden_hashes(datasets)
    documents, dropped = [], 0
    for dataset in datasets:
        for text in dataset.splits["train"].texts:
            found = sentences(text)
            kept = tuple(sentence for sentence in found if fingerprint(sentence) not in forbidden)
            dropped += len(found) - len(kept)
            if kept:
                documents.append(kept)
    check_clean(documents, forbidden)
    provenance = {
        "datasets": {dataset.id: dataset.sha256 for dataset in datasets},
        "source": datasets[0].provenance["source"],
        "documents": len(documents),
        "sentences": sum(map(len, documents)),
        "sentences_dropped": dropped,
        "forbidden_hashes": len(forbidden),
    }
    return Reviews(tuple(documents), provenance)


def judging_reviews(dataset: str) -> list[str]:
    """The validation texts of a dataset: for measuring a finished model, never for reading."""
    return load_reviews(dataset).splits["validation"].texts


def sentences(text: str) -> list[str]:
    """A text cut after full stops, exclamation and question marks."""
    return [part for part in _END_OF_SENTENCE.split(text.strip()) if part]


def fingerprint(sentence: str) -> bytes:
    """SHA-256 of a normalised sentence."""
    return hashlib.sha256(normalise(sentence).encode()).digest()


def forbidden_hashes(datasets: Iterable[Dataset]) -> frozenset[bytes]:
    """Fingerprints of all validation and test texts and of their sentences."""
    texts = (text for dataset in datasets for name in ("validation", "test") for text in dataset.splits[name].texts)
    return frozenset(fingerprint(part) for text in texts for part in (text, *sentences(text)))


def check_clean(documents: Iterable[Sequence[str]], forbidden: frozenset[bytes]) -> None:
    """Refuse texts of which a sentence, or the whole, is forbidden.

    Raises:
        DataError: with how many there are.
    """
    found = sum(fingerprint(part) in forbidden for document in documents for part in (*document, " ".join(document)))
    if found:
        raise DataError(f"{found} texts for pretraining stand in a validation or test split.", "Do not train on them.")
