"""LISA: train a few layers drawn by lot, and draw others every few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from engine.methods._active import ActiveBlocks, BlockConfig, block, layers_field, outside, outside_field
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn


class LisaConfig(BlockConfig):
    """Settings of LISA."""

    layers: int = layers_field(2, "How many layers train between two draws.", "authors' code")
    interval: int = Field(
        20,
        ge=1,
        le=100_000,
        title="Steps between draws",
        description="After so many steps other layers are drawn.",
        json_schema_extra={"source": "authors' code"},
    )
    outside: bool = outside_field(True, "authors' code")
    drop_state: bool = Field(
        True,
        title="Forget frozen layers' moments",
        description=(
            "On, a layer that is frozen again loses its optimizer state, and memory stays low. Off, as in the authors' "
            "code, it keeps it, and memory grows towards that of full fine-tuning."
        ),
        json_schema_extra={"source": "this lab; the paper's runs dropped it too", "level": "advanced"},
    )


@register
class LISA(ActiveBlocks):
    r"""Trains two layers at a time, drawn by lot again and again, beside embeddings and head.

    ### Why it exists

    Full fine-tuning needs two moments for every weight, which is most of its memory. LISA lets every
    layer train, but never many at once: for some steps two of them, then two others. Its authors saw
    that LoRA moves the bottom and top of a model most and little in between, so that embeddings and
    head train all the time and the layers in the middle take turns.

    ### What to watch

    Within an interval all but a few rows of the picture stand still; over the run every layer gets
    its turns. Optimizer state is that of what trains now, unless frozen layers keep theirs. In a
    small model the embeddings are half of all weights, so the saving is far from what it is in a
    large one.

    ### When it fails

    A layer that is drawn again starts with empty moments, so its first steps are as rough as those of
    a fresh optimizer. In a short run some layers are never drawn. And what is stored in the end is a
    whole model: LISA saves memory while training, not on disk.
    """

    name = "lisa"
    title = "LISA"
    paper = Paper(
        title="LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
        authors="Pan et al.",
        venue="NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2403.17919",
    )
    formula = r"A_t \sim \mathrm{Uniform}\{A \subset \{1, \dots, L\} : |A| = \gamma\} \text{ every } K \text{ steps}"
    symbols: ClassVar[dict[str, str]] = {
        r"A_t": "layers that train at step t",
        r"L": "number of layers",
        r"\gamma": "layers at a time",
        r"K": "steps between draws",
    }
    lr = LearningRate(3e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "Layers are drawn uniformly without replacement, as in the authors' code, the first time before the first "
        "step. There the optimizer keeps the moments of frozen layers; the paper's runs reloaded the model at every "
        "draw and so lost them. Here they are dropped by default. The budget counts what trains at a time."
    )
    Config: ClassVar[type[MethodConfig]] = LisaConfig
    captured = ""
    not_capturable = "Which layers have gradients changes from draw to draw."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._done = 0

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        draws = -(-steps // config.interval)
        if draws * config.layers >= architecture.layers:
            return found
        return [
            *found,
            f"{draws} draws of {config.layers} cannot reach all {architecture.layers} layers; some never train.",
        ]

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        rows = cls.trainables(architecture, config)
        return cls.size(architecture, config) if config.drop_state else sum(row.size for row in rows)

    def drawn(self, step: int) -> list[int]:
        """Layers that train at a step, from 0."""
        config: Any = self.config
        rng = np.random.Generator(np.random.PCG64([self.context.method_seed, step // config.interval]))
        layers = self.context.architecture.layers
        return sorted(rng.choice(layers, min(config.layers, layers), replace=False).tolist())

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze everything but the layers of the first draw and what always trains."""
        model = super().attach(model)
        self._draw(0)
        return model

    def _draw(self, step: int) -> None:
        config: Any = self.config
        architecture = self.context.architecture
        rows = [row for layer in self.drawn(step) for row in block(architecture, layer)]
        names = {row.name for row in (*rows, *(outside(architecture) if config.outside else ()))}
        self.activate(names, keep_state=not config.drop_state)

    def after_step(self, step: int) -> None:
        """Draw again when the next step begins an interval."""
        config: Any = self.config
        self._done = step + 1
        if self._done % config.interval == 0 and self._done < self.context.steps:
            self._draw(self._done)
