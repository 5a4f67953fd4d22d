"""Largest magnitudes: train the weights that are farthest from zero, PaFi's opposite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, LearningRate, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn


@register
class LargestMagnitude(StaticMask):
    r"""Trains the weights that are farthest from zero, and only those.

    ### Why it exists

    Pruning keeps large weights, because removing them hurts most. If they matter most, the argument
    goes, a small change of each should move the model most. PaFi argues the other way round and
    trains the smallest. Both need nothing but the weights, so the two are each other's control.

    ### What to watch

    The mask sits in few places: gains of norms, which are near one where other weights are near
    zero, and the outlier columns of some matrices. Look at its share per tensor beside PaFi's; the
    two never share an entry. It does not depend on data or seed.

    ### When it fails

    Large is not the same as useful for the task. Gains alone can fill a small budget, and then this
    method is little more than tuning of norms. On top of LoRA it only ever selects from A, since B
    starts at zero; and while B is zero, A has no gradient, so nothing but the head learns.
    """

    name = "magnitude"
    title = "Largest magnitudes"
    paper = Paper(
        title="Refining Salience-Aware Sparse Fine-Tuning Strategies for Language Models",
        authors="Liu et al.",
        venue="ACL 2025",
        year=2025,
        url="https://arxiv.org/abs/2412.13488",
    )
    formula = r"m_j = \begin{cases} 1 & |\theta_{0,j}| \ge \tau_k \\ 0 & \text{otherwise} \end{cases}"
    symbols: ClassVar[dict[str, str]] = {
        r"m_j": "1 where the weight is trained",
        r"\theta_{0,j}": "pretrained value of weight j",
        r"\tau_k": "the k-th largest magnitude of all eligible weights",
        r"k": "number of selected weights",
    }
    lr = LearningRate(1e-2, f"best of 1e-4 to 3e-2 in half decades by {TUNED_BY}, budget 26,112")
    notes = (
        "A score of the paper's comparison, there over the linear layers of a decoder. Here one ranking runs over all "
        "backbone tensors, as for the methods it is the control of; equal magnitudes go to the lowest tensor and index."
    )

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        lora = cls.on_lora_alone(architecture, config)
        if lora and cls.size(architecture, config) + cls.zeros_at_start(architecture, config) <= cls.eligible(
            architecture, config
        ):
            found.append(
                "LoRA's B starts at zero, so that the selected entries lie in A, which has no gradient while B is "
                "zero: nothing but the head will learn."
            )
        return found

    def boundary(self) -> Boundary:
        return Boundary(0, -1)

    def attach(self, model: nn.Module) -> nn.Module:
        """Rank all magnitudes and select the k largest."""
        model = super().attach(model)
        self.choose(self.magnitudes)
        return model
