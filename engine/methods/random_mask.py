"""Random mask: train weights drawn by lot, the control of every method that claims to choose well."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, LearningRate, Paper
from engine.methods.registry import register

if TYPE_CHECKING:
    from torch import nn


@register
class RandomMask(StaticMask):
    r"""Trains k weights drawn by lot.

    ### Why it exists

    Whoever proposes a rule for choosing weights owes an answer to one question: how well do weights
    do that nobody chose? A random mask costs nothing, needs no data and no gradients, and every
    weight has the same chance. What a selective method gains over it is what its rule is worth;
    what it does not gain comes from training a few weights at all.

    ### What to watch

    Its map of shares is flat: embeddings, attention and feed-forward matrices hold as many selected
    weights as their size lets expect, so that most lie in the word embeddings. Two seeds share
    almost no entry, k squared over all weights on average; compare that number with the overlap of
    two methods that claim to agree. It wants a learning rate well above that of full fine-tuning.

    ### When it fails

    Many of its entries belong to words that the training data never contain, and stay where they
    are. At a small budget that waste is felt, and a rule that looks at gradients gets ahead. At a
    large one the difference may vanish in the spread of the seeds. If it does, say so.
    """

    name = "random_mask"
    title = "Random mask"
    paper = Paper(
        title="Random Masking Finds Winning Tickets for Parameter Efficient Fine-tuning",
        authors="Xu, Zhang",
        venue="ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2405.02596",
    )
    formula = r"P(m_j = 1) = \frac{k}{N}, \qquad \sum_j m_j = k"
    symbols: ClassVar[dict[str, str]] = {
        r"m_j": "1 where the weight is trained",
        r"k": "number of selected weights",
        r"N": "number of eligible weights",
    }
    lr = LearningRate(1e-2, f"best of 1e-4 to 3e-2 in half decades by {TUNED_BY}, budget 26,112")
    notes = (
        "One draw without replacement over all backbone tensors, by the seed of the method. The paper draws within "
        "attention matrices of a decoder; the control in BitFit's code draws with replacement, tensor by tensor, and "
        "so leaves out every bias. Here everything competes, as in the methods it is the control of."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """Draw the mask."""
        model = super().attach(model)
        self.choose_by_lot()
        return model
