"""Half fine-tuning: train half of the matrices of every layer, drawn by lot, and freeze the other half."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

_BLOCKS = (("q", "k", "v", "qkv", "o"), ("gate", "up", "down"), ("norm_1", "norm_2"))


class HftConfig(MethodConfig):
    """Settings of half fine-tuning."""

    draw: int = Field(
        0,
        ge=0,
        le=1_000_000,
        title="Which half",
        description="Number of the draw; another number trains other matrices.",
        json_schema_extra={"source": "this lab"},
    )
    outside: bool = Field(
        True,
        title="Train what is outside the layers",
        description="Whether embeddings, final norm and pooler train as well.",
        json_schema_extra={"source": "this lab"},
    )


@register
class HalfFineTuning(WholeTensors):
    r"""Freezes half of every layer, so that half of what pretraining taught stays untouched.

    ### Why it exists

    Full fine-tuning forgets: what a model could do before, it does worse afterwards. Freezing a random
    half of each layer's matrices keeps an anchor to the pretrained model, at no cost and without
    any new parameter, and the authors find the new task learned as well as before. It is a control
    too: a method that chooses its half with care should beat the lottery.

    Half is meant of every layer. Embeddings, final norm and pooler belong to none: they all train, unless
    the setting for what is outside the layers is switched off. In a small model that is most of the
    weights: on MiniLM 77 per cent train in all, on nano-bert 92, and 23 and 8 when it is off.

    ### What to watch

    In every layer some matrices stand still, and which they are differs from layer to layer. Run a
    few draws: the spread between them says how little it matters which half it is.

    ### When it fails

    Half of a model is still a lot: it saves some memory, not much, and the stored model is a whole
    one. Where nothing of the pretrained model has to be kept, it can only lose.
    """

    name = "hft"
    title = "Half fine-tuning"
    family = "selective"
    paper = Paper(
        title="HFT: Half Fine-Tuning for Large Language Models",
        authors="Hui et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2404.18466",
    )
    formula = (
        r"\theta_{t+1} = \theta_t - \eta_t\, M \odot \mathrm{AdamW}(\nabla L), \qquad |M| \approx \tfrac12 |\theta|"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"M": "1 for the matrices of the drawn half, 0 for the others; fixed for the run",
        r"\theta": "the weights of the layers",
        r"\eta_t": "learning rate",
    }
    lr = LearningRate(1e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "A reconstruction from the method's description: in every layer half of the attention matrices, half of the "
        "feed-forward matrices and half of the norms, drawn by lot; where a kind has an odd number, layers take the "
        "larger and the smaller part in turn. Biases go with their matrix. The paper draws anew for each stage of a "
        "training in several stages; here there is one."
    )
    Config: ClassVar[type[MethodConfig]] = HftConfig

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        rng = np.random.Generator(np.random.PCG64(config.draw))
        chosen: set[str] = set()
        for layer in range(architecture.layers):
            for kinds in _BLOCKS:
                modules = [
                    row.module
                    for row in architecture.backbone
                    if row.layer == layer and row.role in kinds and row.part == "weight"
                ]
                half = (len(modules) + layer % 2) // 2
                chosen.update(modules[place] for place in rng.permutation(len(modules))[:half])
        return tuple(
            row for row in architecture.backbone if row.module in chosen or cls._beside(row, architecture, config)
        )

    @staticmethod
    def _beside(row: Parameter, architecture: Architecture, config: Any) -> bool:
        return bool(config.outside) and not 0 <= row.layer < architecture.layers
