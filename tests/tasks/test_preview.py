"""The preview shows exactly the batch that training begins with; encoding is ragged and padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.models.catalogue import resolve_model
from engine.models.tokenizer import tokenizer_of
from engine.spec import parse_spec
from engine.tasks.dataset import Split
from engine.tasks.encoding import encode
from engine.tasks.order import batch_order
from engine.tasks.preview import preview
from engine.tasks.splitting import Rows, make_dataset
from tests.tasks.test_splitting import alternating, sentences


@pytest.mark.parametrize("paired", [False, True], ids=["single", "pair"])
def test_preview_is_the_first_training_batch(home: Path, paired: bool) -> None:
    texts = [text + " again" * (i % 9) for i, text in enumerate(sentences(300))]
    pairs = [text.upper() for text in texts] if paired else None
    dataset = make_dataset("id", "File", Rows(texts, alternating(300), pairs), {})
    tokenizer = tokenizer_of(resolve_model("minilm-l6"))
    spec = parse_spec({"method": "full", "train": {"batch_size": 6, "seed": 5, "seeds": {"data": 8}}})
    shown = preview(dataset, tokenizer, spec)
    train = dataset.splits["train"]
    first = batch_order(len(train), 6, 100, seed=8)[0]
    expected = encode(train, tokenizer, 64).batch(first)
    assert shown.batch.keys() == expected.keys()
    assert all(np.array_equal(shown.batch[key], expected[key]) for key in expected)
    assert ("token_type_ids" in expected) == paired
    assert [row.text for row in shown.rows] == [train.texts[i] for i in first]
    assert {len(row) for row in shown.tokens} == {expected["input_ids"].shape[1]}
    assert all(row[0] == "[CLS]" for row in shown.tokens)
    assert any("[PAD]" in row for row in shown.tokens)
    assert shown.counts["train"] == dict(zip(dataset.labels, np.bincount(train.labels).tolist(), strict=True))


def test_preview_counts_truncated_rows_and_keeps_html_as_text(home: Path) -> None:
    texts = [f"<b>row</b> {i} " + "word " * 20 for i in range(200)]
    dataset = make_dataset("id", "File", Rows(texts, alternating(200)), {})
    spec = parse_spec({"method": "full", "train": {"batch_size": 4, "max_length": 12}})
    shown = preview(dataset, tokenizer_of(resolve_model("minilm-l6")), spec)
    assert shown.truncated == 4
    assert shown.rows[0].text.startswith("<b>row</b>")
    assert shown.tokens[0][:5] == ["[CLS]", "<", "b", ">", "row"]
    assert len(shown.tokens[0]) == 12


def test_batches_are_padded_to_their_own_longest(home: Path) -> None:
    split = Split(["one", "one two three four", "one two"], None, np.array([2, 0, 1]))
    encoded = encode(split, tokenizer_of(resolve_model("minilm-l6")), 64)
    assert len(encoded) == 3
    assert encoded.lengths.tolist() == [3, 6, 4]
    batch = encoded.batch([2, 0])
    assert batch["input_ids"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["input_ids"][1, 3] == 0
    assert batch["labels"].tolist() == [1, 2]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
