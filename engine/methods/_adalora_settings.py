"""AdaLoRA's settings."""

from __future__ import annotations

from pydantic import Field

from engine.methods._peft import MAX_RANK, AdapterConfig


class AdaLoRAConfig(AdapterConfig):
    """Settings of AdaLoRA."""

    rank: int = Field(
        4,
        ge=1,
        le=MAX_RANK,
        title="Final mean rank",
        description="Ranks left per matrix, on average, when pruning ends.",
        json_schema_extra={"source": "this lab; peft's default is 8", "budget": True},
    )
    total_rank: int | None = Field(
        None,
        ge=1,
        title="Final ranks in all",
        description="Ranks left in the whole network; if given, it replaces the mean. A budget fills it in.",
        json_schema_extra={"source": "this lab", "budget": True, "level": "advanced"},
    )
    initial_rank: int | None = Field(
        None,
        ge=1,
        le=MAX_RANK,
        title="Initial rank",
        description="Rank of every matrix at the start; empty: one and a half times the final mean.",
        json_schema_extra={"source": "authors' advice", "level": "advanced"},
    )
    tinit: float = Field(
        0.1,
        ge=0,
        title="Steps before pruning",
        description="Below 1 a share of the run, else a number of steps.",
        json_schema_extra={"source": "authors' advice: 5 to 10 %"},
    )
    tfinal: float = Field(
        0.3,
        ge=0,
        title="Steps after pruning",
        description="With the ranks fixed. Below 1 a share of the run, else a number of steps.",
        json_schema_extra={"source": "authors' advice: 20 to 50 %"},
    )
    delta_t: int = Field(
        1,
        ge=1,
        le=10_000,
        title="Steps between prunings",
        description="Between two of them, pruned ranks grow back for a while.",
        json_schema_extra={"source": "peft", "level": "advanced"},
    )
    beta1: float = Field(
        0.85,
        gt=0,
        lt=1,
        title="Smoothing of sensitivity",
        description="Share of the old value kept at each step.",
        json_schema_extra={"source": "paper; peft", "level": "advanced"},
    )
    beta2: float = Field(
        0.85,
        gt=0,
        lt=1,
        title="Smoothing of uncertainty",
        description="Share of the old value kept at each step.",
        json_schema_extra={"source": "paper; peft", "level": "advanced"},
    )
    orthogonality: float = Field(
        0.5,
        ge=0,
        le=100,
        title="Orthogonality",
        description="Weight of the penalty that keeps the ranks of a matrix independent of each other.",
        json_schema_extra={"source": "peft", "level": "advanced"},
    )
