"""TR-PTS, its parameter part: Fisher information decides how much each layer gets, then which inputs of each neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._neurons import best_inputs, inputs_of, neurons_of
from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class TrPtsConfig(ScoringConfig):
    """Settings of TR-PTS."""

    k: int = Field(
        26_112,
        ge=1,
        title="Selected weights",
        description="How many weights train at most. Every neuron of a matrix gets as many, so that some stay unused.",
        json_schema_extra={"budget": True, "source": "this lab: as many as MiniLM has biases, for equal comparisons"},
    )


@register
class TrPts(GradientScored):
    r"""Lets the task decide how much of the budget each matrix gets, and spreads it over all its neurons.

    ### Why it exists

    A global ranking can crowd into one matrix, and a fixed number per neuron treats a matrix that
    the task needs like one that it does not. This method is in between: the best weights of the
    whole model, by Fisher information, are counted per matrix, and each matrix divides its count
    equally among its neurons. Where the task is at work every neuron may adapt more.

    ### What to watch

    Rows of one matrix have the same number of selected weights, rows of different matrices do not.
    Compare the shares per matrix with FISH's, from which they come, and the entries with FISH's own.

    ### When it fails

    Rounding to whole numbers per neuron is coarse when the budget is small: a matrix whose count is
    less than half its neurons gets nothing. The Fisher information is that of the model before
    training, with a random head.
    """

    name = "tr_pts"
    title = "TR-PTS (parameters)"
    paper = Paper(
        title="TR-PTS: Task-Relevant Parameter and Token Selection for Efficient Tuning",
        authors="Luo et al.",
        venue="ICCV 2025",
        year=2025,
        url="https://arxiv.org/abs/2507.22872",
    )
    formula = r"C_\ell = \left\lfloor \frac{c\,|\mathrm{top}_m(\hat F) \cap \ell|}{\mathrm{rows}_\ell} \right\rceil"
    symbols: ClassVar[dict[str, str]] = {
        r"C_\ell": "trained inputs of each neuron of matrix l: those with the largest Fisher information",
        r"\mathrm{top}_m(\hat F)": "the m weights of the model with the largest Fisher information",
        r"\mathrm{rows}_\ell": "neurons of the matrix",
        r"m": "the largest for which all matrices together stay within the budget",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "A reconstruction from the paper, which has no released code: labels of the data, single examples, linear "
        "layers of the blocks. The paper gives every layer at least one input per neuron; here a matrix may get none, "
        "so that small budgets can be met. The number of weights counted globally is the largest that the budget "
        "allows after rounding, found by bisection. Its selection of tokens is for images and left out."
    )
    packs = ""  # how many it selects depends on the scores
    Config: ClassVar[type[MethodConfig]] = TrPtsConfig
    composes = False

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears()

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """At most `target` selected weights.

        Raises:
            BudgetError: when it does not reach one per neuron of the smallest matrix.
        """
        least = min(map(neurons_of, architecture.linears()))
        if target < least:
            raise BudgetError(
                f"{cls.title} trains at least {least:,} weights here: one for each neuron of a matrix.",
                f"Ask for at least {least:,}.",
            )
        return config.model_copy(update={"k": min(target, cls.eligible(architecture, config))})

    def kept(self) -> int | None:
        """What rounding to whole numbers per neuron has left of the budget."""
        return self.sparse.count or None

    def squares(self) -> bool:
        return True

    def add_example(
        self, model: nn.Module, batch: dict[str, torch.Tensor], totals: list[torch.Tensor], draws: torch.Generator
    ) -> None:
        """Add the squared gradients of one example's loss."""
        import torch

        from engine.sparse.scores import add_squares

        add_squares(totals, torch.autograd.grad(model(**batch).loss, self._tensors, allow_unused=True))

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Divide the budget, then select per neuron."""
        import torch

        tensors, indices = [], []
        for number, (row, count) in enumerate(zip(self.rows, self._per_neuron(totals), strict=True)):
            if count:
                index = best_inputs(row, totals[number], count)
                tensors.append(torch.full_like(index, number))
                indices.append(index)
        self.fix(torch.cat(tensors), torch.cat(indices))

    def _per_neuron(self, totals: list[torch.Tensor]) -> list[int]:
        """Inputs of each neuron, by matrix: those of the largest global count that the budget allows."""
        import torch

        from engine.sparse.selection import select

        sizes = [row.size for row in self.rows]
        neurons = torch.tensor([neurons_of(row) for row in self.rows])
        limits = torch.tensor([inputs_of(row) for row in self.rows])
        low, high, best = 1, sum(sizes), torch.zeros(len(sizes), dtype=torch.int64)
        while low <= high:
            middle = (low + high) // 2
            picks = select(lambda number: totals[number].clone(), sizes, middle)
            counts = picks.tensor.bincount(minlength=len(sizes)).cpu()
            each = torch.minimum((counts / neurons).round().long(), limits)
            if int((each * neurons).sum()) <= self.k:
                low, best = middle + 1, each
            else:
                high = middle - 1
        if not int(best.sum()):  # no matrix reaches half of its neurons: the budget goes to where most of the best are
            strongest = int((counts / neurons).argmax())
            best[strongest] = max(1, min(self.k // int(neurons[strongest]), int(limits[strongest])))
        return best.tolist()
