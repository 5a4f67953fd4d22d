"""KappaTune: train the matrices with the smallest condition numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._active import ActiveTensors
from engine.methods.contract import TUNED_BY, Batches, LearningRate, MethodConfig, Paper, largest
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class KappaConfig(MethodConfig):
    """Settings of KappaTune."""

    matrices: int = Field(
        4,
        ge=1,
        le=100_000,
        title="Trained matrices",
        description="How many linear weight matrices of the blocks train: those with the smallest condition numbers.",
        json_schema_extra={"source": "this lab; the author takes 100 of a large model's", "budget": True},
    )


@register
class KappaTune(ActiveTensors):
    r"""Trains the matrices that treat all directions alike, and leaves the specialised ones alone.

    ### Why it exists

    A matrix whose largest singular value dwarfs its smallest maps most directions to next to nothing: it
    has specialised, and training it again would overwrite what it holds. A matrix with a small
    condition number has not. KappaTune ranks matrices by that number, which needs neither data nor
    gradients and does not care for scale, and trains those with the smallest, to learn without
    forgetting much.

    ### What to watch

    Which kinds of matrix were chosen, and in which layers: the view of magnitude and direction shows
    their rows moving and all others at rest. The choice is the same for every task and seed.

    ### When it fails

    The smallest singular value decides, and it is the least certain number of a decomposition. What
    holds little may also have little to give: measure it against as many matrices drawn by lot. The
    unit is a whole matrix, so budgets are coarse.
    """

    name = "kappatune"
    title = "KappaTune"
    paper = Paper(
        title="The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units",
        authors="Ludwig",
        venue="arXiv",
        year=2025,
        url="https://arxiv.org/abs/2506.16289",
    )
    formula = r"\kappa(W) = \frac{\sigma_{\max}(W)}{\sigma_{\min}(W)}"
    symbols: ClassVar[dict[str, str]] = {
        r"\kappa(W)": "condition number of a matrix; those with the smallest train",
        r"\sigma_{\max}, \sigma_{\min}": "its largest and smallest singular value",
    }
    lr = LearningRate(3e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "Linear weights of the blocks, by their exact singular values in double precision; a matrix whose smallest one "
        "is zero comes last. The author counts tensors, and so does the setting; as matrices differ in size, the plan "
        "shows the most they can have, and a finished run what it trained. Biases stay frozen."
    )
    Config: ClassVar[type[MethodConfig]] = KappaConfig
    scores_first = True

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears()

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        """The most that so many matrices can have: which ones they are, the weights decide."""
        return sum(sorted((row.size for row in architecture.linears()), reverse=True)[: config.matrices])

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many matrices as `target` allows, were they the largest.

        Raises:
            BudgetError: when one is too many.
        """

        def size(matrices: int) -> int:
            return cls.size(architecture, config.model_copy(update={"matrices": matrices}))

        found = largest(size, 1, max(1, len(architecture.linears())), target)
        if found is None:
            raise BudgetError(
                f"One matrix of this model has {size(1):,} parameters, and {cls.title} trains no less.",
                f"Ask for at least {size(1):,}, or choose another method.",
            )
        return config.model_copy(update={"matrices": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = len(architecture.linears())
        if config.matrices <= most:
            return []
        return [f"This model has {most} such matrices: all of them train, not {config.matrices}."]

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Rank the matrices and train the best conditioned; no example is looked at."""
        config: Any = self.config
        numbers = {}
        for name, tensor in self._tensors.items():
            numbers[name] = condition(tensor)
            progress(len(numbers), len(self._tensors))
        order = sorted(numbers, key=lambda name: numbers[name])  # equal ones stay in model order
        self.activate(order[: config.matrices])


def condition(weight: torch.Tensor) -> float:
    """Condition number of a matrix; infinite when its smallest singular value is zero."""
    import torch

    values = torch.linalg.svdvals(weight.detach().double().cpu())
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else float("inf")
