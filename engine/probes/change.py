"""How far each weight matrix has moved from its pretrained value, in magnitude and in direction.

The measures are those of the DoRA paper's figure 2 (arXiv 2402.09353), with one weight vector per
output unit (a row of a PyTorch linear weight), w its pretrained value and w + d its present one:

    magnitude   mean over rows of | |w + d| - |w| |
    direction   mean over rows of 1 - cos(w + d, w)
    relative    |D| / |W|, Frobenius norms of the whole matrices
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from engine.methods.contract import Method, chain
from engine.methods.observed import Product
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
        self._groups = self._grouped()
        together = {place for group in self._groups for place in group.places}
        self._single = [place for place in range(len(self.parameters)) if place not in together]
        self.frame()  # a GPU loads its kernels at their first use: no frame's cost should include that

    def frame(self) -> dict[str, np.ndarray]:
        """``magnitude``, ``direction`` and ``relative``, each float32 (M,); waits for the device once."""
        table = np.zeros((len(self.parameters), 3), np.float32)
        with torch.no_grad():
            measured = {place: figures for group in self._groups for place, figures in group.figures().items()}
            others = {place: self._measure(place) for place in self._single}
            measured |= {place: figures for place, figures in others.items() if figures is not None}
            if measured:
                table[list(measured)] = torch.stack(list(measured.values())).cpu().numpy()
        return {"magnitude": table[:, 0], "direction": table[:, 1], "relative": table[:, 2]}

    def _measure(self, place: int) -> torch.Tensor | None:
        """The three figures of one matrix, float32 (3,) on the device; None where it has not changed."""
        row, base, squares = self.parameters[place], self._bases[place], self._squares[place]
        delta = delta_of(self._method, row, base)
        if delta is None:
            return None
        weight, change = _rows(base, row), _rows(delta, row)
        moves = torch.linalg.vecdot(change, change)
        return _figures(torch.linalg.vecdot(weight, change), moves, squares)

    def _grouped(self) -> list[_Products]:
        """Matrices of like shape whose change is a product of like rank: measured together, without the product."""
        if self._method.packs != "products":
            return []
        products = {product.module: product for product in self._method.products()}
        found: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(self.parameters):
            if row.module in products and not row.transposed:
                found.setdefault((*row.shape, len(products[row.module].a)), []).append(place)
        return [
            _Products(
                places,
                torch.stack([self._bases[place] for place in places]),
                torch.stack([self._squares[place] for place in places]),
                [products[self.parameters[place].module] for place in places],
            )
            for places in found.values()
        ]


@dataclass(frozen=True)
class _Products:
    """Matrices W + s B A: with G = A A', w.d is the row's part of s B by W A', and d.d that of s B by s B G."""

    places: list[int]
    weights: torch.Tensor
    squares: torch.Tensor
    products: list[Product]

    def figures(self) -> dict[int, torch.Tensor]:
        """The three figures of each, by place."""
        a = torch.stack([product.a for product in self.products])
        b = torch.stack([product.b for product in self.products])
        b = b * torch.tensor([product.scale for product in self.products]).view(-1, 1, 1).to(b.device)
        dots = (torch.bmm(self.weights, a.transpose(1, 2)) * b).sum(2)
        moves = (torch.bmm(b, torch.bmm(a, a.transpose(1, 2))) * b).sum(2).clamp(min=0)
        return dict(zip(self.places, _figures(dots, moves, self.squares), strict=True))


def _figures(dots: torch.Tensor, moves: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Magnitude, direction and relative change of (..., rows) as (..., 3)."""
    grown, turned = row_change(dots, moves, squares)
    return torch.stack([grown.mean(-1), turned.mean(-1), (moves.sum(-1) / squares.sum(-1)).sqrt()], -1)


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
