"""Importance scores of single weights, always in fp32: half precision would make thousands of ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from engine.sparse.gradient import StreamedGradient

TINY = 1e-18
"""Below this the square of a gradient leaves the range of fp32, so that a norm may round to 0."""


def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """``|theta|``, flat (n,), fp32. Small is important: PaFi (Liao et al., 2023)."""
    return weight.detach().reshape(-1).float().abs()


def d3(gradient: torch.Tensor, weight: torch.Tensor, power: float, exp: float, eps: float) -> torch.Tensor:
    """``|g|^power / (|theta| + eps)^exp``, the score of ID3 (Agarwal et al., 2025).

    Args:
        gradient, weight: of one shape, fp32.
        power: 1 in the authors' code, 2 on the lecture's slide.
        exp: weight of the magnitude; 0 leaves the gradient alone.
        eps: positive; keeps weights that are exactly 0 from scoring infinitely high.
    """
    if power == exp == 1 and gradient.is_cuda:
        return _d3_in_one_pass()(gradient, weight, eps=eps)
    if exp == 0:
        return gradient.abs() if power == 1 else gradient.abs().pow_(power)
    shrink = weight.abs().add_(eps)
    if exp != 1:
        shrink = shrink.pow_(exp)
    if power == 1:  # one buffer, not two, and the same bits
        return torch.div(gradient, shrink, out=shrink).abs_()
    return gradient.abs().pow_(power).div_(shrink)


@cache
def _d3_in_one_pass() -> Callable[..., torch.Tensor]:
    """The plain score as one kernel, which reads and writes a third of what four operations do; the same bits."""
    code = "template <typename T> T d3(T g, T w, T eps) { return fabs(g) / (fabs(w) + eps); }"
    return torch.cuda.jiterator._create_jit_fn(code, eps=0.0)


def d3_bound(norm: torch.Tensor, power: float, exp: float, eps: float) -> torch.Tensor:
    """No entry with ``|g| <= norm`` scores higher than this, whatever its weight; needs ``exp >= 0``.

    The slack covers the rounding of the norm and of the powers.
    """
    return (norm + TINY).pow(power).mul_(1.0001 / eps**exp)


def add_gradients(totals: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    """Add gradients, sign and all, to flat fp32 `totals`; dense, sparse by rows, or None."""
    for total, gradient in zip(totals, gradients, strict=True):
        if gradient is None:
            continue
        held = StreamedGradient.of(gradient)
        if held.rows is None:
            total.add_(held.values)
        else:
            total.view(-1, held.width).index_add_(0, held.rows, held.values.view(-1, held.width))


def add_squares(fisher: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], share: float = 1.0) -> None:
    """Add ``share * g^2`` of one example to the diagonal Fisher information, tensor by tensor.

    Args:
        fisher: fp32 accumulators, flat (n,).
        gradients: of the log-likelihood, dense or sparse by rows; None where a tensor took no part.
        share: probability of the label that the gradient belongs to; 1 for an observed label.
    """
    for total, gradient in zip(fisher, gradients, strict=True):
        if gradient is None:
            continue
        held = StreamedGradient.of(gradient)
        if held.rows is None:
            total.addcmul_(held.values, held.values, value=share)
        else:
            total.view(-1, held.width).index_add_(0, held.rows, held.values.square().view(-1, held.width), alpha=share)
