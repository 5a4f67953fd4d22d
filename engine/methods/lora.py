"""LoRA: the change of a weight matrix is a product of two thin ones. Layers and export are peft's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from engine.errors import BudgetError, SpecError
from engine.methods._peft import ADAPTER, MAX_RANK, AdapterConfig, PeftMethod, in_out
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, MethodConfig, Paper, Stacked, largest
from engine.methods.observed import Product
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter


class LowRankConfig(AdapterConfig):
    """Settings of LoRA and DoRA."""

    rank: int = Field(
        8,
        ge=1,
        le=MAX_RANK,
        title="Rank",
        description="Width of the two thin matrices; the update can change that many directions.",
        json_schema_extra={"source": "LoRA paper, RoBERTa on GLUE", "budget": True},
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict,
        title="Ranks of single matrices",
        description="Module name to rank, where it differs from the rank above; a budget fills it in.",
        json_schema_extra={"source": "this lab", "budget": True, "level": "advanced"},
    )

    @field_validator("rank_pattern")
    @classmethod
    def _positive(cls, pattern: dict[str, int]) -> dict[str, int]:
        for name, rank in pattern.items():
            if not 1 <= rank <= MAX_RANK:
                raise ValueError(f"the rank of {name} must be from 1 to {MAX_RANK}, not {rank}")
        return pattern


@register
class LoRA(PeftMethod):
    r"""Freezes the model and learns, beside each chosen weight matrix, a low-rank correction.

    ### Why it exists

    The change that fine-tuning makes to a weight matrix can be approximated well by a matrix of
    low rank. So instead of the change itself, LoRA learns two thin matrices whose product it is:
    for a 384 by 384 matrix, rank 2 means 1,536 numbers instead of 147,456. Gradients and optimizer
    moments are needed for these alone, an adapter is small to store, and merged into the weights it
    costs nothing when the model is used. One of the two starts at zero, so training begins exactly
    at the pretrained model.

    ### What to watch

    At the first step only B moves: while B is zero, A gets no gradient. In the view of magnitude
    and direction, matrices tend to grow and turn together. The rank of the change never exceeds
    the rank you chose, however long you train.

    ### When it fails

    When the task needs many directions at once, as new knowledge or code can, a small rank limits
    it, and more steps do not help. The update is scaled by alpha over rank: change one alone, and
    you have changed the effective learning rate as well. Where the adapters stand matters as much
    as their rank: with too few targets, a larger rank only adds parameters.
    """

    name = "lora"
    title = "LoRA"
    paper = Paper(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen",
        venue="ICLR 2022",
        year=2022,
        url="https://arxiv.org/abs/2106.09685",
    )
    formula = r"W = W_0 + \frac{\alpha}{r}\, B A, \qquad A \in \mathbb{R}^{r \times k},\; B \in \mathbb{R}^{d \times r}"
    symbols: ClassVar[dict[str, str]] = {
        r"W_0": "pretrained weight with d outputs and k inputs, frozen",
        r"A": "reads the input: r by k, starts random",
        r"B": "writes the output: d by r, starts at zero",
        r"r": "rank",
        r"\alpha": "scale of the update",
    }
    lr = LearningRate(
        1e-3,
        f"best of 1e-3, 2e-3 and 4e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(3e-3, f"{TUNED_ON_NANO}, budget 5,888")},
    )
    notes = (
        "A starts uniform within 1/sqrt(inputs), as in the authors' code and peft; the paper says Gaussian. A budget "
        "sets the largest equal rank, then gives one more rank to the cheapest matrices, in model order, while it "
        "lasts. Alpha is not changed by a budget, and every matrix keeps the scale alpha over `rank`, also those with "
        "one rank more (peft's alpha_pattern), so that no matrix learns faster than its neighbour. The paper counts "
        "the adapters alone, as this lab does."
    )
    Config: ClassVar[type[MethodConfig]] = LowRankConfig
    packs: ClassVar[Stacked] = "products"
    differs = ("rank", "rank_pattern", "alpha")

    @classmethod
    def ranks_of(cls, architecture: Architecture, config: Any) -> dict[str, int]:
        """Rank by module name, in model order.

        Raises:
            SpecError: when `rank_pattern` names a module that gets no adapter.
        """
        modules = [row.module for row in cls.targets_of(architecture, config)]
        unknown = sorted(set(config.rank_pattern) - set(modules))
        if unknown:
            raise SpecError(
                f"`rank_pattern` names {unknown[0]}, which gets no adapter here.",
                "Use full module names of the adapted matrices, or leave `rank_pattern` out.",
            )
        return {module: config.rank_pattern.get(module, config.rank) for module in modules}

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        ranks = cls.ranks_of(architecture, config)
        targets = cls.targets_of(architecture, config)
        return tuple(added for row in targets for added in cls._added(row, ranks[row.module]))

    @classmethod
    def _added(cls, row: Parameter, rank: int) -> list[Parameter]:
        """The tensors added beside one weight."""
        inputs, outputs = in_out(row)
        return [
            Parameter(f"{row.module}.lora_A.{ADAPTER}.weight", (rank, inputs), row.layer, row.role, "A"),
            Parameter(f"{row.module}.lora_B.{ADAPTER}.weight", (outputs, rank), row.layer, row.role, "B"),
        ]

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The largest equal rank, then one more for the cheapest matrices while the budget lasts.

        Raises:
            BudgetError: when rank 1 everywhere is above the target.
        """
        targets = cls.targets_of(architecture, config)

        def with_ranks(rank: int, pattern: dict[str, int]) -> MethodConfig:
            return config.model_copy(update={"rank": rank, "rank_pattern": pattern})

        most = min(MAX_RANK, max(min(row.shape) for row in targets))
        rank = largest(lambda r: cls.size(architecture, with_ranks(r, {})), 1, most, target)
        if rank is None:
            least = cls.size(architecture, with_ranks(1, {}))
            raise BudgetError(
                f"{cls.title} trains at least {least:,} parameters here: rank 1 in each of {len(targets)} matrices.",
                f"Ask for at least {least:,}, or name fewer `targets`.",
            )
        left = target - cls.size(architecture, with_ranks(rank, {}))
        return with_ranks(rank, _one_more(targets, rank, left) if rank < most else {})

    def products(self) -> list[Product]:
        return [
            Product(
                name.rpartition(".")[0],
                layer.lora_A[ADAPTER].weight,
                layer.lora_B[ADAPTER].weight,
                float(layer.scaling[ADAPTER]),
            )
            for name, layer in self._layers.items()
        ]

    def peft_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(**self._peft_settings())

    def _peft_settings(self) -> dict[str, Any]:
        config: Any = self.config
        architecture = self.context.architecture
        ranks = self.ranks_of(architecture, config)
        # peft matches these keys as regular expressions at the end of a name: escape and anchor them.
        special = {"^" + re.escape(module): rank for module, rank in ranks.items() if rank != config.rank}
        return {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": list(ranks),
            "rank_pattern": special,
            "alpha_pattern": {key: config.alpha * rank / config.rank for key, rank in special.items()},
            "fan_in_fan_out": self.targets_of(architecture, config)[0].transposed,
        }


def _one_more(targets: Sequence[Parameter], rank: int, left: int) -> dict[str, int]:
    """One more rank for the cheapest matrices, the first in model order among equals."""
    pattern = {}
    for row in sorted(targets, key=lambda row: sum(row.shape)):  # sorting keeps the order of equals
        left -= sum(row.shape)
        if left < 0:
            break
        pattern[row.module] = rank + 1
    return pattern
