"""DoRA: LoRA learns the direction of each weight vector, and its length is learned apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.methods._peft import ADAPTER, in_out
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO_CPU, LearningRate, Paper
from engine.methods.lora import LoRA
from engine.methods.registry import register
from engine.models.architecture import Parameter

if TYPE_CHECKING:
    import torch


@register
class DoRA(LoRA):
    r"""Splits each weight vector into a length and a direction, and learns both.

    ### Why it exists

    Its authors measured how fine-tuning changes weights and saw that LoRA tends to change the
    length and the direction of weight vectors together, while full fine-tuning can do one without
    the other. So DoRA gives every weight vector a length of its own to learn, and leaves only its
    direction to a LoRA. It costs one number per output more, starts exactly at the pretrained model,
    and merges into the weights like LoRA.

    ### What to watch

    The view of magnitude and direction is made for this method: each matrix is a point, direction
    across and magnitude up. Compare its cloud with LoRA's and full fine-tuning's at the same step.
    Points of different steps should not be pooled: time moves both figures, and makes any method
    look correlated.

    ### When it fails

    Each step rebuilds the norm of every adapted matrix, so a step takes a quarter to a third
    longer than LoRA's and needs memory for a dense matrix. At an equal budget the lengths cost it
    ranks, most of all where matrices are small; gains over LoRA are reported mainly for small
    ranks on large models, and on small models they often vanish between seeds.
    """

    name = "dora"
    title = "DoRA"
    paper = Paper(
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        authors="Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen",
        venue="ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2402.09353",
    )
    formula = r"W = m \odot \frac{W_0 + \frac{\alpha}{r} B A}{\left\lVert W_0 + \frac{\alpha}{r} B A \right\rVert}"
    symbols: ClassVar[dict[str, str]] = {
        r"m": "length of each weight vector, one per output, starting at those of the pretrained weight",
        r"W_0": "pretrained weight, frozen",
        r"A, B": "LoRA's two thin matrices; B starts at zero",
        r"r": "rank",
        r"\alpha": "scale of the update",
        r"\lVert \cdot \rVert": "length of each weight vector; no gradient flows through it",
    }
    lr = LearningRate(
        2e-3,
        f"best of 1e-3, 2e-3 and 4e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(1e-2, f"{TUNED_ON_NANO_CPU}, budget 5,888")},
    )
    packs = ""
    notes = (
        "The paper writes the lengths as a 1 by k row of column norms. It reads W as inputs by outputs; in PyTorch's "
        "layout, outputs by inputs, they are the norms of the rows, one per output, as in the authors' code and in "
        "peft. The norm is treated as a constant in the backward pass (paper, section 4.3). Ranks and alpha follow a "
        "budget as for LoRA; the lengths are counted with it."
    )

    @classmethod
    def _added(cls, row: Parameter, rank: int) -> list[Parameter]:
        length = (in_out(row)[1],)
        name = f"{row.module}.lora_magnitude_vector.{ADAPTER}.weight"
        return [*super()._added(row, rank), Parameter(name, length, row.layer, row.role, "magnitude")]

    def _peft_settings(self) -> dict[str, Any]:
        return super()._peft_settings() | {"use_dora": True}

    def _change(self, layer: Any, weight: Parameter, base: torch.Tensor) -> torch.Tensor:
        low_rank = layer.get_delta_weight(ADAPTER)
        magnitude = layer.lora_magnitude_vector[ADAPTER]
        # peft's own norm, so that at the start the factor is exactly 1 and the change exactly 0.
        norm = magnitude.get_weight_norm(base, low_rank.T if weight.transposed else low_rank, 1)
        grown = (magnitude.weight - norm) / norm
        grown = grown if weight.transposed else grown.unsqueeze(1)
        change: torch.Tensor = grown * base + (1 + grown) * low_rank
        return change
