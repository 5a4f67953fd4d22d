"""FISH Mask: train the weights with the largest Fisher information, measured before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods._selective import SelectiveConfig
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, MethodConfig, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn


class FishConfig(ScoringConfig, SelectiveConfig):
    """Settings of FISH Mask."""

    kind: Literal["empirical", "expected", "sampled"] = Field(
        "empirical",
        title="Labels",
        description=(
            "empirical: the labels of the data. expected: all labels, weighted by the model's own probabilities, "
            "one backward pass each. sampled: one label drawn from these probabilities."
        ),
        json_schema_extra={"source": "the authors' scripts", "level": "advanced"},
    )


@register
class FishMask(GradientScored):
    r"""Measures how strongly each weight affects the model's answer, and trains the strongest.

    ### Why it exists

    Changing a weight by a little changes the model's output distribution by an amount that the
    weight's Fisher information predicts. FISH Mask estimates this number for every weight from a
    few hundred labelled examples, keeps the k largest, and trains these alone. The mask is fixed
    before training, so it is small to store and cheap to train with: the optimizer never sees the
    other weights.

    ### What to watch

    Before the first step there is a scoring phase: one backward pass per example, because squares
    must be taken example by example and then added; the square of an average would be another
    quantity. The mask that follows does not change any more. Biases and norms get far more than
    their share, and word embeddings are chosen only for words that the scored examples contain.
    Compare the masks of two seeds: they agree the better, the more examples were scored.

    ### When it fails

    The scores describe the model as it was before training, with a task head that was still random.
    A weight that becomes important later is never found. With very few examples the mask describes
    those examples; with many, the scoring phase takes longer than a short training. And a mask made
    for one task is no use for another.
    """

    name = "fish"
    title = "FISH Mask"
    paper = Paper(
        title="Training Neural Networks with Fixed Sparse Masks",
        authors="Sung, Nair, Raffel",
        venue="NeurIPS 2021",
        year=2021,
        url="https://arxiv.org/abs/2111.09839",
    )
    formula = r"\hat F_j = \sum_{i=1}^{n} \left( \frac{\partial \log p(y_i \mid x_i)}{\partial \theta_j} \right)^{2}"
    symbols: ClassVar[dict[str, str]] = {
        r"\hat F_j": "estimated Fisher information of weight j; the k largest are trained",
        r"n": "scored examples",
        r"(x_i, y_i)": "a training example and its label",
        r"p(y \mid x)": "the model's probability of a label, at its initial weights",
        r"\theta_j": "weight j",
    }
    lr = LearningRate(
        4e-3,
        f"best of 1e-3, 2e-3, 4e-3 and 8e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(3e-3, f"{TUNED_ON_NANO}, budget 5,888")},
    )
    notes = (
        "As the authors' scripts do: labels of the data (empirical Fisher), single examples, evaluation mode, no "
        "division by their number, one ranking over all tensors, and clipping by the norm of the selected gradients. "
        "The paper's formula and the lecture take the expectation over the model's own labels (`expected`), and the "
        "lecture speaks of scores per matrix. The authors count the dense task head inside the budget; here it is "
        "outside, as for every method. They score 1,024 examples on GLUE; the default here is 256, to keep the "
        "scoring phase short."
    )
    Config: ClassVar[type[MethodConfig]] = FishConfig
    demonstrations = ("divergence",)

    def squares(self) -> bool:
        return True

    def boundary(self) -> Boundary:
        return Boundary(1, 0)

    def add_example(
        self, model: nn.Module, batch: dict[str, torch.Tensor], totals: list[torch.Tensor], draws: torch.Generator
    ) -> None:
        """Add the squared gradients of one example."""
        import torch

        from engine.sparse.scores import add_squares

        label = batch.pop("labels")
        likelihood = model(**batch).logits.float().log_softmax(-1)[0]
        shares = self._labels(likelihood, int(label.reshape(-1)[0]), draws)
        for place, (target, share) in enumerate(shares):
            gradients = torch.autograd.grad(
                likelihood[target], self._tensors, retain_graph=place + 1 < len(shares), allow_unused=True
            )
            add_squares(totals, gradients, share)

    def _labels(self, likelihood: torch.Tensor, observed: int, draws: torch.Generator) -> list[tuple[int, float]]:
        """The labels whose gradients are taken, each with its weight."""
        config: Any = self.config
        if config.kind == "empirical":
            return [(observed, 1.0)]
        chances = likelihood.detach().exp().cpu()
        if config.kind == "sampled":
            return [(int(chances.multinomial(1, generator=draws)), 1.0)]
        return list(enumerate(chances.tolist()))

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select the k largest entries of the Fisher information."""
        self.choose(totals.__getitem__)
