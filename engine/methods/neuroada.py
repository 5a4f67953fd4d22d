"""NeuroAda: train the largest incoming weights of every neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engine.methods._neurons import PerNeuron
from engine.methods.contract import TUNED_BY, LearningRate, Paper
from engine.methods.registry import register

if TYPE_CHECKING:
    from torch import nn


@register
class NeuroAda(PerNeuron):
    r"""Gives every neuron a few weights that may move: those of its inputs that weigh most.

    ### Why it exists

    A global ranking can leave whole layers without a single trainable weight. NeuroAda gives every
    output neuron of every linear layer the same small number, so that each can adapt, and picks the
    incoming weights of largest magnitude, which carry most of what the neuron does. The choice needs
    no data. The changes are kept apart from the base, as bypasses of the chosen connections.

    ### What to watch

    Every row of every matrix has exactly the same number of selected entries, so the map of shares
    shows the shapes of the matrices and nothing else. The columns tell more: a few inputs are chosen
    by most neurons, the outlier features. PaFi trains the smallest weights of the whole model; the
    two masks do not meet.

    ### When it fails

    Its smallest budget is one weight per neuron, and it grows in whole steps of that size. Equal
    treatment is also its limit: neurons that need more change get no more. Embeddings, norms and
    biases never train, so a task that asks for new word meanings must be solved in the blocks.
    """

    name = "neuroada"
    title = "NeuroAda"
    paper = Paper(
        title="NeuroAda: Activating Each Neuron's Potential for Parameter-Efficient Fine-Tuning",
        authors="Zhang, Shen, Cao, Shutova",
        venue="EMNLP 2025",
        year=2025,
        url="https://arxiv.org/abs/2510.18940",
    )
    formula = r"W' = W + \Delta, \quad \Delta_{rc} = 0 \text{ unless } c \in I_r = \operatorname{top}_k |W_{rc}|"
    symbols: ClassVar[dict[str, str]] = {
        r"I_r": "trained inputs of neuron r",
        r"W_{rc}": "pretrained weight from input c to neuron r",
        r"\Delta": "the change, zero at the start",
        r"k": "weights per neuron",
    }
    lr = LearningRate(1e-2, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "As the authors' code: linear layers of the blocks, largest magnitudes per row. Their change is a tensor of "
        "its own beside the weight, which has to be added in every forward pass and may be decayed to zero; here the "
        "chosen weights train in place, which gives the same model without that cost, and weight decay, where the "
        "recipe has any, pulls the weights themselves. Their code keeps the change in half precision on a GPU, where "
        "small updates round away; here it is single precision. Equal magnitudes go to the lowest input."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        """Rank the magnitudes of every neuron's inputs and select the largest."""
        model = super().attach(model)
        self.choose_per_neuron(self.magnitudes)
        return model
