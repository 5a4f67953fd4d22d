"""MeZO: fine-tuning with forward passes alone."""

from __future__ import annotations

from typing import ClassVar

from engine.methods._zeroth import ZerothOrder
from engine.methods.contract import LearningRate, Paper
from engine.methods.registry import register


@register
class MeZO(ZerothOrder):
    r"""Pushes all weights a little along a random direction, sees whether the loss falls, and follows.

    ### Why it exists

    A backward pass needs the activations of all layers and a gradient for every weight: several times
    the memory of using the model. MeZO never goes backward. It draws a random direction, measures the
    loss a small step ahead and a small step behind, and the difference says how steep the loss is
    along it. The direction itself need not be stored, as its seed brings it back: training fits where
    inference fits. And as only losses are compared, they need not be differentiable.

    ### What to watch

    The loss falls slowly and shakes: one number per step has to stand for the slope of millions of
    weights. All matrices move at once, by the same small amount, wherever they are; there is no
    structure to see but noise, and the way along it adds up. Put it on LoRA or BitFit, and the same
    number has fewer weights to speak for. The task head learns in the same way, unlike with all other
    methods here, as a gradient for it would be a backward pass.

    ### When it fails

    In a few hundred steps, compared with any gradient: its authors took up to a hundred times as many.
    They fine-tuned models that could nearly do the task when asked in words; a fresh task head gives
    it a poor start. A rate that suits gradients makes it diverge, since the step's noise grows with
    the number of weights.
    """

    name = "mezo"
    title = "MeZO"
    paper = Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora",
        venue="NeurIPS 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.17333",
    )
    formula = (
        r"g = \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon}, \quad z \sim \mathcal{N}(0, I), "
        r"\qquad \theta \leftarrow \theta - \eta\, g\, z"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"z": "random direction, the same shape as all weights, drawn anew from the seed of the step",
        r"\epsilon": "how far the weights are moved before the loss is measured",
        r"g": "slope of the loss along z",
        r"\theta": "all weights of the backbone, or those of the method below, and the task head",
        r"\eta": "learning rate",
    }
    lr = LearningRate(
        1e-3,
        "a third of nano-bert's, for a model of five times the weights: this method was not tuned on MiniLM",
        {"nano-bert": LearningRate(3e-3, "best of 3e-3, 1e-2 and 3e-2 in one run each of 400 steps (batch 16, CPU)")},
    )
    notes = (
        "As in the authors' code: weights are moved in place and moved back, which leaves them as they were but for "
        "rounding; both losses are taken without dropout; weight decay spares biases and norms. There the rate is "
        "constant and nothing is clipped. Here the recipe of all methods holds: warm-up, decay, and a bound on the "
        "slope, whose square is on average the squared norm of the gradient. The loss and accuracy of a step are the "
        "means of its two passes. The authors' models were a thousand times larger, and their rates, 1e-7 to 1e-5, "
        "lower by as much. On LoRA or BitFit, which have few weights, it bears a higher one: 1e-2 on nano-bert. Rows "
        "that no example reaches are moved like all others and change nothing."
    )
    composes = True
    views: ClassVar[tuple[str, ...]] = ("change", "bias")
