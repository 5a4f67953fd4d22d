"""Tokenisation by the tokenizers library equals transformers' own, for texts and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.models.catalogue import resolve_model
from engine.models.tokenizer import has_token_types, tokenizer_of
from engine.tasks.dataset import Split
from engine.tasks.encoding import encode
from tests.models.saved import SENTENCES, save_tiny, save_tokenizer

FIRST = (
    *SENTENCES,
    'Unaffordable naïve cafés -- 50% off!!! (really?)  <b>bold</b> & "quoted" 日本語 🎬',
    "x",
    "a very long sentence that has to be cut because it goes on and on and on and on and never stops at all",
)
SECOND = tuple(reversed(FIRST))


@pytest.mark.parametrize("max_length", [8, 16, 64])
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pair"])
def test_minilm_as_transformers_does(home: Path, max_length: int, pairs: bool) -> None:
    source = resolve_model("minilm-l6")
    reference = AutoTokenizer.from_pretrained(source.folder)
    split = Split(list(FIRST), list(SECOND) if pairs else None, np.zeros(len(FIRST), dtype=np.int64))
    batch = encode(split, tokenizer_of(source), max_length).batch(np.arange(len(FIRST)))
    expected = reference(
        list(FIRST),
        list(SECOND) if pairs else None,
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="np",
    )
    assert np.array_equal(batch["input_ids"], expected["input_ids"])
    assert np.array_equal(batch["attention_mask"], expected["attention_mask"])
    if pairs:
        assert np.array_equal(batch["token_type_ids"], expected["token_type_ids"])
    else:
        assert "token_type_ids" not in batch
        assert not expected["token_type_ids"].any()


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "bert"), ("distilbert", "distilbert"), ("roberta", "roberta"), ("gpt2", "gpt2"), ("llama", "llama")],
)
def test_pairs_of_other_families_as_transformers_does(home: Path, tmp_path: Path, family: str, kind: str) -> None:
    source = resolve_model(str(save_tokenizer(save_tiny(family, tmp_path / "model"), kind)))
    reference = PreTrainedTokenizerFast(tokenizer_file=str(source.folder / "tokenizer.json"))
    split = Split(list(SENTENCES), list(SECOND[:4]), np.zeros(4, dtype=np.int64))
    encoded = encode(split, tokenizer_of(source), 24)
    for i, pair in enumerate(zip(SENTENCES, SECOND[:4], strict=True)):
        expected = reference(*pair, truncation=True, max_length=24)
        assert encoded.batch([i])["input_ids"][0].tolist() == expected["input_ids"]
    # Only a model that has segments may see a second one.
    assert (encoded.type_ids is not None) == has_token_types(source) == (family == "bert")


def test_padding_is_the_models_own_token(home: Path, tmp_path: Path) -> None:
    source = resolve_model(str(save_tokenizer(save_tiny("gpt2", tmp_path / "model"), "gpt2")))
    tokenizer = tokenizer_of(source)
    assert source.config["pad_token_id"] == 2  # a decoder without padding token pads with its end token
    batch = encode(Split(["a film", "a quiet film about two"], None, np.zeros(2, dtype=np.int64)), tokenizer, 32).batch(
        [0, 1]
    )
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {2}


def test_encoding_puts_the_tokenizers_settings_back(home: Path) -> None:
    tokenizer = tokenizer_of(resolve_model("minilm-l6"))
    padding = tokenizer.padding
    encode(Split(["a", "b c"], None, np.zeros(2, dtype=np.int64)), tokenizer, 8)
    assert tokenizer.padding == padding
    assert tokenizer.truncation is None


def test_missing_damaged_and_foreign_tokenizers_are_refused(home: Path, tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    source = resolve_model(str(folder))
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        tokenizer_of(source)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match="cannot be read"):
        tokenizer_of(source)
    minilm = resolve_model("minilm-l6").folder / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(minilm.read_bytes())
    with pytest.raises(ModelError, match="only 120 embeddings"):
        tokenizer_of(source)
