"""SPAFIT: freeze the lowest layers, train biases in the middle, and biases and adapters at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.lora import LoRA, LowRankConfig
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class SpafitConfig(LowRankConfig):
    """Settings of SPAFIT."""

    biases_from: float = Field(
        0.17,
        ge=0,
        le=1,
        title="Biases from",
        description="Share of the layers, from the input, that stay frozen; above them biases train.",
        json_schema_extra={"source": "this lab: about a sixth"},
    )
    adapters_from: float = Field(
        0.375,
        ge=0,
        le=1,
        title="Adapters from",
        description="Share of the layers, from the input, without adapters; above them the chosen matrices get some.",
        json_schema_extra={"source": "this lab: three eighths"},
    )

    @model_validator(mode="after")
    def _ordered(self) -> SpafitConfig:
        if self.biases_from > self.adapters_from:
            raise ValueError("`biases_from` must not be above `adapters_from`: the groups follow each other")
        return self


@register
class SPAFIT(LoRA):
    r"""Cuts the model into three groups of layers and gives each a stronger means than the one below.

    ### Why it exists

    Studies of BERT found general knowledge of language in its lower layers and what a task needs
    further up. So the lower layers had better stay as they are, those in the middle need a nudge, and
    only the upper ones need new directions. SPAFIT freezes the first group, trains the biases of the
    second, and puts LoRA beside the attention matrices of the third, whose other biases train too.

    ### What to watch

    The view of magnitude and direction is a staircase: nothing, biases only, whole matrices. Compare
    it with LoRA in every layer at the same budget: here each adapter has more ranks, and there are
    fewer of them.

    ### When it fails

    The borders are set by hand, and a task that needs its lowest layers changed, such as another
    kind of text, cannot have it. In a model with few layers a group is one or two of them. Without
    biases, as in Llama, the second group is frozen like the first.
    """

    name = "spafit"
    title = "SPAFIT"
    paper = Paper(
        title="SPAFIT: Stratified Progressive Adaptation Fine-tuning for Pre-trained Large Language Models",
        authors="Arora, Wang",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2405.00201",
    )
    formula = r"l < a: \text{frozen}; \quad a \le l: \Delta b_l; \quad b \le l: \tfrac{\alpha}{r} B_l A_l"
    symbols: ClassVar[dict[str, str]] = {
        r"l": "layer, from the input",
        r"a, b": "borders of the three groups",
        r"\Delta b_l": "change of the biases of a layer, in the third group of matrices without an adapter",
        r"A_l, B_l": "LoRA's two thin matrices in a layer of the third group",
        r"r, \alpha": "rank and scale",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    packs = ""
    notes = (
        "A reconstruction from the paper's description: group one is frozen, group two trains biases only, group three "
        "has LoRA at chosen attention matrices and trains biases elsewhere. The paper tries several borders on "
        "24 layers; the defaults here are this lab's. Biases of norms count as biases. One learning rate serves both "
        "biases and adapters. Embeddings and pooler stay frozen. A budget sets the ranks; the biases are part of it."
    )
    Config: ClassVar[type[MethodConfig]] = SpafitConfig
    views: ClassVar[tuple[str, ...]] = ("change", "bias")
    export_formats: ClassVar[tuple[str, ...]] = ("merged",)

    @staticmethod
    def borders(architecture: Architecture, config: Any) -> tuple[int, int]:
        """First layer of the second and of the third group; at least the last layer has adapters."""
        last = architecture.layers - 1
        first, second = (round(share * architecture.layers) for share in (config.biases_from, config.adapters_from))
        return min(first, last), min(second, last)

    @classmethod
    def targets_of(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        _, adapters = cls.borders(architecture, config)
        return tuple(row for row in super().targets_of(architecture, config) if row.layer >= adapters)

    @classmethod
    def biases_of(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The biases that train: those of the two upper groups, of matrices without an adapter."""
        first, _ = cls.borders(architecture, config)
        adapted = {row.module for row in cls.targets_of(architecture, config)}
        return tuple(
            row
            for row in architecture.backbone
            if row.part == "bias" and first <= row.layer < architecture.layers and row.module not in adapted
        )

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return (*super().trainables(architecture, config), *cls.biases_of(architecture, config))

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in cls.biases_of(architecture, config))

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if not cls.biases_of(architecture, config):
            found.append("This model has no biases to train there: only the layers with adapters change.")
        return found

    def attach(self, model: nn.Module) -> nn.Module:
        """Adapters in the third group; biases of the second and third train."""
        model = super().attach(model)
        parameters = dict(self.parameters())
        rows = self.biases_of(self.context.architecture, self.config)
        self._biases = {row.name: parameters[row.name].requires_grad_(True) for row in rows}
        return model

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        bias = self._biases.get(weight.name)
        return super().delta(weight, base) if bias is None else bias.detach() - base
