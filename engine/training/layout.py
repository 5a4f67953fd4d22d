"""Where the tokens of a ragged batch lie, and attention over them with its own derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.estimate import KEPT_LENGTH


class Layout:
    """Where the tokens of a batch lie when they stand end to end, and where when padded.

    Args:
        lengths: int64 (n,), tokens of each example.
        read: int64 (n,), place of the token that the head reads, in its example.
        causal: whether a token sees none after it.

    Attributes:
        positions: int64 (tokens,), place of each token in its example.
        read: int64 (n,), the tokens that the head reads.
    """

    def __init__(self, lengths: np.ndarray, read: np.ndarray, causal: bool) -> None:
        self._longest, starts = int(lengths.max()), np.cumsum(lengths) - lengths
        columns = np.arange(self._longest)
        self._real = columns < lengths[:, None]
        # A padded place reads the first token of its example; nothing of it ever counts.
        self._tokens = starts[:, None] + np.where(self._real, columns, 0)
        self._causal = causal
        self._places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._biases: dict[tuple[int, bool], torch.Tensor] = {}
        self._read = read
        self.positions = torch.from_numpy(np.broadcast_to(columns, self._real.shape)[self._real])
        self.read = torch.from_numpy(starts + read)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Softmax attention within each example.

        Args:
            q: (tokens, heads, d), or (n, heads, d) where each example asks with one token.
            k, v: (tokens, key heads, d); key heads divide heads (grouped-query attention).
            scale: of the scores.

        Returns:
            Like `q`.
        """
        output: torch.Tensor = _Attention.apply(q, k, v, self, scale)
        return output

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (tokens, heads, d) as (n * heads, longest, d)."""
        _, heads, width = rows.shape
        return rows.reshape(-1, width).index_select(0, self._rows(heads)[0]).view(-1, self._longest, width)

    def gather(self, padded: torch.Tensor, heads: int) -> torch.Tensor:
        """Inverse of `spread`; what padding holds is left out."""
        width = padded.shape[-1]
        return padded.view(-1, width).index_select(0, self._rows(heads)[1]).view(-1, heads, width)

    def bias(self, heads: int, *, single: bool) -> torch.Tensor:
        """What is added to the scores: 0, or minus infinity where nothing may be seen.

        Args:
            heads: of the queries.
            single: whether each example asks with one token only, the one that the head reads.

        Returns:
            (n * heads, 1, longest), or (n * heads, longest, longest) where it depends on the query.
        """
        if (heads, single) not in self._biases:
            seen = self._real[:, None, :]
            if self._causal:
                before = np.tri(self._longest, dtype=bool)
                seen = seen & (before[self._read][:, None] if single else before)
            bias = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf)))
            self._biases[heads, single] = bias.repeat_interleave(heads, 0)
        return self._biases[heads, single]

    def padding(self, heads: int) -> torch.Tensor:
        """Whether a padded place holds no token, bool (n * heads, longest, 1)."""
        return torch.from_numpy(~self._real).repeat_interleave(heads, 0)[..., None]

    def _rows(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The row (token, head) that each padded place takes, and the padded place that each row takes back."""
        if heads not in self._places:
            taken = self._tokens[:, None, :] * heads + np.arange(heads)[:, None]
            back = np.arange(taken.size).reshape(taken.shape).transpose(0, 2, 1)[self._real]
            self._places[heads] = torch.from_numpy(taken.ravel()), torch.from_numpy(back.ravel())
        return self._places[heads]


class _Attention(torch.autograd.Function):
    """Its own derivative: autograd would copy every tensor between the two layouts once more."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        heads, single = q.shape[1], len(q) != len(k)
        keys, values = (layout.spread(repeated(rows, heads)) for rows in (k, v))
        queries = q.reshape(-1, 1, q.shape[2]) if single else layout.spread(q)
        shares = _shares(queries, keys, layout.bias(heads, single=single), scale)
        # Beyond short texts the shares are the largest thing a step would keep; then they are computed again.
        kept = shares if keys.shape[1] <= KEPT_LENGTH else None
        ctx.save_for_backward(queries, keys, values, *([] if kept is None else [kept]))
        ctx.layout, ctx.scale, ctx.single, ctx.heads, ctx.key_heads = layout, scale, single, heads, k.shape[1]
        found = torch.bmm(shares, values)
        return found.view(q.shape) if single else layout.gather(found, heads)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        (gradient,), layout, heads = given, ctx.layout, ctx.heads
        queries, keys, values, *kept = ctx.saved_tensors
        bias = layout.bias(heads, single=ctx.single)
        shares = kept[0] if kept else _shares(queries, keys, bias, ctx.scale)
        if ctx.single:
            own = gradient.reshape(queries.shape)
        else:
            own = layout.spread(gradient).masked_fill_(layout.padding(heads), 0)
        of_shares = torch.bmm(own, values.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(ctx.scale)
        q = k = v = None
        if ctx.needs_input_grad[0]:
            of_queries = torch.bmm(of_scores, keys)
            q = of_queries.view(gradient.shape) if ctx.single else layout.gather(of_queries, heads)
        if ctx.needs_input_grad[1]:
            k = _summed(layout.gather(torch.bmm(of_scores.transpose(1, 2), queries), heads), ctx.key_heads)
        if ctx.needs_input_grad[2]:
            v = _summed(layout.gather(torch.bmm(shares.transpose(1, 2), own), heads), ctx.key_heads)
        return q, k, v, None, None


def _shares(queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """How much each query takes of each key, (n * heads, queries, longest)."""
    scores = torch.baddbmm(bias.to(queries.dtype), queries, keys.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1)


def repeated(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values once per query head."""
    return rows if rows.shape[1] == heads else rows.repeat_interleave(heads // rows.shape[1], 1)


def _summed(gradient: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Inverse of `repeated` for gradients."""
    tokens, heads, width = gradient.shape
    return gradient if heads == key_heads else gradient.view(tokens, key_heads, heads // key_heads, width).sum(2)
