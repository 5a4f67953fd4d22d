"""Counts of weights over the size of their value and of their gradient, on logarithmic axes.

The exponent of a floating-point number is the whole part of its logarithm, so that bins of a factor
of two cost a shift; those of the square of a number are bins of a factor of the square root of two.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.sparse.scores import d3

WEIGHT_BINS, GRADIENT_BINS = 48, 44
"""Bins of |weight|, half an octave wide from 2^-20 to 2^4, and of |gradient|, an octave from 2^-40 to 2^4."""
_WEIGHT_LOW, _GRADIENT_LOW = -40, -40
_BIAS, _MANTISSA, _SIGNLESS = 127, 23, 0x7FFFFFFF


def edges() -> tuple[np.ndarray, np.ndarray]:
    """Ends of the bins of |weight|, float64 (49,), and of |gradient|, (45,); the last ones hold all above, too."""
    return (
        2.0 ** ((_WEIGHT_LOW + np.arange(WEIGHT_BINS + 1)) / 2),
        2.0 ** (_GRADIENT_LOW + np.arange(GRADIENT_BINS + 1)),
    )


class PlaneCounts:
    """Adds up, tensor by tensor, how many weights fall into each bin; the numbers stay on the device."""

    def __init__(self, device: torch.device | str) -> None:
        self._table = torch.zeros((GRADIENT_BINS + 1) * (WEIGHT_BINS + 1), dtype=torch.int64, device=device)

    def add(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """Count weights, fp32 (n,), by their values and gradients; neither is changed."""
        x = (weight * weight).view(torch.int32).bitwise_right_shift_(_MANTISSA)
        x.sub_(_BIAS + _WEIGHT_LOW - 1).clamp_(0, WEIGHT_BINS)
        y = gradient.contiguous().view(torch.int32).bitwise_and(_SIGNLESS).bitwise_right_shift_(_MANTISSA)
        y.sub_(_BIAS + _GRADIENT_LOW - 1).clamp_(0, GRADIENT_BINS)
        place = y.mul_(WEIGHT_BINS + 1).add_(x)
        self._table += torch.bincount(place, minlength=len(self._table))

    def table(self) -> np.ndarray:
        """int64 (gradient bins, weight bins), without what is too small for the axes or exactly 0."""
        return self._table.view(GRADIENT_BINS + 1, WEIGHT_BINS + 1)[1:, 1:].cpu().numpy()


def lowest_score(weight: torch.Tensor, gradient: torch.Tensor, power: float, exp: float, eps: float) -> float:
    """The lowest score among weights, fp32 (n,) with n at least 1: the threshold, when these are the chosen ones."""
    return float(d3(gradient, weight, power, exp, eps).min())
