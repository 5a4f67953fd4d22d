"""A small model folder and a small data file on disk: the whole path of a run in a second or two."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.tiny import tiny_bert

GOOD = ("bright", "warm", "clever", "moving", "fresh")
BAD = ("dull", "cold", "clumsy", "tired", "flat")
OTHER = ("the", "film", "plot", "scene", "actor", "was", "and", "quite", "a", "very", "story", "music", "end", "it")


def write_model(folder: Path) -> Path:
    """A BERT with 2 layers of 32 and a word-level tokenizer of 100 words, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_bert()
    model.config.pad_token_id = 0
    model.bert.save_pretrained(folder, safe_serialization=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER]
    words += [f"word{number}" for number in range(100 - len(words))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different sentences with their labels; a sentence's one telling word decides its label."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        good = draw.random() < 0.5
        words = draw.choices(OTHER, k=draw.randint(3, 7))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if good else BAD))
        rows[" ".join(words)] = "good" if good else "bad"
    return list(rows.items())


def write_data(path: Path, count: int = 400, seed: int = 0) -> Path:
    """A TSV file with columns ``sentence`` and ``label``."""
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in sentences(count, seed))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def spec_data(folder: Path, method: Any = "full", **train: Any) -> dict[str, Any]:
    """A spec on the small model and data in `folder`, which are written when missing."""
    model, data = folder / "model", folder / "data.tsv"
    if not model.exists():
        write_model(model)
    if not data.exists():
        write_data(data)
    return {
        "model": str(model),
        "dataset": {"source": str(data), "text": "sentence", "label": "label"},
        "method": method,
        "train": {"steps": 12, "batch_size": 8, "max_length": 16, "device": "cpu", "threads": 1, **train},
    }
