"""SPT without modules: train the weights that the loss of a few batches is most sensitive to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.methods._examples import together
from engine.methods._scored import GradientScored, add_up
from engine.methods._selective import Group, SelectiveConfig
from engine.methods.contract import TUNED_BY, Batches, LearningRate, MethodConfig, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn


class SptConfig(SelectiveConfig):
    """Settings of SPT."""

    batches: int = Field(
        8,
        ge=1,
        le=1_024,
        title="Scored batches",
        description="Batches whose gradients are squared and added up before the first step.",
        json_schema_extra={"source": "authors' code; their scripts take up to 16"},
    )
    batch_examples: int = Field(
        32,
        ge=1,
        le=1_024,
        title="Examples per scored batch",
        description="The gradient is that of the mean loss of so many examples; 1 scores every example for itself.",
        json_schema_extra={"source": "authors' scripts"},
    )
    exclude: tuple[Group, ...] = Field(
        ("token", "position", "type"),
        title="Never select from",
        description=(
            "Kinds of tensors that stay frozen: token, position and type embeddings, norms (gains and biases), "
            "biases (those of norms too), pooler. By default the embeddings."
        ),
        json_schema_extra={"source": "authors' code: matrices, norms and biases compete", "level": "advanced"},
    )


@register
class SPT(GradientScored):
    r"""Trains the weights to which the loss reacts most, wherever in the model they are.

    ### Why it exists

    Many methods change the same places of a model whatever the task. SPT asks the task first. How
    much would the loss fall if this one weight took one step of plain gradient descent? To first
    order, by the square of its gradient. Added up over a few batches that is the weight's
    sensitivity, and the most sensitive weights of the whole model are trained.

    ### What to watch

    See how the mask is spread over depth and over the kinds of matrices. The authors found that depth
    follows the task, while the kinds stay much the same. Set the examples per batch to 1, and it
    becomes the empirical Fisher information of FISH Mask: then count how many weights the two masks
    share. In a batch opposite gradients cancel before they are squared, example by example they do not.

    ### When it fails

    Eight batches are a small sample, seen once, with a task head that is still random. Single weights
    cannot do what a change of whole directions can; for matrices with many sensitive weights the same
    authors use modules instead, as SPT-LoRA does here.
    """

    name = "spt"
    title = "SPT"
    paper = Paper(
        title="Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning",
        authors="He, Cai, Zhang, Tao, Zhuang",
        venue="ICCV 2023",
        year=2023,
        url="https://arxiv.org/abs/2303.08566",
    )
    formula = r"s_j = \sum_{b=1}^{B} \left( \frac{\partial L_b}{\partial \theta_j} \right)^{2}"
    symbols: ClassVar[dict[str, str]] = {
        r"s_j": "sensitivity of weight j; the k most sensitive are trained",
        r"L_b": "mean loss of batch b, before training",
        r"B": "scored batches",
        r"\theta_j": "weight j",
    }
    lr = LearningRate(1e-2, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "A port from vision of the paper's unstructured form, which its authors use as a part of SPT-LoRA. As in their "
        "code the gradients are those of whole batches, squared and added; only matrices, norms and biases compete, "
        "and embeddings stay frozen. The pooler, which their models lack, competes too. The model is scored without "
        "dropout. Clipping is by the norm of the selected gradients, as for the lab's other fixed masks. On top of "
        "another method all that this one adds competes."
    )
    Config: ClassVar[type[MethodConfig]] = SptConfig

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many as `target`, or all that compete when these are fewer.

        Raises:
            BudgetError: for a target below 1.
        """
        return super().fit(architecture, config, min(target, cls.eligible(architecture, config)))

    def squares(self) -> bool:
        return True

    def boundary(self) -> Boundary | None:
        return Boundary(1, 0)

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Measure every weight's sensitivity over a few batches, and select.

        Raises:
            DataError: when there is no example to score.
        """
        import torch

        from engine.sparse.scores import add_squares

        config: Any = self.config
        scored = 0

        def add(batch: dict[str, torch.Tensor], totals: list[torch.Tensor]) -> None:
            nonlocal scored
            scored += 1
            add_squares(totals, torch.autograd.grad(model(**batch).loss, self._tensors, allow_unused=True))

        grouped = _grouped(batches, config.batch_examples, self.context.architecture.pad_token or 0)
        totals = add_up(model, self._tensors, grouped, config.batches, progress, add)
        self.choose_by(totals)
        self._choice = self._seen(totals, scored)

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select the k most sensitive weights."""
        self.choose(totals.__getitem__)


def _grouped(examples: Batches, size: int, pad: int) -> Iterator[dict[str, torch.Tensor]]:
    """Single examples in batches of `size`, of which the last may be smaller."""
    rest = iter(examples)
    while part := list(islice(rest, size)):
        yield together(part, pad)
