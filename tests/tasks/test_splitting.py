"""Cleaning and splitting: no text in two splits, everything removed is counted, unusable data refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from engine.errors import DataError
from engine.tasks.dataset import SPLITS, Dataset
from engine.tasks.splitting import MIN_ROWS, Rows, make_dataset, normalise, split_of


def sentences(count: int, offset: int = 0) -> list[str]:
    return [f"sentence number {i} of the file" for i in range(offset, offset + count)]


def made(texts: list[str], labels: list[str], pairs: list[str] | None = None) -> Dataset:
    return make_dataset("id", "The file", Rows(texts, labels, pairs), {"source": "test"})


def alternating(count: int) -> list[str]:
    return ["no", "yes"] * (count // 2)


def texts_in(text_split: str, count: int) -> list[str]:
    """Texts that fall into one split."""
    found = (text for text in sentences(100_000, 1_000_000) if split_of(normalise(text)) == text_split)
    return [next(found) for _ in range(count)]


def test_split_is_the_documented_hash() -> None:
    text = "  A Film,\tabout\n ＦＵＬＬ width "
    key = "a film, about full width"
    bucket = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) % 10
    assert normalise(text) == key
    assert split_of(key) == ("train" if bucket < 8 else "validation" if bucket == 8 else "test")


def test_shares_are_eighty_ten_ten() -> None:
    dataset = made(sentences(4000), alternating(4000))
    shares = [len(dataset.splits[name]) / 4000 for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_no_text_stands_in_two_splits_and_repeats_are_counted() -> None:
    texts = sentences(300)
    repeats = [text.upper() + "  " for text in texts[:40]]
    labels = alternating(300)
    dataset = made(texts + repeats, labels + labels[:40])
    keys = [normalise(text) for name in SPLITS for text in dataset.splits[name].texts]
    assert len(keys) == len(set(keys)) == 300
    assert dataset.provenance["duplicates_removed"] == 40
    assert not any(text.isupper() for name in SPLITS for text in dataset.splits[name].texts)  # the first is kept


def test_contradictory_labels_drop_every_copy() -> None:
    texts, labels = sentences(200), alternating(200)
    dataset = made([*texts, texts[0], texts[0]], [*labels, "yes", "no"])
    assert dataset.provenance["contradictory_removed"] == 3
    assert dataset.provenance["duplicates_removed"] == 0
    assert sum(len(dataset.splits[name]) for name in SPLITS) == 199


def test_rows_add_up() -> None:
    texts = [*sentences(200), "", "  ", "sentence number 3 of the file", "unlabelled"]
    dataset = made(texts, [*alternating(200), "yes", "no", "yes", ""])
    about = dataset.provenance
    kept = sum(about["splits"].values())
    assert about["rows"] == 204
    assert about["dropped"]["empty"] == 3
    assert kept + about["duplicates_removed"] + about["contradictory_removed"] + 3 == 204


def test_a_pair_is_one_text() -> None:
    texts = ["the same premise"] * 200
    dataset = made(texts, alternating(200), sentences(200))
    assert dataset.is_pair
    assert dataset.provenance["duplicates_removed"] == 0
    assert all(len(split.pairs or []) == len(split) for split in dataset.splits.values())


def test_labels_are_sorted_and_numbers_numerically() -> None:
    assert made(sentences(300), ["10", "9", "-1"] * 100).labels == ("-1", "9", "10")
    dataset = made(sentences(300), ["pos", "neg", "mid"] * 100)
    assert dataset.labels == ("mid", "neg", "pos")
    assert dataset.provenance["label_mapping"] == {"mid": 0, "neg": 1, "pos": 2}
    position = dataset.splits["train"].texts.index("sentence number 1 of the file")
    assert dataset.splits["train"].labels[position] == 1


def test_a_label_never_seen_in_training_is_dropped_and_counted() -> None:
    strangers = texts_in("validation", 3) + texts_in("test", 2)
    dataset = made(sentences(300) + strangers, alternating(300) + ["strange"] * 5)
    assert dataset.labels == ("no", "yes")
    assert dataset.provenance["dropped"]["label_not_in_training"] == {"strange": 5}
    shown = {text for name in SPLITS for text in dataset.splits[name].texts}
    assert not shown & set(strangers)


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match=r"one class only.*'yes'"):
        made(sentences(100), ["yes"] * 100)
    with pytest.raises(DataError, match="one class only in its training split"):
        made(texts_in("train", 90) + texts_in("test", 10), ["yes"] * 90 + ["no"] * 10)


def test_too_few_rows_are_refused_with_the_number() -> None:
    with pytest.raises(DataError, match=f"{MIN_ROWS - 2} usable rows.*at least {MIN_ROWS}"):
        made(sentences(MIN_ROWS - 2), alternating(MIN_ROWS - 2))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="validation split came out empty"):
        made(texts_in("train", 60) + texts_in("test", 20), alternating(80))


def test_numbers_to_predict_are_refused() -> None:
    with pytest.raises(DataError, match=r"200 different labels.*at most 100 classes.*regression"):
        made(sentences(200), [f"{i / 7:.3f}" for i in range(200)])


def test_length_is_told_from_the_texts() -> None:
    short = made(sentences(200), alternating(200))
    long = made([text + " and on" * 30 for text in sentences(200)], alternating(200))
    assert (short.length, short.default_max_length) == ("sentence", 64)
    assert (long.length, long.default_max_length) == ("review", 256)


def test_majority_is_that_of_validation() -> None:
    dataset = made(sentences(900), ["a", "b", "b"] * 300)
    labels = dataset.splits["validation"].labels
    assert dataset.majority == pytest.approx(max(np.mean(labels == 0), np.mean(labels == 1)))


def test_fingerprint_follows_texts_and_labels_only() -> None:
    texts, labels = sentences(200), alternating(200)
    base = made(texts, labels)
    assert make_dataset("x", "Other name", Rows(texts, labels), {"a": 1}).sha256 == base.sha256
    assert made([*texts[:-1], "another last sentence"], labels).sha256 != base.sha256
    assert made(texts, [*labels[:-1], "no"]).sha256 != base.sha256
