"""What methods share that train some tensors of the model whole and leave the others as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.methods.contract import Context, Method, MethodConfig
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class WholeTensors(Method):
    """Trains exactly the tensors of `trainables`, by the loop's dense AdamW."""

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._by_name: dict[str, nn.Parameter] = {}

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return cls.size(architecture, config)

    def rows_trained(self) -> tuple[Parameter, ...]:
        """The rows of the tensors that train."""
        return self.trainables(self.context.architecture, self.config)

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze everything but these tensors and the head."""
        named = dict(model.named_parameters())
        wanted: dict[str, Any] = {row.name: named[row.name] for row in self.rows_trained()}
        self.freeze(model, but=wanted)
        self._by_name = wanted
        return model

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self._by_name.items())

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        parameter = self._by_name.get(weight.name)
        return None if parameter is None else parameter.detach() - base
