"""SPEFT: a static mask by one of several salience scores, over all tensors or in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods._selective import SelectiveConfig
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn


class SpeftConfig(ScoringConfig, SelectiveConfig):
    """Settings of SPEFT."""

    score: Literal["gradient", "saliency", "taylor", "skeleton", "fisher"] = Field(
        "gradient",
        title="Salience",
        description=(
            "gradient: size of the mean gradient. saliency: gradient times weight (SNIP). taylor: its square, which "
            "ranks alike. skeleton: minus weight times gradient, with its sign. fisher: mean squared gradient."
        ),
        json_schema_extra={"source": "the paper's best is gradient"},
    )
    scope: Literal["global", "tensor"] = Field(
        "global",
        title="Ranking",
        description="global: one ranking over all tensors. tensor: the same share in each of them.",
        json_schema_extra={"source": "authors' code offers both"},
    )


@register
class Speft(GradientScored):
    r"""Ranks weights once by a salience score of your choice, and trains the best.

    ### Why it exists

    Pruning knows many ways to tell how much a weight matters. This study uses them to decide what to
    train instead of what to remove, everything else being equal: same budget, same data, same
    optimizer. Its answer is that the plain gradient, looked at once before training, is as good as
    any of the elaborate scores, and that choosing again during training brings nothing.

    ### What to watch

    Switch the score and compare the masks. Saliency and Taylor give the very same one, since
    squaring keeps the order. The mean gradient keeps signs, so that examples which pull a weight in
    opposite directions cancel; Fisher squares first and does not. With the ranking inside each
    tensor the map becomes flat, and small tensors lose the lead they have in a global ranking.

    ### When it fails

    All scores look at the model as it was, with a head that is still random. A score that multiplies
    by the weight can never choose one that is zero. With few examples the mean gradient is noise.
    And the claim that dynamic masks bring nothing contradicts ID3's: run both and see.
    """

    name = "speft"
    title = "SPEFT"
    paper = Paper(
        title="Refining Salience-Aware Sparse Fine-Tuning Strategies for Language Models",
        authors="Liu et al.",
        venue="ACL 2025",
        year=2025,
        url="https://arxiv.org/abs/2412.13488",
    )
    formula = r"s_j = \left| \tfrac1n \sum_{i=1}^{n} g_{ij} \right| \quad \text{(or a score of } \theta_j, g_j)"
    symbols: ClassVar[dict[str, str]] = {
        r"s_j": "salience of weight j; the k highest are trained",
        r"g_{ij}": "gradient of example i's loss with respect to weight j, before training",
        r"\theta_j": "pretrained value of weight j",
        r"n": "scored examples",
    }
    lr = LearningRate(1e-2, f"best of 1e-4 to 3e-2 in half decades by {TUNED_BY}, gradient scores, budget 26,112")
    notes = (
        "Five of the paper's nine scores. Random and magnitude are methods of their own here; SynFlow and GraSP are "
        "left out, the first because its all-ones input has no meaning behind word embeddings, the second because it "
        "needs second derivatives. Released code ranks the linear layers of a decoder; here all backbone tensors "
        "compete. Weights of negative skeleton score count as zero and come last. The authors' dynamic mode read a "
        "stale cache and was never dynamic; only the static one is here."
    )
    Config: ClassVar[type[MethodConfig]] = SpeftConfig

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        products = config.score in ("saliency", "taylor", "skeleton")
        if products and cls.on_lora_alone(architecture, config):
            return [
                "B is zero, and A has no gradient while it is: every product of weight and gradient is zero, so that "
                "the choice means nothing and perhaps nothing but the head learns."
            ]
        return super().warnings(architecture, config, steps)

    def squares(self) -> bool:
        config: Any = self.config
        return bool(config.score == "fisher")

    def boundary(self) -> Boundary | None:
        """A product of weight and gradient falls off along a slanted line; one with its sign along none."""
        config: Any = self.config
        if config.scope == "tensor" or config.score == "skeleton":
            return None
        return Boundary(1, -1 if config.score in ("saliency", "taylor") else 0)

    def add_example(
        self, model: nn.Module, batch: dict[str, torch.Tensor], totals: list[torch.Tensor], draws: torch.Generator
    ) -> None:
        """Add the gradient of one example, squared where the score says so."""
        import torch

        from engine.sparse.scores import add_squares

        config: Any = self.config
        if config.score != "fisher":
            super().add_example(model, batch, totals, draws)
            return
        add_squares(totals, torch.autograd.grad(model(**batch).loss, self._tensors, allow_unused=True))

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select by the score, over all tensors or in each."""
        config: Any = self.config
        quotas = self.equal_shares() if config.scope == "tensor" else None
        self.choose(lambda number: self._salience(totals[number], number), quotas=quotas)

    def _salience(self, total: torch.Tensor, number: int) -> torch.Tensor:
        config: Any = self.config
        if config.score == "fisher":
            return total.clone()
        if config.score == "gradient":
            return total.abs()
        product = total * self._tensors[number].detach().reshape(-1).float()
        if config.score == "skeleton":
            return product.neg_().clamp_(min=0)
        return product.abs_() if config.score == "saliency" else product.square_()
