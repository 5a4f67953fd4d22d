"""Linear probe: the pretrained model stays as it is and only the task head is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, Method, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from torch import nn


@register
class LinearProbe(Method):
    r"""Trains the task head alone, on the features of the frozen model.

    ### Why it exists

    It asks what the pretrained features already know about the task, before anything inside the
    model is changed. Whatever another method reaches above it is what changing the model is worth.
    It trains nothing but the task head, which every method trains: its own count is 0, and that is
    its nature, not a fault.

    ### What to watch

    The inside of the model stays exactly as it was, so only accuracy and loss move. They are those
    of logistic regression on fixed features: smooth, and soon flat.

    ### When it fails

    When the feature it reads was never meant for the task. Here the head reads what exported
    classifiers read: in a BERT the first token's state through the pooler, in a decoder the last
    token's. An embedding model such as MiniLM was trained on the mean over all tokens instead, and
    its pooler was not. Read through it its features give 69 % on film reviews, where their mean
    gives 75 to 77 %. So take it here as a lower mark, not as the best that fixed features can do.
    Some families have a head of two layers; then the classifier is not linear in their features.
    """

    name = "linear_probe"
    title = "Linear probe"
    family = "baseline"
    paper = Paper(
        title="Understanding intermediate layers using linear classifier probes",
        authors="Alain, Bengio",
        venue="ICLR 2017 Workshop",
        year=2017,
        url="https://arxiv.org/abs/1610.01644",
    )
    formula = r"\hat{y} = \mathrm{softmax}\!\left(W\, f_{\theta_0}(x) + b\right)"
    symbols: ClassVar[dict[str, str]] = {
        r"f_{\theta_0}(x)": "features of the frozen model: the state of the first token, in a decoder of the last",
        r"W, b": "the task head, the only thing that is trained",
        r"\hat{y}": "probability of each class",
    }
    lr = LearningRate(
        3e-2,
        f"best of 1e-3, 2e-3, 4e-3, 1e-2 and 3e-2 by {TUNED_BY}",
        {"nano-bert": LearningRate(3e-3, TUNED_ON_NANO)},
    )
    notes = (
        "The paper probes single layers of a network with linear classifiers; this is its special case for the last "
        "layer. Trained by the same recipe as every other method, so it approaches logistic regression on the same "
        "features without regularisation."
    )
    views: ClassVar[tuple[str, ...]] = ()
    packs = "tensors"

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return ()

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze everything; the head is the loop's."""
        return model.requires_grad_(False)
