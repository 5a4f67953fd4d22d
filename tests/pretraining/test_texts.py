"""What may be read: no sentence that judges a model, shown on the real collections."""

from __future__ import annotations

import pytest

from engine.errors import DataError
from engine.pretraining import texts
from engine.tasks.reviews import load_reviews
from engine.tasks.splitting import normalise


@pytest.fixture(scope="module")
def reviews() -> texts.Reviews:
    return texts.training_reviews()


def test_no_sentence_of_a_validation_or_test_split_is_read(reviews: texts.Reviews) -> None:
    """By plain comparison of normalised texts, beside the recipe's own check by hash."""
    read = {normalise(sentence) for document in reviews.documents for sentence in document}
    for name in ("rotten_tomatoes", "imdb"):
        for split in ("validation", "test"):
            for text in load_reviews(name).splits[split].texts:
                assert normalise(text) not in read
                assert read.isdisjoint(normalise(sentence) for sentence in texts.sentences(text))


def test_most_of_the_training_texts_are_read(reviews: texts.Reviews) -> None:
    documents = sum(len(load_reviews(name).splits["train"]) for name in ("rotten_tomatoes", "imdb"))
    assert 0.98 * documents < len(reviews.documents) <= documents
    assert reviews.provenance["sentences"] > 250_000
    assert 0 < reviews.provenance["sentences_dropped"] < 10_000


def test_a_forbidden_text_is_refused_whatever_its_case_and_spaces() -> None:
    forbidden = frozenset({texts.fingerprint("a fine film .")})
    texts.check_clean([["another film"]], forbidden)
    with pytest.raises(DataError, match="stand in a validation or test split"):
        texts.check_clean([["one sentence", "A  FINE film ."]], forbidden)


def test_sentences_end_after_their_marks() -> None:
    assert texts.sentences('It ended. "Why?" I asked! so') == ["It ended.", '"Why?"', "I asked!", "so"]
