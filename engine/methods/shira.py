"""SHiRA: sparse high-rank adapters, as many weights per matrix as LoRA of a given rank would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.methods._matched import MatchesLora, rank_field
from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods.contract import TUNED_BY, Batches, LearningRate, MethodConfig, Paper
from engine.methods.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn


class ShiraConfig(ScoringConfig):
    """Settings of SHiRA."""

    rank: int = rank_field("this lab; peft's default is 32")
    mask: Literal["random", "magnitude", "gradient", "saliency"] = Field(
        "saliency",
        title="Which weights",
        description=(
            "random: by lot. magnitude: the largest. gradient: those with the largest mean gradient. saliency: the "
            "largest product of weight and gradient (SNIP)."
        ),
        json_schema_extra={"source": "paper"},
    )


@register
class SHiRA(MatchesLora, GradientScored):
    r"""Trains a fixed small number of weights in every matrix: LoRA's budget without LoRA's low rank.

    ### Why it exists

    LoRA's change has low rank by construction. If the same number of weights is trained inside the
    matrix instead, the change is sparse and its rank as high as can be. Sparse changes have a second
    charm: an adapter is a list of positions and values, which can be written into the weights and
    taken out again in no time, and two of them hardly touch each other.

    ### What to watch

    Every matrix of a shape has the same number of selected entries, r(m + n) as in LoRA of rank r.
    Compare it with LoRA at the same rank: same count, same place in the model, another shape of the
    change. Switch the mask and see how much the choice within a matrix matters.

    ### When it fails

    Only linear layers of the blocks take part, in proportion to their sides and not to what the task
    needs there. The masks that look at gradients do so before training, with a random head. On
    small matrices a rank that is high enough to matter selects everything.
    """

    name = "shira"
    title = "SHiRA"
    paper = Paper(
        title="Sparse High Rank Adapters",
        authors="Bhardwaj et al.",
        venue="NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2406.13175",
    )
    formula = r"W' = W + \Delta, \qquad \|\Delta\|_0 = r\,(m + n)"
    symbols: ClassVar[dict[str, str]] = {
        r"W": "pretrained matrix with m rows and n columns",
        r"\Delta": "the change; its positions are fixed before training",
        r"\|\Delta\|_0": "number of entries that may differ from zero",
        r"r": "rank of the LoRA that has as many parameters",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "Positions and counts as in the paper; its structured mask is left out. peft offers the random mask alone and "
        "draws it from a generator with one fixed seed, so that matrices of one shape, and all runs, share their "
        "pattern; here every matrix and every seed has its own. peft adds the change to a copy of the weight in every "
        "pass; here the entries train in place, which gives the same model."
    )
    Config: ClassVar[type[MethodConfig]] = ShiraConfig
    composes = False

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Select by data, or without looking at any where the mask needs none."""
        config: Any = self.config
        if config.mask == "random":
            self.choose_by_lot(self.quotas())
        elif config.mask == "magnitude":
            self.choose(self.magnitudes, quotas=self.quotas())
        else:
            super().score_pass(model, batches, progress)

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select in every matrix by the mean gradient, times the weight if asked to."""
        config: Any = self.config

        def score(number: int) -> torch.Tensor:
            strength = totals[number].abs()
            return strength * self.magnitudes(number) if config.mask == "saliency" else strength

        self.choose(score, quotas=self.quotas())
