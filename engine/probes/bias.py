"""How far each bias vector has moved: the mean size of its change, as in the BitFit paper's figure 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from engine.methods.contract import Method
from engine.models.architecture import Parameter
from engine.probes.change import delta_of


class BiasProbe:
    """Measures the change of a fixed list of bias vectors under one method.

    Args:
        method: the outermost method, attached.
        parameters: the biases, as rows of the base model's map.
        bases: their untouched values by name; never changed here.
        device: where the method's tensors are.
    """

    def __init__(
        self, method: Method, parameters: Iterable[Parameter], bases: Mapping[str, torch.Tensor], device: str
    ) -> None:
        self.parameters = tuple(parameters)
        self._method = method
        self._bases = [bases[row.name].detach().to(device) for row in self.parameters]

    def frame(self) -> dict[str, np.ndarray]:
        """``mean``, float32 (B,): mean of |b - b0| over the vector; waits for the device once."""
        with torch.no_grad():
            deltas = [delta_of(self._method, *pair) for pair in zip(self.parameters, self._bases, strict=True)]
            means = [torch.zeros(()) if delta is None else delta.abs().mean().float() for delta in deltas]
            found = torch.stack([mean.to(self._bases[0].device) for mean in means]).cpu() if means else torch.zeros(0)
        return {"mean": found.numpy()}
