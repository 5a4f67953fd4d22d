"""What can be seen of a method at one moment: its mask, its ranks, its products, and by which line it chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.models.architecture import Parameter

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Selection:
    """The entries a sparse method trains, in the order they were selected where its mask only grows.

    Attributes:
        parameters: the rows that `tensor` counts in.
        tensor: int32 (K,), which row.
        index: int32 (K,), flat position within it.
        step: int32 (K,), the step at which it was selected, from 0.
    """

    parameters: tuple[Parameter, ...]
    tensor: np.ndarray
    index: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """Rank per adapted matrix at one moment.

    Attributes:
        parameters: the adapted base weights.
        allocated: int32 (M,), the rank the method's last allocation gave each.
        active: int32 (M,), the rank in effect now.
        budget: total rank allowed now.
        final_budget: total rank at the end.
    """

    parameters: tuple[Parameter, ...]
    allocated: np.ndarray
    active: np.ndarray
    budget: int
    final_budget: int


@dataclass(frozen=True)
class Product:
    """What a low-rank method adds to a linear layer: scale * B A x beside W x.

    Attributes:
        module: full name of the layer.
        a: (rank, inputs).
        b: (outputs, rank).
        scale: of the product.
    """

    module: str
    a: nn.Parameter
    b: nn.Parameter
    scale: float


@dataclass(frozen=True)
class Boundary:
    """Chosen are the weights with ``|gradient|^power / (|weight| + eps)^exp`` at or above one threshold.

    With power 0 it looks at weights alone, with exp 0 at gradients alone.

    Attributes:
        power, exp, eps: of that score.
        moment: whether all are chosen before the first step, or some at every step.
    """

    power: float
    exp: float
    eps: float = 0.0
    moment: Literal["start", "step"] = "start"


@dataclass(frozen=True)
class Choice:
    """What a scoring phase saw when it chose, as counts over |weight| and |gradient|.

    Attributes:
        rest, chosen: int64 tables of `engine.sparse.plane`.
        threshold: of the method's boundary; None where it has none.
        examples: how many were looked at.
        squared: whether the gradient is the root of the mean square over them, or else the size of their mean.
    """

    rest: np.ndarray
    chosen: np.ndarray
    threshold: float | None
    examples: int
    squared: bool
