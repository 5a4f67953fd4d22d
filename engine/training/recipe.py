"""The recipe shared by all methods: arithmetic settings, learning-rate schedule, clipping, divergence."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from engine.errors import Diverged
from engine.sparse.optimizer import BETAS, EPS
from engine.spec import TrainSpec

RECENT = 20
"""Losses averaged by the divergence guard."""


def prepare_torch(train: TrainSpec) -> None:
    """Set threads, precision and deterministic kernels for a resolved recipe."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(int(train.threads))
    torch.set_float32_matmul_precision("high" if train.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = train.precision == "tf32"
    torch.use_deterministic_algorithms(True)
    # Nothing reads memory before writing it; filling it would slow every allocation down.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at step `step` (from 0): linear up, then linear towards 0.

    The first step already moves and so does the last: the factor is never 0.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / (steps - rising + 1)


def dense_optimizer(parameters: Sequence[nn.Parameter], train: TrainSpec) -> torch.optim.AdamW | None:
    """AdamW over the dense parameters, fused; None when there are none."""
    if not parameters:
        return None
    return torch.optim.AdamW(
        list(parameters),
        lr=float(train.lr),
        betas=BETAS,
        eps=EPS,
        weight_decay=train.weight_decay,
        fused=True,
        capturable=train.execution == "graph",
    )


def clip(
    parameters: Iterable[nn.Parameter], other_square: torch.Tensor | None, largest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the dense gradients in place so that the whole norm is at most `largest`.

    Args:
        parameters: dense parameters; those without a gradient are passed over.
        other_square: sum of squares of gradients that a method consumed itself.
        largest: the bound.

    Returns:
        The norm before clipping and the scale that was applied, both 0-d.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if other_square is not None:
        norm = torch.sqrt(norm.to(other_square.device) ** 2 + other_square)
    scale = torch.clamp(largest / (norm + 1e-6), max=1.0)
    if gradients:
        torch._foreach_mul_(gradients, scale)
    return norm, scale


def check_finite(what: str, step: int, value: float) -> None:
    """Refuse a number that is not finite: from such weights nothing comes back.

    Raises:
        Diverged: with the step and what to change.
    """
    if not math.isfinite(value):
        raise Diverged(f"The {what} at step {step} is {value}.", "Lower the learning rate.")


class DivergenceGuard:
    """Raises `Diverged` when a loss is not finite, or when recent losses average far above the first.

    The bound is max(3 x the first loss, 5 ln C): with clipping a hopeless learning rate gives
    huge losses rather than NaN. A run with fewer losses than are averaged is judged by the
    validation loss of its last weights, which may also be 3 x that of its first.
    """

    def __init__(self, classes: int, first: float | None = None) -> None:
        self.classes = classes
        self.first = first
        self._untrained = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def see(self, step: int, loss: float, norm: float = 0.0) -> None:
        """Judge one training loss and the norm of its gradient.

        Raises:
            Diverged: with the step and what to change.
        """
        check_finite("loss", step, loss)
        check_finite("gradient's norm", step, norm)
        if self.first is None:
            self.first = loss
        self._recent.append(loss)
        if len(self._recent) == RECENT:
            self._check_bound(f"mean of the last {RECENT} losses", step, sum(self._recent) / RECENT)

    def see_untrained(self, loss: float) -> None:
        """Note the validation loss before the first step."""
        self._untrained = loss

    def see_last(self, step: int, loss: float) -> None:
        """Judge the validation loss after the last step, of a run too short for a mean of its losses.

        Raises:
            Diverged: with the step and what to change.
        """
        if len(self._recent) < RECENT:
            self._check_bound("validation loss", step, loss, self._untrained)

    def _check_bound(self, what: str, step: int, value: float, before: float = 0.0) -> None:
        bound = max(3 * (self.first or 0.0), 3 * before, 5 * math.log(max(self.classes, 2)))
        if value > bound:
            raise Diverged(f"The {what} at step {step} is {value:.3g}, above {bound:.3g}.", "Lower the learning rate.")

    def state(self) -> dict[str, object]:
        """Plain data for a checkpoint."""
        return {"first": self.first, "untrained": self._untrained, "recent": list(self._recent)}

    def restore(self, state: dict[str, object]) -> None:
        """Inverse of `state`."""
        self.first = state["first"]  # type: ignore[assignment]
        self._untrained = state.get("untrained", 0.0)  # type: ignore[assignment]
        self._recent.extend(state["recent"])  # type: ignore[arg-type]
