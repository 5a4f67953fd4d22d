"""The supported model families: which modules their classifiers are made of, in order.

One table per family serves both readings of a model: the names of a loaded classifier
(`mapping`) and the names in a checkpoint's header (`catalogue`), so that the two cannot differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import ModelError
from engine.models.architecture import Role

Modules = tuple[tuple[str, Role], ...]


@dataclass(frozen=True)
class Family:
    """How the classifiers of a family are laid out.

    Attributes:
        kind: encoder or decoder.
        prefix: attribute of the classifier that holds the backbone.
        blocks: path of the list of blocks below the prefix.
        before, block, after: modules of the backbone with their roles, in `named_parameters()`
            order; those of `block` are relative to one block.
        head: modules outside the backbone, with full names, the last being the output layer. No
            pretrained backbone has them, so all are the task head: left frozen, they would stay random.
        head_first: whether the classifier lists its head before its backbone.
        rotary: whether positions are rotary.
        transposed: whether the blocks' linear weights are stored as (in, out).
        pad_token: row of the padding token where a configuration does not say; None for decoders,
            which have none of their own.
        head_reads: what the head reads of the last hidden states: the pooler's view of the first token, the
            first token itself, or the last one. None where tokens of several examples cannot stand end to end
            (relative positions, sliding windows), or nothing computes the family so.
        captured: whether its passes can be a CUDA graph: they ask nothing of the processor.
    """

    kind: Literal["encoder", "decoder"]
    prefix: str
    blocks: str
    before: Modules
    block: Modules
    after: Modules
    head: Modules
    head_first: bool = False
    rotary: bool = False
    transposed: bool = False
    pad_token: int | None = None
    head_reads: Literal["pooler", "first", "last"] | None = None
    captured: bool = True

    @property
    def output(self) -> str:
        """Full name of the module that turns features into one number per class."""
        return self.head[-1][0]

    def split(self, name: str) -> tuple[int | None, str]:
        """A full parameter name as (block number, or None outside the blocks; module name).

        The module name is relative to the block or to the backbone, and full outside both.
        """
        module = name.rpartition(".")[0]
        inside = module.removeprefix(self.prefix + ".")
        match = re.match(re.escape(self.blocks) + r"\.(\d+)\.(.+)$", inside)
        return (int(match[1]), match[2]) if match else (None, inside)

    def role(self, name: str) -> Role:
        """The role of a parameter of the loaded classifier; ``other`` for modules not in the table."""
        layer, module = self.split(name)
        table = self.block if layer is not None else (*self.before, *self.after, *self.head)
        return dict(table).get(module, "other")

    def modules(self, layers: int) -> list[str]:
        """Full names of all modules of a classifier with so many blocks, in `named_parameters()` order."""
        before = [f"{self.prefix}.{module}" for module, _ in self.before]
        blocks = [f"{self.prefix}.{self.blocks}.{i}.{module}" for i in range(layers) for module, _ in self.block]
        after = [f"{self.prefix}.{module}" for module, _ in self.after]
        head = [module for module, _ in self.head]
        backbone = [*before, *blocks, *after]
        return [*head, *backbone] if self.head_first else [*backbone, *head]


_DENSE_HEAD: Modules = (("classifier.dense", "head"), ("classifier.out_proj", "head"))
_SCORE: Modules = (("score", "head"),)
_FFN: Modules = (("intermediate.dense", "up"), ("output.dense", "down"), ("output.LayerNorm", "norm_2"))
_SELF: Modules = (
    ("attention.self.query", "q"),
    ("attention.self.key", "k"),
    ("attention.self.value", "v"),
    ("attention.output.dense", "o"),
    ("attention.output.LayerNorm", "norm_1"),
)

_BERT = Family(
    kind="encoder",
    prefix="bert",
    blocks="encoder.layer",
    before=(
        ("embeddings.word_embeddings", "token"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.token_type_embeddings", "type"),
        ("embeddings.LayerNorm", "norm_in"),
    ),
    block=_SELF + _FFN,
    after=(("pooler.dense", "pooler"),),
    head=(("classifier", "head"),),
    pad_token=0,
    head_reads="pooler",
)
_ROBERTA = replace(
    _BERT,
    prefix="roberta",
    before=(
        ("embeddings.word_embeddings", "token"),
        ("embeddings.token_type_embeddings", "type"),
        ("embeddings.LayerNorm", "norm_in"),
        ("embeddings.position_embeddings", "position"),
    ),
    after=(),
    head=_DENSE_HEAD,
    pad_token=1,
    head_reads="first",
)
_ELECTRA = replace(
    _BERT,
    prefix="electra",
    before=(*_BERT.before, ("embeddings_project", "other")),
    after=(),
    head=_DENSE_HEAD,
    head_reads="first",
)
_MPNET = replace(
    _BERT,
    prefix="mpnet",
    before=(
        ("embeddings.word_embeddings", "token"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.LayerNorm", "norm_in"),
    ),
    block=(
        ("attention.attn.q", "q"),
        ("attention.attn.k", "k"),
        ("attention.attn.v", "v"),
        ("attention.attn.o", "o"),
        ("attention.LayerNorm", "norm_1"),
        *_FFN,
    ),
    after=(("encoder.relative_attention_bias", "distance"),),
    head=_DENSE_HEAD,
    pad_token=1,
    head_reads=None,
    captured=False,
)
_DISTILBERT = replace(
    _BERT,
    prefix="distilbert",
    blocks="transformer.layer",
    before=_MPNET.before,
    block=(
        ("attention.q_lin", "q"),
        ("attention.k_lin", "k"),
        ("attention.v_lin", "v"),
        ("attention.out_lin", "o"),
        ("sa_layer_norm", "norm_1"),
        ("ffn.lin1", "up"),
        ("ffn.lin2", "down"),
        ("output_layer_norm", "norm_2"),
    ),
    after=(),
    head=(("pre_classifier", "head"), ("classifier", "head")),
    head_reads=None,
)
_DEBERTA_V2 = replace(
    _BERT,
    prefix="deberta",
    before=(*_BERT.before, ("embeddings.embed_proj", "other")),
    block=(
        ("attention.self.query_proj", "q"),
        ("attention.self.key_proj", "k"),
        ("attention.self.value_proj", "v"),
        ("attention.self.pos_key_proj", "other"),
        ("attention.self.pos_query_proj", "other"),
        ("attention.output.dense", "o"),
        ("attention.output.LayerNorm", "norm_1"),
        *_FFN,
    ),
    after=(
        ("encoder.rel_embeddings", "distance"),
        ("encoder.LayerNorm", "norm_out"),
        ("encoder.conv.conv", "other"),
        ("encoder.conv.LayerNorm", "norm_out"),
    ),
    head=(("pooler.dense", "head"), ("classifier", "head")),
    head_reads=None,
    captured=False,
)
_GPT2 = Family(
    kind="decoder",
    prefix="transformer",
    blocks="h",
    before=(("wte", "token"), ("wpe", "position")),
    block=(
        ("ln_1", "norm_1"),
        ("attn.c_attn", "qkv"),
        ("attn.c_proj", "o"),
        ("ln_2", "norm_2"),
        ("mlp.c_fc", "up"),
        ("mlp.c_proj", "down"),
    ),
    after=(("ln_f", "norm_out"),),
    head=_SCORE,
    transposed=True,
)
_LLAMA = Family(
    kind="decoder",
    prefix="model",
    blocks="layers",
    before=(("embed_tokens", "token"),),
    block=(
        ("self_attn.q_proj", "q"),
        ("self_attn.k_proj", "k"),
        ("self_attn.v_proj", "v"),
        ("self_attn.o_proj", "o"),
        ("mlp.gate_proj", "gate"),
        ("mlp.up_proj", "up"),
        ("mlp.down_proj", "down"),
        ("input_layernorm", "norm_1"),
        ("post_attention_layernorm", "norm_2"),
    ),
    after=(("norm", "norm_out"),),
    head=_SCORE,
    rotary=True,
    head_reads="last",
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, head_first=True),
    "camembert": replace(_ROBERTA, head_first=True),
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "deberta-v2": _DEBERTA_V2,
    "mpnet": _MPNET,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, head_reads=None),
    "qwen2": replace(_LLAMA, head_reads=None),
}
"""Families by the ``model_type`` of a configuration."""


def family_of(model_type: object) -> Family:
    """The family of a configuration's ``model_type``.

    Raises:
        ModelError: for an unsupported one, naming those that are supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"Models of type {model_type!r} are not supported.",
            f"Choose a model of one of these types: {', '.join(sorted(FAMILIES))}.",
        )
    return FAMILIES[model_type]
