"""Tiny models of every family saved as real checkpoints, and tiny real tokenizers trained on a few sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

_WIDE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_DECODER = {**_WIDE, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _WIDE),
    "roberta": ("roberta", {**_WIDE, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {**_WIDE, "type_vocab_size": 1}),
    "camembert": ("camembert", {**_WIDE, "type_vocab_size": 1}),
    "distilbert": (
        "distilbert",
        {"vocab_size": 120, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
    ),
    "electra": ("electra", {**_WIDE, "embedding_size": 8}),
    "deberta-v3": (
        "deberta-v2",
        {
            **_WIDE,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_buckets": 8,
            "type_vocab_size": 0,
        },
    ),
    "deberta-v2": (
        "deberta-v2",
        {**_WIDE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    ),
    "mpnet": ("mpnet", _WIDE),
    "gpt2": (
        "gpt2",
        {"vocab_size": 120, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "eos_token_id": 2},
    ),
    "llama": ("llama", _DECODER),
    "mistral": ("mistral", {**_DECODER, "head_dim": 8}),
    "qwen2": ("qwen2", _DECODER),
}
SENTENCES = (
    "a quiet film about two brothers who never speak .",
    "the jokes are old , and the ending is older !",
    "it doesn't try to please anyone -- and that's its charm",
    "Él vio la película ; 10/10 , would watch again ?",
)


def save_tiny(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, head: bool = False, **options: Any
) -> Path:
    """Save a tiny random model of one of `CONFIGS`, as a bare backbone unless `head`; returns the folder."""
    model_type, settings = CONFIGS[name]
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **settings)
    model = (AutoModelForSequenceClassification if head else AutoModel).from_config(config)
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def save_tokenizer(folder: Path, kind: str) -> Path:
    """Train a tokenizer on `SENTENCES` and save tokenizer.json as one of the families has it."""
    words = kind in ("bert", "distilbert")
    tokenizer = _wordpiece(template=kind == "bert") if words else _byte_level(kind)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _wordpiece(template: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=110, special_tokens=special))
    tokenizer.post_processor = (
        processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        if template
        else processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    )
    return tokenizer


def _byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=110, special_tokens=special))
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    elif kind == "llama":
        start = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
