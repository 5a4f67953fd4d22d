"""One tensor's gradient as the backward pass leaves it: whole, or only the rows that took part.

A batch touches a few hundred of the 30,000 rows of a word embedding. On a CPU writing and
reading the zeros of all others costs more than the rest of a selective step, so that there
PyTorch is asked for the touched rows alone; every other entry is 0 either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StreamedGradient:
    """A gradient that is read once and dropped.

    Attributes:
        values: fp32, flat (n,).
        rows: the rows that `values` holds, int64 ascending; None when it holds all of them.
        width: entries per row; 0 when `rows` is None.
    """

    values: torch.Tensor
    rows: torch.Tensor | None = None
    width: int = 0

    @classmethod
    def of(cls, gradient: torch.Tensor) -> StreamedGradient:
        """From a parameter's gradient, dense or sparse by rows."""
        if not gradient.is_sparse:
            return cls(gradient.reshape(-1).float())
        gradient = gradient.coalesce()
        values = gradient.values()
        return cls(values.reshape(-1).float(), gradient.indices()[0], values.shape[1])

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The gradient at flat positions of the tensor, fp32 (len(index),)."""
        if self.rows is None:
            return self.values.index_select(0, index)
        place, present = self._places(index)
        return torch.where(present, self.values[place], 0.0) if len(self.values) else torch.zeros(len(index))

    def clear(self, index: torch.Tensor) -> None:
        """Set the gradient to 0 at flat positions of the tensor."""
        if self.rows is not None:
            place, present = self._places(index)
            index = place[present]
        self.values.index_fill_(0, index, 0.0)

    def clear_rows(self, start: int, stop: int, width: int) -> None:
        """Set the gradient to 0 in rows `start` to `stop` of `width` entries."""
        if self.rows is None:
            self.values[start * width : stop * width] = 0.0
        else:
            self.values.view(-1, self.width)[(self.rows >= start) & (self.rows < stop)] = 0.0

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        """The tensor's values where `values` holds the gradient, fp32, flat (n,)."""
        held = weight.detach() if self.rows is None else weight.detach()[self.rows]
        return held.reshape(-1).float()

    def positions(self, place: torch.Tensor) -> torch.Tensor:
        """Flat positions in the tensor of places in `values`."""
        if self.rows is None:
            return place
        return self.rows[place // self.width] * self.width + place % self.width

    def _places(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in `values` of flat positions, and whether they are there; only with `rows`."""
        assert self.rows is not None
        row = index // self.width
        found = torch.searchsorted(self.rows, row).clamp(max=max(0, len(self.rows) - 1))
        present = self.rows[found] == row if len(self.rows) else torch.zeros_like(row, dtype=torch.bool)
        return found * self.width + index % self.width, present
