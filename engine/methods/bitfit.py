"""BitFit: train the bias vectors and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

Bias = Literal[
    "all",
    "query",
    "key",
    "value",
    "attention_output",
    "attention_layernorm",
    "intermediate",
    "output",
    "output_layernorm",
    "embedding_layernorm",
    "pooler",
]
_ROLES: dict[str, tuple[str, ...]] = {
    "query": ("q", "qkv"),
    "key": ("k", "qkv"),
    "value": ("v", "qkv"),
    "attention_output": ("o",),
    "attention_layernorm": ("norm_1",),
    "intermediate": ("up",),
    "output": ("down",),
    "output_layernorm": ("norm_2",),
    "embedding_layernorm": ("norm_in",),
    "pooler": ("pooler",),
}
_BY_SUBSTRING = {"output": ("down", "o"), "output_layernorm": ("norm_2", "norm_1")}
"""What the authors' code matches besides, since it looks for parts of names."""


class BitFitConfig(MethodConfig):
    """Settings of BitFit."""

    biases: tuple[Bias, ...] = Field(
        ("all",),
        min_length=1,
        title="Biases",
        description="Which kinds of bias vectors are trained, in every layer.",
        json_schema_extra={"source": "authors' code; the paper's half-size variant is query and intermediate"},
    )
    strict: bool = Field(
        True,
        title="Only the named kinds",
        description=(
            "Off repeats the authors' code, which looks for parts of names: `output` and `output_layernorm` then "
            "train those of the attention block too, and the pooler's bias is always added."
        ),
        json_schema_extra={"source": "this lab", "level": "advanced"},
    )


@register
class BitFit(WholeTensors):
    r"""Trains only the bias vectors of the model: about one weight in a thousand.

    ### Why it exists

    It asks how little has to change before a pretrained model can do a new task. A bias shifts what
    a layer puts out, whatever comes in; it cannot teach the layer a new feature, only set how
    readily it uses those it has. That this is often enough says that fine-tuning mostly exposes
    what pretraining learned. Every task trains the same entries, so no positions have to be
    stored, and no gradient of a weight matrix is ever computed.

    ### What to watch

    The budget cannot be chosen: it is the number of biases, and that is a ceiling. The learning
    rate is far above that of full fine-tuning. Where positions are added to the input, as in BERT
    and GPT-2, the key biases are dead: they add the same amount to all attention scores of a query,
    and the softmax cancels it. They count, and never move. With rotary or relative positions they
    are alive.

    ### When it fails

    Where there are no biases there is nothing to train: Llama-like models have none at all, and
    only the task head would learn. With many training examples it falls behind full fine-tuning,
    since shifting features does not make new ones.
    """

    name = "bitfit"
    title = "BitFit"
    family = "selective"
    paper = Paper(
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        authors="Ben Zaken, Ravfogel, Goldberg",
        venue="ACL 2022",
        year=2022,
        url="https://arxiv.org/abs/2106.10199",
    )
    formula = r"h = W_0 x + (b_0 + \Delta b), \qquad W_0 \text{ frozen}"
    symbols: ClassVar[dict[str, str]] = {
        r"W_0": "pretrained weight of a layer",
        r"b_0": "pretrained bias",
        r"\Delta b": "what is learned",
        r"x, h": "input and output of the layer",
    }
    lr = LearningRate(
        4e-3,
        f"best of 1e-3, 2e-3, 4e-3 and 8e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(1e-2, f"{TUNED_ON_NANO}, budget 5,888")},
    )
    notes = (
        "Trains every bias of the backbone, those of the norms, of the embeddings' norm and of the pooler included, "
        "as the authors' `all`; gains of norms stay frozen (the ID3 authors' re-implementation trains them too). The "
        "task head is dense and counted apart, in the paper as here. The bias after the second matrix of the paper's "
        "equations, b_m2, is that of the feed-forward up-projection, here `intermediate`; the lecture's slide labels "
        "several biases alike. Clipping uses the norm of what is trained."
    )
    Config: ClassVar[type[MethodConfig]] = BitFitConfig
    views: ClassVar[tuple[str, ...]] = ("bias",)
    packs = "tensors"
    export_formats: ClassVar[tuple[str, ...]] = ("delta", "merged")

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        biases = [row for row in architecture.backbone if row.part == "bias"]
        if "all" in config.biases:
            return tuple(biases)
        roles = {role for kind in config.biases for role in cls._roles(kind, config.strict)}
        return tuple(row for row in biases if row.role in roles)

    @staticmethod
    def _roles(kind: str, strict: bool) -> tuple[str, ...]:
        return _ROLES[kind] if strict else (*_BY_SUBSTRING.get(kind, _ROLES[kind]), "pooler")

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The biases as they are: they cannot be divided.

        Raises:
            BudgetError: when they are more than the target.
        """
        size = cls.size(architecture, config)
        if size <= target:
            return config
        half = cls.size(architecture, BitFitConfig(biases=("query", "intermediate")))
        raise BudgetError(
            f"BitFit trains {size:,} biases here, more than the {target:,} asked for, and cannot take a part of them.",
            f"Ask for at least {size:,}, or name fewer `biases`: query and intermediate alone are {half:,}.",
        )

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        rows = cls.trainables(architecture, config)
        if not rows:
            return ["This model has no such biases: BitFit trains nothing here but the task head."]
        # GPT-2 keeps the biases of queries, keys and values in one vector, a third of which is the keys'.
        dead = sum(row.size if row.role == "k" else row.size // 3 for row in rows if row.role in ("k", "qkv"))
        if not dead or architecture.key_bias_alive:
            return []
        return [f"{dead:,} of these biases are key biases, which the softmax cancels: they count and never move."]
