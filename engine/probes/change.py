"""How far each weight matrix has moved from its pretrained value, in magnitude and in direction.

The measures are those of the DoRA paper's figure 2 (arXiv 2402.09353), with one weight vector per
output unit (a row of a PyTorch linear weight), w its pretrained value and w + d its present one:

    magnitude   mean over rows of | |w + d| - |w| |
    direction   mean over rows of 1 - cos(w + d, w)
    relative    |D| / |W|, Frobenius norms of the whole matrices
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from engine.methods.contract import Method, chain
from engine.models.architecture import Parameter


def row_change(dots: torch.Tensor, moves: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of magnitude and of direction per row, without subtracting nearly equal numbers.

    With c = |w| + w.d/|w|, the part of w + d along w, and m = |w + d|:
    m - |w| = (2 w.d + d.d) / (m + |w|), and 1 - c/m = p / (m (m + c)), where p = d.d - (w.d)^2/|w|^2
    is the squared part of d across w. Subtracting instead loses every digit in fp32 once the
    relative change is below 3e-4.

    Args:
        dots: w.d per row.
        moves: d.d per row.
        squares: w.w per row.

    Returns:
        |m - |w|| and 1 - cos, both (rows,). A row that was or becomes zero has no direction: 0.
    """
    norms = squares.sqrt()
    present = (squares + 2 * dots + moves).clamp(min=0).sqrt()
    grown = (2 * dots + moves).abs() / (present + norms)
    along = norms + dots / norms
    across = (moves - dots * dots / squares).clamp(min=0)
    forward = across / (present * (present + along))
    turned = torch.where(along > 0, forward, 1 - along / present)
    exists = (norms > 0) & (present > 0)
    return torch.nan_to_num(grown, nan=0.0), torch.where(exists, turned, torch.zeros_like(turned))


class ChangeProbe:
    """Measures the change of a fixed list of matrices under one method.

    Args:
        method: the outermost method, attached.
        parameters: the matrices, as rows of the base model's map.
        bases: their untouched values by name; never changed here.
        device: where the method's tensors are.
    """

    def __init__(
        self, method: Method, parameters: Iterable[Parameter], bases: Mapping[str, torch.Tensor], device: str
    ) -> None:
        self.parameters = tuple(parameters)
        self._method = method
        self._bases = [bases[row.name].detach().to(device) for row in self.parameters]
        self._squares = [
            torch.linalg.vecdot(_rows(base, row), _rows(base, row))
            for row, base in zip(self.parameters, self._bases, strict=True)
        ]
        self.frame()  # a GPU loads its kernels at their first use: no frame's cost should include that

    def frame(self) -> dict[str, np.ndarray]:
        """``magnitude``, ``direction`` and ``relative``, each float32 (M,); waits for the device once."""
        with torch.no_grad():
            measured = [self._measure(place) for place in range(len(self.parameters))]
            table = torch.stack(measured).cpu().numpy() if measured else np.zeros((0, 3), np.float32)
        return {"magnitude": table[:, 0], "direction": table[:, 1], "relative": table[:, 2]}

    def _measure(self, place: int) -> torch.Tensor:
        """The three figures of one matrix, float32 (3,) on the device."""
        row, base, squares = self.parameters[place], self._bases[place], self._squares[place]
        delta = delta_of(self._method, row, base)
        if delta is None:
            return torch.zeros(3, device=base.device)
        weight, change = _rows(base, row), _rows(delta, row)
        moves = torch.linalg.vecdot(change, change)
        grown, turned = row_change(torch.linalg.vecdot(weight, change), moves, squares)
        return torch.stack([grown.mean(), turned.mean(), (moves.sum() / squares.sum()).sqrt()])


def delta_of(method: Method, row: Parameter, base: torch.Tensor) -> torch.Tensor | None:
    """The change of a base weight as its method, or one below it, reports it."""
    for part in chain(method):
        delta = part.delta(row, base)
        if delta is not None:
            return delta
    return None


def _rows(matrix: torch.Tensor, row: Parameter) -> torch.Tensor:
    """The matrix with one weight vector per output unit as its rows."""
    return matrix.T if row.transposed else matrix
