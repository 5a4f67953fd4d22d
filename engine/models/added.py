"""Small modules that methods put around a model's layers, each of which can be folded into its layer again."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Wrapper(nn.Module):
    """A layer with something of a method's around it; its own tensors stay under ``base_layer``."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base

    def change(self, part: str) -> torch.Tensor | None:
        """What folding adds to the layer's ``weight`` or ``bias``, in its own layout; None when nothing."""
        raise NotImplementedError(type(self).__name__)

    def folded(self) -> nn.Module:
        """The layer with the change in its tensors; a bias is made where the change needs one."""
        for part in ("weight", "bias"):
            change = self.change(part)
            if change is None:
                continue
            held = getattr(self.base_layer, part, None)
            if held is None:
                setattr(self.base_layer, part, nn.Parameter(change.detach().clone()))
            else:
                held.data.add_(change.to(held.dtype))
        return self.base_layer


def wrap(model: nn.Module, name: str, wrapper: type[Wrapper]) -> Wrapper:
    """Put a wrapper in the place of the layer with this name, and return it."""
    made = wrapper(model.get_submodule(name))
    model.set_submodule(name, made)
    return made


@torch.no_grad()
def without_wrappers(model: nn.Module) -> nn.Module:
    """A copy of the model in which every wrapper is folded into its layer; `model` stays as it is."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, Wrapper):
            plain.set_submodule(name, module.folded())
    return plain


class ScaledShifted(Wrapper):
    """Multiplies each output feature of a layer by a trained number, and adds another where there is a bias.

    Starts as the layer itself.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        weight = base.get_parameter("weight")
        # A weight stored as (in, out) has its outputs along the last axis, as a norm's gain has its only one.
        self.axis = 0 if isinstance(base, nn.Linear) else -1
        width = weight.shape[self.axis]
        self.scale = nn.Parameter(torch.ones(width, dtype=weight.dtype, device=weight.device))
        biased = getattr(base, "bias", None) is not None
        self.shift = nn.Parameter(torch.zeros_like(self.scale)) if biased else None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Features of the layer, scaled and shifted."""
        features: torch.Tensor = self.base_layer(states) * self.scale
        return features if self.shift is None else features + self.shift

    def change(self, part: str) -> torch.Tensor | None:
        grown = self.scale - 1
        if part == "weight":
            weight = self.base_layer.get_parameter("weight")
            return weight * (grown[:, None] if self.axis == 0 else grown)
        if self.shift is None:
            return None
        return self.base_layer.get_parameter("bias") * grown + self.shift
