"""Chosen components: train some kinds of tensors whole, such as attention only, and freeze the others."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

Component = Literal[
    "attention", "query_value", "feed_forward", "gate_up", "norms", "embeddings", "pooler", "last_layer"
]
_ROLES: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "qkv", "o"),
    "query_value": ("q", "v", "qkv"),
    "feed_forward": ("gate", "up", "down"),
    "gate_up": ("gate", "up"),
    "norms": ("norm_in", "norm_1", "norm_2", "norm_out"),
    "embeddings": ("token", "position", "type"),
    "pooler": ("pooler",),
}


class ComponentsConfig(MethodConfig):
    """Settings of component tuning."""

    train: tuple[Component, ...] = Field(
        ("attention",),
        min_length=1,
        title="Trained components",
        description=(
            "What trains, in every layer: attention, its queries and values, the feed-forward block, its gate and up "
            "projections, norms, embeddings, the pooler; or the last layer as a whole."
        ),
        json_schema_extra={"source": "attention: Touvron et al.; gate_up and last_layer: later studies"},
    )


@register
class Components(WholeTensors):
    r"""Trains one kind of tensor in every layer and leaves the rest of the model alone.

    ### Why it exists

    Before asking which single weights to train, ask which parts. Attention alone, a third of a layer,
    was found to be enough to adapt vision transformers; others train gate and up projections to
    forget less, or the embeddings for a new vocabulary, or the last layer because it is cheap. Such
    presets need no scores and no indices, and every other method can be measured against them.

    ### What to watch

    In the view of magnitude and direction the frozen kinds stand still. Compare attention with the
    feed-forward block at their own sizes, and either with full fine-tuning: the difference is what
    the other part would have added.

    ### When it fails

    The budget cannot be chosen, it is the size of what was named. Norms alone are very little,
    embeddings alone can change what words mean but not how they combine.
    """

    name = "components"
    title = "Chosen components"
    family = "selective"
    paper = Paper(
        title="Three things everyone should know about Vision Transformers",
        authors="Touvron, Cord, El-Nouby, Verbeek, Jégou",
        venue="ECCV 2022",
        year=2022,
        url="https://arxiv.org/abs/2203.09795",
    )
    formula = r"\theta = (\theta_C, \theta_{\bar C}), \qquad \theta_{\bar C} \text{ frozen}"
    symbols: ClassVar[dict[str, str]] = {
        r"\theta_C": "weights of the chosen components, biases included",
        r"\theta_{\bar C}": "all other weights",
    }
    lr = LearningRate(3e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "A component trains with its biases. The cited paper trains attention alone in vision transformers; the other "
        "presets are those of later studies on language and multimodal models."
    )
    Config: ClassVar[type[MethodConfig]] = ComponentsConfig

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        roles = {role for name in config.train for role in _ROLES.get(name, ())}
        last = architecture.layers - 1 if "last_layer" in config.train else None
        return tuple(row for row in architecture.backbone if row.role in roles or row.layer == last)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The components as they are: they cannot be divided.

        Raises:
            BudgetError: when they are more than the target.
        """
        size = cls.size(architecture, config)
        if size <= target:
            return config
        raise BudgetError(
            f"These components have {size:,} parameters here, more than the {target:,} asked for.",
            f"Ask for at least {size:,}, or name smaller ones in `train`.",
        )

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        roles = {row.role for row in architecture.backbone}
        found = [
            f"This model has no {name.replace('_', ' ')}: that part of `train` trains nothing."
            for name in config.train
            if name in _ROLES and not roles & set(_ROLES[name])
        ]
        if "gate_up" in config.train and "gate" not in roles:
            found.append("This model has no gates: of gate and up projections only the latter train.")
        if "query_value" in config.train and "qkv" in roles:
            found.append("This model keeps queries, keys and values in one matrix, so that keys train as well.")
        return found
