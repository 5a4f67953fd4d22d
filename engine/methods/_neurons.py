"""What methods share that train the same number of incoming weights of every neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._static import StaticMask
from engine.methods.contract import MethodConfig, largest
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class NeuronConfig(MethodConfig):
    """Settings of methods that count per neuron."""

    per_neuron: int = Field(
        1,
        ge=1,
        le=65_536,
        title="Weights per neuron",
        description="How many incoming weights of every output neuron are trained, in each linear layer of the blocks.",
        json_schema_extra={"budget": True, "source": "authors' smallest setting"},
    )


def inputs_of(row: Parameter) -> int:
    """Incoming weights of a neuron of this matrix."""
    return row.shape[0] if row.transposed else row.shape[1]


def neurons_of(row: Parameter) -> int:
    """Output neurons of this matrix."""
    return row.size // inputs_of(row)


def best_inputs(row: Parameter, scores: torch.Tensor, count: int) -> torch.Tensor:
    """Flat positions in a matrix, ascending, of the `count` best incoming weights of every neuron.

    Args:
        row: the matrix; `scores` has its entries, flat.
    """
    from engine.sparse.selection import best_of_each_row

    table = scores.view(row.shape)
    if not row.transposed:
        return best_of_each_row(table, count)
    chosen = best_of_each_row(table.T.contiguous(), count)
    neuron, source = chosen // row.shape[0], chosen % row.shape[0]
    return (source * row.shape[1] + neuron).sort().values


class PerNeuron(StaticMask):
    """Selects a fixed number of incoming weights per neuron of every linear layer, by a score."""

    composes = False
    Config: ClassVar[type[MethodConfig]] = NeuronConfig

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears()

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return sum(cls.count(row, config) for row in cls.trainables(architecture, config))

    @classmethod
    def count(cls, row: Parameter, config: Any) -> int:
        """Selected entries of one tensor."""
        return min(config.per_neuron, inputs_of(row)) * neurons_of(row)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The most weights per neuron that `target` allows.

        Raises:
            BudgetError: when one per neuron is too many.
        """

        def size(per_neuron: int) -> int:
            return cls.size(architecture, config.model_copy(update={"per_neuron": per_neuron}))

        most = max((inputs_of(row) for row in architecture.linears()), default=1)
        found = largest(size, 1, most, target)
        if found is None:
            raise BudgetError(
                f"{cls.title} trains at least {size(1):,} parameters here: one for each neuron.",
                f"Ask for at least {size(1):,}, or choose another method.",
            )
        return config.model_copy(update={"per_neuron": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        return []

    def choose_per_neuron(self, scores: Callable[[int], torch.Tensor]) -> None:
        """Select every neuron's best incoming weights, and all of a tensor that is no matrix.

        Args:
            scores: gives one tensor's scores by its number, fp32 and flat, not negative.
        """
        import torch

        tensors, indices = [], []
        for number, row in enumerate(self.rows):
            index = self._best(row, scores(number))
            tensors.append(torch.full_like(index, number))
            indices.append(index)
        self.fix(torch.cat(tensors), torch.cat(indices))

    def _best(self, row: Parameter, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if len(row.shape) < 2:
            return torch.arange(row.size, device=scores.device)
        config: Any = self.config
        return best_inputs(row, scores, min(config.per_neuron, inputs_of(row)))
