"""AdaLoRA: low-rank changes in the form of an SVD, pruned to where rank is needed. Layers and export are peft's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.errors import BudgetError, SpecError
from engine.methods._adalora_settings import AdaLoRAConfig
from engine.methods._allocation import Allocator, CubicSchedule
from engine.methods._peft import ADAPTER, MAX_RANK, PeftMethod, in_out
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO_CPU, LearningRate, MethodConfig, Paper, largest
from engine.methods.observed import Ranks
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

START_RATIO = 1.5
"""Initial rank over final rank, as the authors advise."""
FEWEST_PRUNINGS = 10
"""Below this the schedule is too coarse to say much."""


@register
class AdaLoRA(PeftMethod):
    r"""Gives every matrix more rank than it may keep, and takes back the ranks that matter least.

    ### Why it exists

    LoRA gives every matrix the same rank, although some need more than others. AdaLoRA writes the
    change like a singular value decomposition: a sum of triplets, each one direction read, one
    direction written, and a factor between them. It starts with one and a half times the triplets
    it may keep and scores each by how strongly the loss depends on it, times how much that
    dependence varies from step to step, since an unsettled triplet may still turn out useful. The
    factors of the weakest in the whole network are set to zero, a few more at every step, along a
    cubic curve. A penalty keeps the directions of a matrix orthogonal, so that triplets can be
    judged one by one.

    ### What to watch

    The rank map. All matrices begin equal; then ranks leave some of them and stay in others, often
    values rather than queries, and later layers rather than early ones. No matrix ever gets more
    than it began with: rank is only taken away, though a pruned triplet can come back while pruning
    lasts. The curve above the map is the budget that forces it.

    ### When it fails

    In a short run the scores are noise, and so is the allocation: run it with two seeds and see
    whether they agree. If the ranks never move, pruning never began. It needs a higher learning
    rate than LoRA, since its three factors start almost at zero, and while it trains it holds more
    parameters than it keeps, with two running averages for each.
    """

    name = "adalora"
    title = "AdaLoRA"
    paper = Paper(
        title="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        authors="Zhang, Chen, Bukharin, Karampatziakis, He, Cheng, Chen, Zhao",
        venue="ICLR 2023",
        year=2023,
        url="https://arxiv.org/abs/2303.10512",
    )
    formula = (
        r"W = W_0 + \frac{\alpha}{r_0} P \Lambda Q, \qquad "
        r"b(t) = b_T + (b_0 - b_T)\left(1 - \frac{t - t_i}{T - t_i - t_f}\right)^{3}"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"P, Q": "directions written and read, kept nearly orthogonal (B and A in the tables)",
        r"\Lambda": "one factor for each triplet, starting at zero (E in the tables)",
        r"r_0": "initial rank of every matrix; the divisor stays the same when ranks are pruned",
        r"b(t)": "triplets that may stay in the whole network after step t",
        r"b_0, b_T": "triplets at the start and at the end",
        r"t_i, t_f": "steps before pruning begins and after it ends",
        r"T": "steps of the run",
        r"\alpha": "scale of the update",
    }
    lr = LearningRate(
        8e-3,
        f"best of 1e-3, 2e-3, 4e-3 and 8e-3 by {TUNED_BY}, budget 26,112",
        {"nano-bert": LearningRate(1e-2, f"{TUNED_ON_NANO_CPU}, budget 5,888")},
    )
    notes = (
        "Ranks are pruned, never added: slides that say ranks are increased where needed describe the effect, not the "
        "rule, and the start is a larger rank, not full rank. The penalty is the mean of the Frobenius norms, not "
        "squared, as in the authors' code and peft; the paper writes it squared. The final number of triplets may be "
        "any whole number, where peft takes a multiple of the number of matrices. The budget counts what is kept at "
        "the end; the peak while training is shown beside it. Where adapted matrices differ in shape, the count "
        "depends on which of them keep their ranks: the figure is then the largest possible."
    )
    views: ClassVar[tuple[str, ...]] = ("rank", "change")
    captured = "gradients"
    not_capturable = "the number of ranks it prunes changes from step to step"
    Config: ClassVar[type[MethodConfig]] = AdaLoRAConfig

    # --- declaration ---------------------------------------------------------------------

    @classmethod
    def final_total(cls, architecture: Architecture, config: Any) -> int:
        """Triplets kept in the whole network when pruning ends."""
        matrices = len(cls.targets_of(architecture, config))
        return config.rank * matrices if config.total_rank is None else config.total_rank

    @classmethod
    def start_rank(cls, architecture: Architecture, config: Any) -> int:
        """Triplets of each matrix at the start.

        Raises:
            SpecError: when they are no more than are kept, so that nothing could be pruned.
        """
        total = cls.final_total(architecture, config)
        matrices = len(cls.targets_of(architecture, config))
        given = config.initial_rank
        start = _start_rank(total, matrices) if given is None else given
        if start * matrices <= total:
            raise SpecError(
                f"AdaLoRA would start with {start * matrices} ranks and keep {total}: there is nothing to prune.",
                f"Set `initial_rank` to at least {total // matrices + 1}, or leave it out.",
            )
        return int(start)

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        rank = cls.start_rank(architecture, config)
        return tuple(added for row in cls.targets_of(architecture, config) for added in _added(row, rank))

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        """Scalars of the triplets that are kept; with unequal shapes, the most they can come to."""
        left = cls.final_total(architecture, config)
        rank = cls.start_rank(architecture, config)
        size = 0
        for cost in sorted((_cost(row) for row in cls.targets_of(architecture, config)), reverse=True):
            kept = min(rank, left)
            size += kept * cost
            left -= kept
        return size

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in cls.trainables(architecture, config))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The largest number of triplets, any whole number, whose size is not above the target.

        Raises:
            BudgetError: when a single triplet is above it.
        """
        targets = cls.targets_of(architecture, config)

        def with_total(total: int) -> MethodConfig:
            return config.model_copy(update={"total_rank": total})

        if config.initial_rank is None:
            widest = min(MAX_RANK, max(min(row.shape) for row in targets))
            ceiling = len(targets) * widest
            most = largest(lambda total: _start_rank(total, len(targets)), 1, ceiling, widest) or 1
        else:
            most = max(1, len(targets) * config.initial_rank - 1)
        total = largest(lambda total: cls.size(architecture, with_total(total)), 1, most, target)
        if total is None:
            least = cls.size(architecture, with_total(1))
            raise BudgetError(
                f"{cls.title} trains at least {least:,} parameters on these matrices: a single rank.",
                f"Ask for at least {least:,}, or choose another method.",
            )
        return with_total(total)

    @classmethod
    def schedule_of(cls, architecture: Architecture, config: Any, steps: int) -> CubicSchedule:
        """The budget's course over a run.

        Raises:
            SpecError: when the run is too short for it.
        """
        start = cls.start_rank(architecture, config) * len(cls.targets_of(architecture, config))
        initial, settled = _count(config.tinit, steps), _count(config.tfinal, steps)
        schedule = CubicSchedule(start, cls.final_total(architecture, config), initial, settled, steps, config.delta_t)
        # One scored step at least has to come before the last mask.
        if schedule.decided <= max(initial, 1):
            raise SpecError(
                f"AdaLoRA cannot prune in {steps} steps with {initial} before pruning and {settled} after it.",
                "Train for more steps, or lower `tinit` or `tfinal`.",
            )
        return schedule

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        """As for every method; refuses a run that is too short to prune.

        Raises:
            SpecError: from `schedule_of`.
        """
        found = super().warnings(architecture, config, steps)
        schedule = cls.schedule_of(architecture, config, steps)
        prunings = sum(schedule.prunes(step) for step in range(1, steps + 1))
        if prunings < FEWEST_PRUNINGS:
            found.append(f"AdaLoRA prunes only {prunings} times in this run: its allocation will say little.")
        costs = {_cost(row) for row in cls.targets_of(architecture, config)}
        if len(costs) > 1:
            found.append("The adapted matrices differ in shape, so the count kept at the end is known only then.")
        return found

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """As for every peft method; the schedule is checked first.

        Raises:
            SpecError: when the run is too short, or the model has no matrix to adapt.
        """
        config: Any = self.config
        schedule = self.schedule_of(self.context.architecture, config, self.context.steps)
        model = super().attach(model)
        triplets = [
            (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.lora_E[ADAPTER]) for layer in self._layers.values()
        ]
        self._triplets = triplets
        self.allocator = Allocator(triplets, schedule, config.beta1, config.beta2)
        return model

    def kept(self) -> int:
        """What the triplets kept at the end hold: known only then where matrices differ in shape."""
        costs = [_cost(row) for row in self.targets_of(self.context.architecture, self.config)]
        return sum(cost * int(kept) for cost, kept in zip(costs, self.allocator.mask.sum(1).tolist(), strict=True))

    def optimizer_scalars(self) -> int:
        """The two running averages of every scalar, which score the triplets."""
        return 2 * sum(tensor.numel() for triplet in self._triplets for tensor in triplet)

    def peft_config(self) -> Any:
        from peft import AdaLoraConfig

        config: Any = self.config
        architecture, steps = self.context.architecture, self.context.steps
        targets = self.targets_of(architecture, config)
        return AdaLoraConfig(
            target_r=max(1, round(self.final_total(architecture, config) / len(targets))),
            init_r=self.start_rank(architecture, config),
            tinit=_count(config.tinit, steps),
            tfinal=_count(config.tfinal, steps),
            deltaT=config.delta_t,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orthogonality,
            total_step=steps,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=[row.module for row in targets],
            fan_in_fan_out=targets[0].transposed,
        )

    def extra_loss(self) -> torch.Tensor | None:
        """Mean over all P and Q of the Frobenius distance of their Gram matrix from the identity, weighted."""
        import torch

        weight = float(self.config.orthogonality)  # type: ignore[attr-defined]
        if weight == 0:
            return None
        grams = [gram for a, b, _ in self._triplets for gram in (a @ a.T, b.T @ b)]
        stacked = torch.stack(grams)
        identity = torch.eye(stacked.shape[-1], device=stacked.device, dtype=stacked.dtype)
        return weight * torch.linalg.vector_norm(stacked - identity, dim=(1, 2)).mean()

    def after_step(self, step: int) -> None:
        self.allocator.after_step()

    def ranks(self) -> Ranks:
        """Ranks now: those the last mask kept, and those whose factor is not zero."""
        import torch

        nonzero = torch.stack([factor != 0 for _, _, factor in self._triplets])
        allocator = self.allocator
        return Ranks(
            parameters=self.targets_of(self.context.architecture, self.config),
            allocated=allocator.mask.sum(1).cpu().numpy().astype(np.int32),
            active=nonzero.sum((1, 2)).cpu().numpy().astype(np.int32),
            budget=allocator.schedule.budget(allocator.done),
            final_budget=allocator.schedule.final,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.allocator.load_state_dict(state)

    def install(self, result: dict[str, torch.Tensor]) -> None:
        super().install(result)
        for keep, (_, _, factor) in zip(self.allocator.mask, self._triplets, strict=True):
            keep.copy_((factor != 0).view(-1))

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """As for every peft method; triplets whose factor is zero are left out of the file."""
        self.peft.peft_config[ADAPTER].rank_pattern = {
            f"{row.module}.lora_E.{ADAPTER}": (factor != 0).view(-1).tolist()
            for row, (_, _, factor) in zip(self.ranks().parameters, self._triplets, strict=True)
        }
        super().save_peft(model, folder)


def _start_rank(total: int, matrices: int) -> int:
    """One and a half times the final mean, rounded half up, and more ranks in all than are kept."""
    return max(math.floor(START_RATIO * total / matrices + 0.5), total // matrices + 1)


def _count(value: float, steps: int) -> int:
    """Steps meant by a setting that is a share below 1 and a count from 1."""
    return round(value * steps) if value < 1 else round(value)


def _cost(row: Parameter) -> int:
    """Scalars of one triplet."""
    return sum(row.shape) + 1


def _added(row: Parameter, rank: int) -> list[Parameter]:
    inputs, outputs = in_out(row)
    return [
        Parameter(f"{row.module}.lora_A.{ADAPTER}", (rank, inputs), row.layer, row.role, "A"),
        Parameter(f"{row.module}.lora_B.{ADAPTER}", (outputs, rank), row.layer, row.role, "B"),
        Parameter(f"{row.module}.lora_E.{ADAPTER}", (rank, 1), row.layer, row.role, "E"),
    ]
