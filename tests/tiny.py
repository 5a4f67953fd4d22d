"""Tiny models with random weights and tiny batches, for oracles that need no trained model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from engine.methods.contract import Context
from engine.models.architecture import Architecture
from engine.models.mapping import architecture_from_names


def tiny_bert(layers: int = 2, hidden: int = 32, labels: int = 2, seed: int = 0) -> nn.Module:
    """A BERT classifier with 2 heads, vocabulary 100 and 32 positions, dropout off, in eval mode."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=labels,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_llama(layers: int = 2, hidden: int = 32, labels: int = 2, seed: int = 0) -> nn.Module:
    """A Llama classifier with 4 query and 2 key-value heads and vocabulary 100, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        num_labels=labels,
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_batch(size: int = 4, length: int = 8, labels: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random token ids (no padding id among them) with labels."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, 100, (size, length), generator=generator),
        "attention_mask": torch.ones(size, length, dtype=torch.long),
        "labels": torch.randint(0, labels, (size,), generator=generator),
    }


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture map of a loaded model."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return architecture_from_names(model.config.to_dict(), shapes)


def context_for(model: nn.Module, steps: int = 10, seed: int = 0, weight_decay: float = 0.0) -> Context:
    """A method's context for a tiny model on the CPU."""
    return Context(
        architecture=architecture_of(model),
        steps=steps,
        init_seed=seed,
        method_seed=seed,
        device="cpu",
        weight_decay=weight_decay,
        clip=1.0,
    )
