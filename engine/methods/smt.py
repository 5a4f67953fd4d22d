"""SMT: train the square blocks of the attention matrices that the task's gradients point at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._scored import GradientScored, ScoringConfig
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch


class SmtConfig(ScoringConfig):
    """Settings of SMT."""

    blocks: int = Field(
        6,
        ge=1,
        le=10_000_000,
        title="Blocks",
        description="How many square blocks train, of all matrices together.",
        json_schema_extra={"source": "this lab: about the common budget of nano-bert", "budget": True},
    )
    side: int = Field(
        32,
        ge=2,
        le=1_024,
        title="Side of a block",
        description="Rows and columns of a block. Matrices that it does not divide take no part.",
        json_schema_extra={"source": "this lab; the authors take 256 on LLaMA"},
    )
    score: Literal["mean_abs", "abs_mean"] = Field(
        "mean_abs",
        title="Score of a block",
        description=(
            "mean_abs: size of the mean gradient, in which opposite signs cancel. abs_mean: mean size of the gradients."
        ),
        json_schema_extra={"source": "authors' code, whose names these are"},
    )
    targets: Literal["attention", "all"] = Field(
        "attention",
        title="Which matrices",
        description="attention: those of queries, keys and values. all: every linear layer of the blocks.",
        json_schema_extra={"source": "authors' scripts"},
    )


@register
class SMT(GradientScored):
    r"""Cuts the attention matrices into square blocks and trains those that the task pulls at most.

    ### Why it exists

    Single weights scattered over a matrix save memory, but no arithmetic. A block can be cut out: its
    gradient is a small dense product. SMT looks at the gradients of the task, cut into blocks, and
    trains the best of them, of all matrices in one ranking. Its authors found that attention deserves
    the budget, and most of all the values.

    ### What to watch

    In the map of one matrix the mask is a chessboard with few filled squares. See how they are spread
    over queries, keys and values, and over depth. Change the score: with signs, a block in which
    gradients disagree counts little, however large they are.

    ### When it fails

    A block is taken as a whole, with all the weights in it that the task does not need; the larger
    its side, the coarser the choice. With a small budget a handful of blocks is all there is, and
    most layers stay as they are.
    """

    name = "smt"
    title = "SMT"
    paper = Paper(
        title="Sparse Matrix in Large Language Model Fine-tuning",
        authors="He et al.",
        venue="ICLR 2025",
        year=2025,
        url="https://arxiv.org/abs/2405.15525",
    )
    formula = r"s_B = \Bigl|\tfrac{1}{|B|} \sum_{j \in B} G_j\Bigr| \;\text{or}\; \tfrac{1}{|B|} \sum_{j \in B} |G_j|"
    symbols: ClassVar[dict[str, str]] = {
        r"s_B": "score of a block; the n best of all matrices are trained",
        r"G_j": "sum of the gradients of weight j over the scored examples",
        r"B": "a square block of a matrix",
    }
    lr = LearningRate(3e-2, f"best of 3e-4 to 1e-1 in half decades by {TUNED_BY}, own settings")
    notes = (
        "The authors first train everything for 100 steps, add up those gradients, and keep what the weights have "
        "moved until then. Here the gradients of single examples at the pretrained weights choose, and everything "
        "outside the blocks stays as it was. In their code `mean_abs` is the absolute value of the mean and `abs_mean` "
        "the mean of absolute values, and attention always uses the first. Blocks of 256 need wide matrices; the side "
        "is a setting here. The same entries train as if blocks were cut out, without the saving in arithmetic."
    )
    Config: ClassVar[type[MethodConfig]] = SmtConfig
    composes = False
    scattered = False

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        rows = architecture.linears(["q", "k", "v", "qkv"]) if config.targets == "attention" else architecture.linears()
        return tuple(row for row in rows if all(length % config.side == 0 for length in row.shape))

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return min(config.blocks * config.side**2, cls.eligible(architecture, config))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many blocks as `target` allows.

        Raises:
            BudgetError: when one is too large, or no matrix can be cut so.
        """
        most = cls.eligible(architecture, config) // config.side**2
        if not most:
            raise BudgetError(
                f"No matrix here can be cut into blocks of {config.side} by {config.side}.",
                "Choose a side that divides the model's width.",
            )
        if target < config.side**2:
            raise BudgetError(
                f"One block alone has {config.side**2:,} weights.",
                f"Ask for at least {config.side**2:,}, or choose a smaller `side`.",
            )
        return config.model_copy(update={"blocks": min(most, target // config.side**2)})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = cls.eligible(architecture, config) // config.side**2
        if not most:
            return [f"No matrix here can be cut into blocks of {config.side} by {config.side}: only the head trains."]
        return [f"This model has {most:,} such blocks: all of them train."] if config.blocks > most else []

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Rank the blocks of all matrices, and select what is in the best."""
        import torch

        from engine.sparse.selection import select

        config: Any = self.config
        if not self.rows:
            return
        scores = [_scores(total.view(row.shape), config) for row, total in zip(self.rows, totals, strict=True)]
        picks = select(lambda number: scores[number].clone(), [len(part) for part in scores], self.k // config.side**2)
        tensors, indices = [], []
        for number, row in enumerate(self.rows):
            index = _entries(row, picks.index[picks.tensor == number], config.side)
            tensors.append(torch.full_like(index, number))
            indices.append(index)
        self.fix(torch.cat(tensors), torch.cat(indices))


def _scores(total: torch.Tensor, config: Any) -> torch.Tensor:
    """The score of each block of a matrix, flat, row of blocks by row of blocks."""
    side = config.side
    cut = total.view(total.shape[0] // side, side, total.shape[1] // side, side).transpose(1, 2).flatten(2)
    scores = cut.mean(2).abs() if config.score == "mean_abs" else cut.abs().mean(2)
    return scores.flatten()


def _entries(row: Parameter, blocks: torch.Tensor, side: int) -> torch.Tensor:
    """Flat positions of all entries of these blocks of a matrix, ascending."""
    import torch

    width = row.shape[1]
    corner = blocks // (width // side) * side * width + blocks % (width // side) * side
    steps = torch.arange(side, device=blocks.device)
    within = (steps[:, None] * width + steps).flatten()
    return (corner[:, None] + within).flatten().sort().values
