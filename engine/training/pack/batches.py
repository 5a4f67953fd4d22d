"""The batches of several runs end to end on the device, with shapes that a CUDA graph can hold.

Each run has a row of as many tokens as the fullest batch of that step needs: its sentences one after
another, and behind them padding, cut into sentences of its own that nothing ever reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn import functional

from engine.tasks.encoding import Encoded
from engine.training.layout import repeated

TILES = (16, 32, 64)
"""Sizes of a head that the kernel for short texts can hold."""
SHORT = 64
"""Texts of up to so many tokens have a kernel of their own, where Triton is installed, as it is beside CUDA's torch."""
HAS_TRITON = find_spec("triton") is not None
GRAIN = 64
"""Tokens that a run has on its row: a multiple of this."""


class Flat:
    """Where the tokens of some examples of each run lie; implements `engine.training.ragged.Places`.

    Args:
        lengths: int64 (runs, examples), tokens of each example.
        width: tokens on each run's row.
        longest: tokens of the longest example there can be.
        causal: whether a token sees none after it.

    Attributes:
        positions: int64 (runs * width,), place of each token in its example.
        read: int64 (runs * examples,), the first token of each example, the last one of those that are causal.
        place: int64 (runs, width), which example each token is of; those of padding count on.
        padding: bool (runs, width).
    """

    def __init__(self, lengths: torch.Tensor, width: int, longest: int, causal: bool = False) -> None:
        runs, examples = lengths.shape
        device = lengths.device
        ends = lengths.cumsum(1)
        # What is left of a row, cut into sentences no longer than real ones, so that attention over it stays cheap.
        cuts = torch.arange(longest, width + longest, longest, device=device)
        ends = torch.cat([ends, (ends[:, -1:] + cuts).clamp(max=width)], 1)
        starts = functional.pad(ends[:, :-1], (1, 0))
        columns = torch.arange(width, device=device).expand(runs, width).contiguous()
        rows = torch.arange(runs, device=device)[:, None] * width
        self.place = torch.searchsorted(ends, columns, right=True)
        self.padding = self.place >= examples
        self.positions = (columns - starts.gather(1, self.place)).view(-1)
        read = ends[:, :examples] - 1 if causal else starts[:, :examples]
        self.read = (read + rows).reshape(-1)
        self._longest, self._causal = longest, causal
        self._short = longest <= SHORT and HAS_TRITON
        self._bounds = functional.pad((ends + rows).view(-1), (1, 0)).int()
        asks = torch.arange(1, examples + 1, device=device).repeat(runs, 1) + rows // width * examples
        asks = torch.cat([asks, asks[:, -1:].expand(runs, len(cuts))], 1)
        self._asked = functional.pad(asks.view(-1), (1, 0)).int()

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Softmax attention within each example; `q` is (tokens, heads, d) or (runs * examples, heads, d)."""
        single = len(q) != len(k)
        bounds = self._asked if single else self._bounds
        # The one token that asks in each causal example is its last, which sees all of it.
        causal = self._causal and not single
        k, v = (repeated(rows, q.shape[1]) for rows in (k, v))
        if not q.is_cuda:
            return _attend_anywhere(q, k, v, bounds, self._bounds, len(self.place), scale, causal)
        if not single and self._short and q.shape[2] in TILES:
            from engine.training.pack.short import ShortAttention

            short: torch.Tensor = ShortAttention.apply(q, k, v, self._bounds, scale, causal)
            return short
        attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
            q[None], k[None], v[None], None, bounds, self._bounds,
            1 if single else self._longest, self._longest, 0.0, int(causal), True, scale=scale,
        )[0]  # fmt: skip
        return attended[0]


def _attend_anywhere(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    asked: torch.Tensor,
    bounds: torch.Tensor,
    runs: int,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """The same by a table of what may see what: for processors, which have no kernel for it, and small batches.

    Each run has a table of its own: what has become infinite in one must not reach another by way of a zero.
    """
    of_queries, of_keys = (
        torch.searchsorted(ends[1:], torch.arange(count, device=q.device, dtype=torch.int32), right=True).view(runs, -1)
        for ends, count in ((asked, len(q)), (bounds, len(k)))
    )
    q, k, v = (states.unflatten(0, (runs, -1)).transpose(1, 2) for states in (q, k, v))
    seen = (of_queries[:, :, None] == of_keys[:, None, :])[:, None]
    if causal:
        seen = seen.tril()
    return functional.scaled_dot_product_attention(q, k, v, seen, scale=scale).transpose(1, 2).flatten(0, 1)


def _read_lengths(batch: Mapping[str, np.ndarray], pad: int) -> np.ndarray:
    """Tokens of each example up to the one that a decoder's head reads: the last that is not the padding token."""
    words = batch["input_ids"] != pad  # behind its end an example is padded with it
    places: np.ndarray = (words * np.arange(words.shape[1])).argmax(1)
    return places + 1


class PackExamples:
    """All examples on the device as tables, and which of them each run's steps read.

    Args:
        encoded: the examples.
        orders: of each run, int64 (its steps, batch).
        device: where the tables lie.
        causal: whether a token sees none after it.
    """

    def __init__(self, encoded: Encoded, orders: Sequence[np.ndarray], device: str, causal: bool = False) -> None:
        most = max(len(order) for order in orders)
        self._tables = Tables(encoded, device, causal)
        lengths = self._tables.lengths.cpu().numpy()
        padded = np.stack([np.pad(order, ((0, most - len(order)), (0, 0)), mode="edge") for order in orders])
        self._tokens = [lengths[order].sum(1) for order in orders]
        self._order = torch.from_numpy(padded).to(device)

    def tokens(self, run: int, step: int) -> int:
        """Tokens of a run's step that its head can see."""
        return int(self._tokens[run][step])

    def width(self, steps: Sequence[int]) -> int:
        """Tokens on each row when the runs stand at these steps."""
        fullest = max(self.tokens(run, min(step, len(self._tokens[run]) - 1)) for run, step in enumerate(steps))
        return -(-fullest // GRAIN) * GRAIN

    def batch(self, steps: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor | None, Flat, torch.Tensor]:
        """Token ids, their types, layout and labels (runs, batch) at the step each run stands at, int64 (runs,)."""
        runs = torch.arange(len(self._order), device=steps.device)
        return self._tables.batch(self._order[runs, steps.clamp(max=self._order.shape[1] - 1)], width)


class Tables:
    """A split on the device.

    Args:
        encoded: its examples.
        causal: whether a token sees none after it, so that what stands behind the one that is read is left out.
    """

    def __init__(self, encoded: Encoded, device: str, causal: bool = False) -> None:
        every = encoded.batch(np.arange(len(encoded)))
        self.longest, self._pad, self._causal = every["input_ids"].shape[1], encoded.pad_id, causal
        self.lengths = torch.from_numpy(_read_lengths(every, encoded.pad_id) if causal else encoded.lengths).to(device)
        self._ids, self._types, self._labels = (
            None if key not in every else torch.from_numpy(every[key]).to(device)
            for key in ("input_ids", "token_type_ids", "labels")
        )

    def batch(self, rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor | None, Flat, torch.Tensor]:
        """The examples `rows`, int64 (runs, n), with `width` tokens for each run; see `PackExamples.batch`."""
        flat = Flat(self.lengths[rows], width, self.longest, self._causal)
        examples = rows.gather(1, flat.place.clamp(max=rows.shape[1] - 1)).view(-1)
        assert self._ids is not None
        assert self._labels is not None
        ids = self._ids[examples, flat.positions].masked_fill(flat.padding.view(-1), self._pad)
        types = None if self._types is None else self._types[examples, flat.positions]
        return ids, types, flat, self._labels[rows]
