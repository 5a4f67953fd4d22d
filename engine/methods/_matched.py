"""What methods share that train as many single weights per matrix as LoRA of a given rank would add to it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._static import StaticMask
from engine.methods.contract import MethodConfig, largest
from engine.models.architecture import Architecture, Parameter


def rank_field(source: str) -> Any:
    """The setting that says which LoRA is matched."""
    return Field(
        4,
        ge=1,
        le=4096,
        title="Rank to match",
        description="Each matrix trains as many weights as LoRA of this rank would add to it.",
        json_schema_extra={"source": source, "budget": True},
    )


class MatchesLora(StaticMask):
    """Selects in the linear layers of the blocks, by a rank of LoRA to match."""

    composes = False

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears()

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return sum(_count(row, config.rank) for row in architecture.linears())

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The highest rank that `target` allows.

        Raises:
            BudgetError: when rank 1 is too much.
        """

        def size(rank: int) -> int:
            return cls.size(architecture, config.model_copy(update={"rank": rank}))

        found = largest(size, 1, max(min(row.shape) for row in architecture.linears()), target)
        if found is None:
            raise BudgetError(
                f"{cls.title} trains at least {size(1):,} parameters here: as many as LoRA of rank 1.",
                f"Ask for at least {size(1):,}, or choose another method.",
            )
        return config.model_copy(update={"rank": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        whole = [row for row in architecture.linears() if _count(row, config.rank) == row.size]
        return [f"At rank {config.rank} all weights of {len(whole)} matrices are selected."] if whole else []

    def quotas(self) -> list[int]:
        """How many weights each matrix trains."""
        config: Any = self.config
        return [_count(row, config.rank) for row in self.rows]


def _count(row: Parameter, rank: int) -> int:
    """As many as LoRA has on this matrix, at most all of it."""
    return min(rank * sum(row.shape), row.size)
