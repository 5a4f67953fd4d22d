"""S2FT: train whole feed-forward channels and attention heads, drawn by lot over the depth of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from engine.errors import BudgetError
from engine.methods._neurons import inputs_of, neurons_of
from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, LearningRate, MethodConfig, Paper, largest
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from torch import nn


class S2ftConfig(MethodConfig):
    """Settings of S2FT."""

    channels: int = Field(
        32,
        ge=0,
        le=10_000_000,
        title="Feed-forward channels",
        description="Channels of all layers together whose outgoing weights train.",
        json_schema_extra={"source": "this lab; the authors take 3 per cent of LLaMA's", "budget": True},
    )
    heads: int = Field(
        0,
        ge=0,
        le=100_000,
        title="Attention heads",
        description="Heads of all layers together whose outgoing weights train.",
        json_schema_extra={"source": "authors' scripts", "level": "advanced"},
    )


@register
class S2FT(StaticMask):
    r"""Selects sparsely, computes densely: a few whole channels and heads, trained as blocks.

    ### Why it exists

    Scattered single weights save memory but no time: hardware wants blocks. S2FT picks whole units, a
    channel of the feed-forward layer or an attention head, and trains the weights that lead out of
    it. All of them together are one slice of the matrix, so that gradients and updates of the slice
    are small dense products. Which units they are is left to a lottery.

    ### What to watch

    In the map of a feed-forward matrix whole columns are selected, in others of its kind none; layers
    differ, since one lottery runs over the depth of the model. Compare it at the same budget with
    the random mask, which has the same lottery over single weights.

    ### When it fails

    It chooses blindly, so a small budget depends on luck: look at the spread over seeds. Nothing but
    outgoing weights of the chosen units moves, no embedding and no norm.
    """

    name = "s2ft"
    title = "S2FT"
    paper = Paper(
        title="S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
        authors="Yang et al.",
        venue="NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2412.06289",
    )
    formula = r"y = W x + \Delta\, x_C, \qquad \Delta \in \mathbb{R}^{d \times |C|}"
    symbols: ClassVar[dict[str, str]] = {
        r"W": "pretrained output matrix of a feed-forward or attention block",
        r"x_C": "the inputs that come from the chosen channels or heads",
        r"\Delta": "the trained change",
        r"d": "width of the model",
    }
    lr = LearningRate(3e-2, f"best of 3e-4 to 1e-1 in half decades by {TUNED_BY}, own settings")
    notes = (
        "The same entries train as in the authors' code. There the chosen units are moved next to each other, so that "
        "the slice is contiguous and its products are small; here they stay where they are and the lab's compact "
        "optimizer trains them, which gives the same weights but not the saving in arithmetic. Down- and output "
        "projections only; the authors' options for values and up-projections are left out."
    )
    Config: ClassVar[type[MethodConfig]] = S2ftConfig
    composes = False
    scattered = False

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        wanted = [role for role, count in (("o", config.heads), ("down", config.channels)) if count]
        return architecture.linears(wanted)

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        heads = sum(neurons_of(row) * width for row, width in _some(architecture, "o", config.heads))
        return heads + sum(neurons_of(row) for row, _ in _some(architecture, "down", config.channels))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many channels as `target` allows beside the heads.

        Raises:
            BudgetError: when not even one fits.
        """

        def size(channels: int) -> int:
            return cls.size(architecture, config.model_copy(update={"channels": channels}))

        most = sum(inputs_of(row) for row in architecture.linears(["down"]))
        found = largest(size, 0 if config.heads else 1, most, target)
        if found is None:
            least = size(0 if config.heads else 1)
            raise BudgetError(
                f"{cls.title} trains at least {least:,} parameters here: what leads out of one unit.",
                f"Ask for at least {least:,}, or choose another method.",
            )
        return config.model_copy(update={"channels": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = len(_units(architecture, "down"))
        if config.channels > most:
            return [f"This model has {most:,} channels: all of them train, not {config.channels:,}."]
        if config.heads or config.channels:
            return []
        return ["Neither channels nor heads are chosen: only the head trains."]

    def attach(self, model: nn.Module) -> nn.Module:
        """Draw units over all layers and select what leads out of them."""
        import torch

        config: Any = self.config
        model = super().attach(model)
        rng = np.random.Generator(np.random.PCG64(self.context.method_seed))
        numbers = {row.name: number for number, row in enumerate(self.rows)}
        tensors, indices = [], []
        for role, count in (("o", config.heads), ("down", config.channels)):
            for row, columns in _drawn(self.context.architecture, role, count, rng):
                index = torch.from_numpy(_entries(row, columns)).to(self._tensors[numbers[row.name]].device)
                tensors.append(torch.full_like(index, numbers[row.name]))
                indices.append(index)
        if indices:
            self.fix(torch.cat(tensors), torch.cat(indices))
        return model


def _units(architecture: Architecture, role: str) -> list[tuple[Parameter, int, int]]:
    """Every channel or head as (matrix, first input, number of inputs)."""
    found: list[tuple[Parameter, int, int]] = []
    for row in architecture.linears([role]):
        width = inputs_of(row) // architecture.heads if role == "o" else 1
        found.extend((row, start, width) for start in range(0, inputs_of(row), width))
    return found


def _some(architecture: Architecture, role: str, count: int) -> list[tuple[Parameter, int]]:
    """As many units as are drawn, with their widths; all units of a role have the same size."""
    return [(row, width) for row, _, width in _units(architecture, role)[:count]]


def _drawn(
    architecture: Architecture, role: str, count: int, rng: np.random.Generator
) -> list[tuple[Parameter, np.ndarray]]:
    """The inputs drawn in each matrix, ascending."""
    units = _units(architecture, role)
    by_name: dict[str, list[int]] = {}
    for place in rng.choice(len(units), min(count, len(units)), replace=False).tolist():
        row, start, width = units[place]
        by_name.setdefault(row.name, []).extend(range(start, start + width))
    return [(row, np.sort(np.array(by_name[row.name]))) for row in architecture.linears([role]) if row.name in by_name]


def _entries(row: Parameter, columns: np.ndarray) -> np.ndarray:
    """Flat positions, int64 ascending, of all weights that lead out of these inputs."""
    if row.transposed:
        return (columns[:, None] * row.shape[1] + np.arange(row.shape[1])).ravel().astype(np.int64)
    return (np.arange(row.shape[0])[:, None] * row.shape[1] + columns).ravel().astype(np.int64)
