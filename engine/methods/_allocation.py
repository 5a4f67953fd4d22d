"""AdaLoRA's allocation of ranks: the budget's schedule, the scores of triplets, and the mask.

A triplet is one rank of one matrix: a row of A, a column of B and their factor in E. The rules
are those of peft's allocator, step for step (tested against it), written so that a step needs a
few launches and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import SpecError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Triplets = tuple[nn.Parameter, nn.Parameter, nn.Parameter]


@dataclass(frozen=True)
class CubicSchedule:
    """How many triplets of the whole network may stay, after each step counted from 1.

    Attributes:
        start, final: triplets before and after pruning.
        initial: steps without pruning at the beginning.
        settled: steps with the final mask fixed at the end.
        steps: steps of the run.
        every: steps between two prunings.
    """

    start: int
    final: int
    initial: int
    settled: int
    steps: int
    every: int

    @property
    def decided(self) -> int:
        """The step at which the last mask is made."""
        return self.steps - self.settled

    def budget(self, step: int) -> int:
        """Triplets allowed after `step` steps (0: before the first)."""
        if step <= self.initial:
            return self.start
        if step >= self.decided:
            return self.final
        left = 1 - (step - self.initial) / (self.decided - self.initial)
        return int((self.start - self.final) * left**3 + self.final)

    def prunes(self, step: int) -> bool:
        """Whether a new mask is made after `step` steps."""
        return step == self.decided or (self.initial < step < self.decided and step % self.every == 0)


class Allocator:
    """Keeps the scores and the mask of AdaLoRA's triplets.

    Args:
        triplets: A (r, in), B (out, r) and E (r, 1) of each adapted matrix.
        schedule: the budget over the run.
        beta1, beta2: smoothing of sensitivity and of uncertainty.
    """

    def __init__(self, triplets: Sequence[Triplets], schedule: CubicSchedule, beta1: float, beta2: float) -> None:
        import torch

        self.schedule = schedule
        self.done = 0
        self._triplets = triplets
        self._beta1, self._beta2 = beta1, beta2
        self._flat: list[torch.Tensor] = [tensor for triplet in triplets for tensor in triplet]
        self._importance = [torch.zeros_like(tensor) for tensor in self._flat]
        self._uncertainty = [torch.zeros_like(tensor) for tensor in self._flat]
        rank = triplets[0][2].shape[0]
        self.mask = torch.ones(len(triplets), rank, dtype=torch.bool, device=triplets[0][2].device)
        """bool (M, r): triplets that the last allocation kept."""

    def after_step(self) -> None:
        """Score the step just taken, from its gradients, and prune when it is time.

        Must follow the optimizer's step, which would otherwise bring pruned factors back.
        """
        import torch

        self.done += 1
        with torch.no_grad():
            if self.done < self.schedule.decided:
                self._score()
            if self.schedule.prunes(self.done):
                self.mask = self._keep_best(self.schedule.budget(self.done))
                self._apply()
            elif self.done > self.schedule.decided:
                self._apply()

    def scores(self) -> torch.Tensor:
        """Score of every triplet, (M, r): its factor's, plus the means over its row of A and its column of B."""
        import torch

        elements = torch._foreach_mul(self._importance, self._uncertainty)
        rows = []
        for place in range(0, len(elements), 3):
            row, column, factor = elements[place : place + 3]
            rows.append(factor.view(-1) + (row.mean(1) + column.mean(0)))
        return torch.stack(rows)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Scores, mask and steps done."""
        import torch

        state = {"mask": self.mask, "done": torch.tensor(self.done)}
        for place in range(len(self._flat)):
            state[f"importance.{place}"] = self._importance[place]
            state[f"uncertainty.{place}"] = self._uncertainty[place]
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.mask.copy_(state["mask"])
        self.done = int(state["done"])
        for place in range(len(self._flat)):
            self._importance[place].copy_(state[f"importance.{place}"])
            self._uncertainty[place].copy_(state[f"uncertainty.{place}"])

    def _score(self) -> None:
        """Smooth the sensitivity |w dL/dw| of every element, and its distance from the smoothed one."""
        import torch

        gradients = [tensor.grad for tensor in self._flat if tensor.grad is not None]
        if len(gradients) < len(self._flat):
            raise SpecError(
                "AdaLoRA needs the gradients of its own matrices, and another method has taken them.",
                "Put the outer method on LoRA instead.",
            )
        sensitivity = torch._foreach_abs(torch._foreach_mul(self._flat, gradients))
        torch._foreach_mul_(self._importance, self._beta1)
        torch._foreach_add_(self._importance, torch._foreach_mul(sensitivity, 1 - self._beta1))
        surprise = torch._foreach_abs(torch._foreach_sub(sensitivity, self._importance))
        torch._foreach_mul_(self._uncertainty, self._beta2)
        torch._foreach_add_(self._uncertainty, torch._foreach_mul(surprise, 1 - self._beta2))

    def _keep_best(self, budget: int) -> torch.Tensor:
        """The mask of the `budget` triplets with the highest scores; of equal ones none at the threshold stays."""
        scores = self.scores()
        # Sorting, not kthvalue: that one has no deterministic version on a GPU.
        threshold = scores.flatten().sort().values[scores.numel() - budget - 1]
        return scores > threshold

    def _apply(self) -> None:
        for (_, _, factor), keep in zip(self._triplets, self.mask, strict=True):
            factor.masked_fill_(~keep.unsqueeze(1), 0.0)
