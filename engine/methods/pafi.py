"""PaFi: train the weights of smallest magnitude, chosen without any data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.methods._selective import SelectiveConfig
from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, MethodConfig, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn


class PaFiConfig(SelectiveConfig):
    """Settings of PaFi."""

    ties: Literal["auto", "first", "random"] = Field(
        "auto",
        title="Equal magnitudes",
        description=(
            "Which of several equally small weights are taken: the first ones, or some at random by the seed. "
            "auto takes the first ones, but random ones on top of another method, whose zeros are all equal."
        ),
        json_schema_extra={"source": "this lab; the paper does not say", "level": "advanced"},
    )
    scope: Literal["global", "tensor"] = Field(
        "global",
        title="Ranking",
        description="global: one ranking over all tensors. tensor: the same share in each of them.",
        json_schema_extra={"source": "ID3 authors' re-implementation", "level": "advanced"},
    )


@register
class PaFi(StaticMask):
    r"""Trains the weights that are closest to zero in the pretrained model, and only those.

    ### Why it exists

    Large weights are thought to carry what a model learned in pretraining; small ones have little
    to lose. PaFi freezes the former and trains the k smallest. Choosing them takes one look at the
    weights: no data, no gradients, and the same mask serves every task. That suits federated
    settings, where many clients train the same entries and only values travel. (Only positions and
    token types that a task's inputs can never reach are left out.)

    ### What to watch

    The mask is complete before the first step and never changes. It does not depend on the dataset:
    run it on two tasks and compare. Look at where it falls. Most weights of a small encoder are
    word embeddings, and so are most small weights: a good part of the budget belongs to words that
    no training sentence contains. These entries are counted as selected but never move.

    ### When it fails

    Small is not the same as useful for the task, and a part of the mask never receives a gradient.
    It needs a high learning rate, and at its best one it may keep up with masks that look at
    gradients: measure before you believe either. On top of LoRA the rule is empty, because one of
    LoRA's matrices starts at exactly zero: the selected entries lie there as long as they fit, and
    which ones they are is decided by the tie rule alone. With a larger k the mask only grows; it
    never trades a bad entry for a better one.
    """

    name = "pafi"
    title = "PaFi"
    paper = Paper(
        title="Parameter-Efficient Fine-Tuning without Introducing New Latency",
        authors="Liao, Meng, Monz",
        venue="ACL 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.16742",
    )
    formula = r"m_j = \begin{cases} 1 & |\theta_{0,j}| \le \tau_k \\ 0 & \text{otherwise} \end{cases}"
    symbols: ClassVar[dict[str, str]] = {
        r"m_j": "1 where the weight is trained",
        r"\theta_{0,j}": "pretrained value of weight j",
        r"\tau_k": "the k-th smallest magnitude of all eligible weights",
        r"k": "number of selected weights",
    }
    lr = LearningRate(
        8e-3,
        f"best of 1e-3, 2e-3, 4e-3 and 8e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(3e-2, f"{TUNED_ON_NANO}, budget 5,888")},
    )
    notes = (
        "The authors' code was never released. As in the ID3 authors' re-implementation, one ranking runs over all "
        "tensors, here without the task head, which is dense and outside the budget, and without embedding rows that "
        "no example can reach, and positions and token types that its inputs never have. The lecture speaks of the "
        "smallest K per cent; k here is a count. Equal magnitudes go to the lowest tensor and index, on top of "
        "another method to random ones. Clipping uses the norm of the selected gradients."
    )
    Config: ClassVar[type[MethodConfig]] = PaFiConfig

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if zeros := cls.zeros_at_start(architecture, config):
            found.append(
                f"{zeros:,} of the eligible entries start at exactly zero, as LoRA's B and the biases of adapters do. "
                "They are equally small, so that PaFi's choice among them means nothing."
            )
        return found

    def boundary(self) -> Boundary | None:
        config: Any = self.config
        return Boundary(0, 1) if config.scope == "global" else None

    def attach(self, model: nn.Module) -> nn.Module:
        """Rank all magnitudes and select the k smallest."""
        config: Any = self.config
        model = super().attach(model)
        at_random = config.ties == "random" or (config.ties == "auto" and self.inner is not None)
        quotas = self.equal_shares() if config.scope == "tensor" else None
        self.choose(self.magnitudes, smallest=True, seed=self.context.method_seed if at_random else None, quotas=quotas)
        return model
