"""Attention within short texts on a GPU: one program for each text and head, which holds the whole of both.

General kernels work in tiles of 64 by 64 and loop over keys; a sentence of some twenty-five tokens needs
one tile of 32 by 32. Nothing is kept for the backward pass but the inputs: the shares are computed again.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803 (constants of a kernel are written in capitals)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _shares(queries, keys, rows, length, scale, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    """Softmax of the scores, (rows, keys); keys beyond the text, or behind a query that sees none, have no share."""
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    seen = rows[None, :] < length
    if CAUSAL:
        seen = seen & (rows[None, :] <= rows[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    return shares / tl.sum(shares, 1)[:, None]


@triton.jit
def _forward_tile(
    q,
    k,
    v,
    out,
    at,
    length,
    width,
    scale,
    D: tl.constexpr,
    SIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.arange(0, SIDE)
    places = at + rows[:, None] * width + tl.arange(0, D)[None, :]
    real = rows[:, None] < length
    queries = tl.load(q + places, mask=real, other=0.0)
    keys = tl.load(k + places, mask=real, other=0.0)
    values = tl.load(v + places, mask=real, other=0.0)
    shares = _shares(queries, keys, rows, length, scale, CAUSAL, PRECISION)
    tl.store(out + places, tl.dot(shares, values, input_precision=PRECISION), mask=real)


@triton.jit
def _backward_tile(
    q,
    k,
    v,
    given,
    dq,
    dk,
    dv,
    at,
    length,
    width,
    scale,
    D: tl.constexpr,
    SIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.arange(0, SIDE)
    places = at + rows[:, None] * width + tl.arange(0, D)[None, :]
    real = rows[:, None] < length
    queries = tl.load(q + places, mask=real, other=0.0)
    keys = tl.load(k + places, mask=real, other=0.0)
    values = tl.load(v + places, mask=real, other=0.0)
    gradient = tl.load(given + places, mask=real, other=0.0)
    shares = _shares(queries, keys, rows, length, scale, CAUSAL, PRECISION)
    of_shares = tl.dot(gradient, tl.trans(values), input_precision=PRECISION)
    of_scores = shares * (of_shares - tl.sum(shares * of_shares, 1)[:, None]) * scale
    tl.store(dv + places, tl.dot(tl.trans(shares), gradient, input_precision=PRECISION), mask=real)
    tl.store(dq + places, tl.dot(of_scores, keys, input_precision=PRECISION), mask=real)
    tl.store(dk + places, tl.dot(tl.trans(of_scores), queries, input_precision=PRECISION), mask=real)


@triton.jit
def _forward(q, k, v, out, bounds, width, scale, D: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    start = tl.load(bounds + tl.program_id(0)).to(tl.int64)
    length = tl.load(bounds + tl.program_id(0) + 1) - start
    at = start * width + tl.program_id(1) * D
    if length > 32:
        _forward_tile(q, k, v, out, at, length, width, scale, D, 64, CAUSAL, PRECISION)
    elif length > 0:
        _forward_tile(q, k, v, out, at, length, width, scale, D, 32, CAUSAL, PRECISION)


@triton.jit
def _backward(
    q, k, v, given, dq, dk, dv, bounds, width, scale, D: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr
):
    start = tl.load(bounds + tl.program_id(0)).to(tl.int64)
    length = tl.load(bounds + tl.program_id(0) + 1) - start
    at = start * width + tl.program_id(1) * D
    if length > 32:
        _backward_tile(q, k, v, given, dq, dk, dv, at, length, width, scale, D, 64, CAUSAL, PRECISION)
    elif length > 0:
        _backward_tile(q, k, v, given, dq, dk, dv, at, length, width, scale, D, 32, CAUSAL, PRECISION)


class ShortAttention(torch.autograd.Function):
    """Softmax attention within texts of at most 64 tokens; all of (tokens, heads, d), fp32 and contiguous.

    `bounds`, int32 (texts + 1,), says where each text begins and the last one ends.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float, causal: bool
    ) -> torch.Tensor:
        """Like `q`."""
        out = torch.empty_like(q)
        _, heads, size = q.shape
        grid = (len(bounds) - 1, heads)
        _forward[grid](q, k, v, out, bounds, heads * size, scale, size, causal, _precision(), num_warps=2)
        ctx.save_for_backward(q, k, v, bounds)
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        """Gradients of q, k and v."""
        q, k, v, bounds = ctx.saved_tensors
        _, heads, size = q.shape
        found = [torch.empty_like(q) for _ in range(3)]
        _backward[(len(bounds) - 1, heads)](
            q,
            k,
            v,
            given[0].contiguous(),
            *found,
            bounds,
            heads * size,
            ctx.scale,
            size,
            ctx.causal,
            _precision(),
            num_warps=4,
        )
        return *found, None, None, None


def _precision() -> str:
    """Of products, as the recipe set it for all others."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
