"""Steps without work for padding, nor for what the head never reads.

At batch 16 to 32 nearly half of what a padded batch multiplies is padding. Here the tokens of a
batch stand end to end, (tokens, width), in every linear layer, norm and activation; keys and
values are spread to (examples, longest) for the two small products of attention alone. In the
last layer only the token that the head reads is a query. The batches are the same, and so are
the results but for rounding.

The modules are the library's, with whatever a method has put into their linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from engine.models.architecture import OFFSET_POSITIONS
from engine.models.families import Family
from engine.training.layout import Layout


class Places(Protocol):
    """Where the tokens of a ragged batch lie.

    Attributes:
        positions: int64 (tokens,), place of each token in its example.
        read: int64 (n,), the tokens that the head reads.
    """

    positions: torch.Tensor
    read: torch.Tensor

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Softmax attention within each example; see `engine.training.layout.Layout.attend`."""


Forward = Callable[[Any, torch.Tensor, torch.Tensor | None, Places], torch.Tensor]


class RaggedForward:
    """Logits of a classifier for ragged batches.

    Args:
        model: with the method attached.
        family: of the model, one whose head reads a single token.
    """

    def __init__(self, model: Any, family: Family) -> None:
        assert family.head_reads is not None, "the plan allows no other"
        self._model, self._reads_last = model, family.head_reads == "last"
        self._forward = FORWARDS[family.head_reads]

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (n, classes) of a padded batch, computed over its real tokens alone."""
        real, types = batch["attention_mask"].bool(), batch.get("token_type_ids")
        lengths: np.ndarray = batch["attention_mask"].sum(1).numpy()
        layout = Layout(lengths, self._read(batch), causal=self._reads_last)
        return self._forward(self._model, batch["input_ids"][real], None if types is None else types[real], layout)

    def _read(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Place of the token that the head reads: the first, or the last one that is not the padding token.

        Judged by its id, as the library does: where a decoder pads with its end token, that one is passed over.
        """
        if not self._reads_last:
            return np.zeros(len(batch["input_ids"]), dtype=np.int64)
        words = batch["input_ids"] != self._model.config.pad_token_id
        places: np.ndarray = (words * torch.arange(words.shape[1])).argmax(1).numpy()
        return places


def _encoder(model: Any, ids: torch.Tensor, types: torch.Tensor | None, layout: Places) -> torch.Tensor:
    """State of each example's first token after the last layer of a BERT-like encoder, (n, width)."""
    backbone, config = model.base_model, model.config
    offset = config.pad_token_id + 1 if config.model_type in OFFSET_POSITIONS else 0
    hidden = backbone.embeddings(
        input_ids=ids[None],
        position_ids=(layout.positions + offset)[None],
        token_type_ids=torch.zeros_like(ids[None]) if types is None else types[None],
    )[0]
    if hasattr(backbone, "embeddings_project"):
        hidden = backbone.embeddings_project(hidden)
    *early, last = backbone.encoder.layer
    for layer in early:
        hidden = _encoder_layer(layer, hidden, hidden, layout)
    return _encoder_layer(last, hidden, hidden.index_select(0, layout.read), layout)


def _encoder_layer(layer: Any, hidden: torch.Tensor, asking: torch.Tensor, layout: Places) -> torch.Tensor:
    """One layer: all tokens of `hidden` are keys and values, those of `asking` are queries and go on."""
    own = layer.attention.self
    q, k, v = (
        linear(states).unflatten(-1, (-1, own.attention_head_size))
        for linear, states in ((own.query, asking), (own.key, hidden), (own.value, hidden))
    )
    attended = layer.attention.output(layout.attend(q, k, v, own.scaling).flatten(1), asking)
    output: torch.Tensor = layer.output(layer.intermediate(attended), attended)
    return output


def _decoder(model: Any, ids: torch.Tensor, layout: Places) -> torch.Tensor:
    """State of the tokens that the head reads after the last layer and norm of a Llama, (n, width)."""
    backbone = model.base_model
    hidden = backbone.embed_tokens(ids)
    turns = tuple(part[0] for part in backbone.rotary_emb(hidden[None], position_ids=layout.positions[None]))
    *early, last = backbone.layers
    for layer in early:
        hidden = _decoder_layer(layer, hidden, None, turns, layout)
    state: torch.Tensor = backbone.norm(_decoder_layer(last, hidden, layout.read, turns, layout))
    return state


def _decoder_layer(
    layer: Any, hidden: torch.Tensor, chosen: torch.Tensor | None, turns: tuple[torch.Tensor, ...], layout: Places
) -> torch.Tensor:
    """One layer: all tokens are keys and values, the chosen ones (all by default) are queries and go on."""
    own, normed = layer.self_attn, layer.input_layernorm(hidden)
    pick = (lambda rows: rows) if chosen is None else (lambda rows: rows.index_select(0, chosen))
    q, k, v = (
        linear(states).unflatten(-1, (-1, own.head_dim))
        for linear, states in ((own.q_proj, pick(normed)), (own.k_proj, normed), (own.v_proj, normed))
    )
    cos, sin = turns
    if chosen is None:
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
    else:
        q, _ = apply_rotary_pos_emb(q, q, pick(cos), pick(sin))
        _, k = apply_rotary_pos_emb(k, k, cos, sin)
    hidden = pick(hidden) + own.o_proj(layout.attend(q, k, v, own.scaling).flatten(1))
    output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return output


def _by_pooler(model: Any, ids: torch.Tensor, types: torch.Tensor | None, layout: Places) -> torch.Tensor:
    logits: torch.Tensor = model.classifier(model.base_model.pooler(_encoder(model, ids, types, layout)[:, None]))
    return logits


def _by_first(model: Any, ids: torch.Tensor, types: torch.Tensor | None, layout: Places) -> torch.Tensor:
    logits: torch.Tensor = model.classifier(_encoder(model, ids, types, layout)[:, None])
    return logits


def _by_last(model: Any, ids: torch.Tensor, types: torch.Tensor | None, layout: Places) -> torch.Tensor:
    logits: torch.Tensor = model.score(_decoder(model, ids, layout))
    return logits


FORWARDS: dict[str, Forward] = {"pooler": _by_pooler, "first": _by_first, "last": _by_last}
"""By what the family's head reads."""
