"""GPS: train the incoming weights of every neuron whose gradients add up to most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.methods._neurons import NeuronConfig, PerNeuron
from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import LINEAR_ROLES, Architecture, Parameter

if TYPE_CHECKING:
    import torch


class GpsConfig(ScoringConfig, NeuronConfig):
    """Settings of GPS."""


@register
class GPS(PerNeuron, GradientScored):
    r"""Gives every neuron the few weights that the task pulls at most, and trains all biases beside.

    ### Why it exists

    Like NeuroAda it lets every neuron adapt, but asks the task which incoming weights to use: the
    gradients of many examples are added up before training, and each neuron keeps those inputs whose
    sum is largest in size. The choice is spread over the whole depth of the model, and it follows
    the data.

    ### What to watch

    Every matrix has the same number of selected weights per row, and the biases of the linear layers
    are trained whole. Compare its columns with NeuroAda's: magnitude and gradient seldom pick the
    same inputs. Gradients are added with their signs, so inputs at which examples disagree are not
    chosen. With two classes in balance that is a good part of them.

    ### When it fails

    The scoring phase costs a backward pass per example. The sum tells of the model before training,
    with a random head, whose direction it depends on. Its smallest budget is one weight per neuron
    and all biases, more than BitFit trains; asked for less, it must decline.
    """

    name = "gps"
    title = "GPS"
    paper = Paper(
        title="Gradient-based Parameter Selection for Efficient Fine-Tuning",
        authors="Zhang et al.",
        venue="CVPR 2024",
        year=2024,
        url="https://arxiv.org/abs/2312.10136",
    )
    formula = r"I_r = \operatorname{top}_k \left| \sum_{i=1}^{n} \frac{\partial \ell_i}{\partial W_{rc}} \right|"
    symbols: ClassVar[dict[str, str]] = {
        r"I_r": "trained inputs of neuron r",
        r"\ell_i": "loss of example i, before training",
        r"W_{rc}": "weight from input c to neuron r",
        r"k": "weights per neuron",
        r"n": "scored examples",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "A reconstruction for text of a method for images: the authors score one epoch with a supervised contrastive "
        "loss on two views of an image, here it is the task's own loss on some examples. As in their code signs are "
        "kept in the sum, biases train whole and norms stay frozen; biases count towards the budget here. They clip "
        "before masking; here the norm is that of the selected gradients, as for the lab's other fixed masks."
    )
    Config: ClassVar[type[MethodConfig]] = GpsConfig

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        matrices = {row.name for row in architecture.linears()}
        return tuple(
            row
            for row in architecture.backbone
            if row.name in matrices or (row.part == "bias" and row.role in LINEAR_ROLES)
        )

    @classmethod
    def count(cls, row: Parameter, config: Any) -> int:
        return row.size if len(row.shape) < 2 else super().count(row, config)

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select by the size of the sums."""
        self.choose_per_neuron(lambda number: totals[number].abs())
