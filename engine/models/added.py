"""Small modules that methods put around a model's layers; a `Wrapper` can be folded into its layer again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional

M = TypeVar("M", bound=nn.Module)
Activation = Literal["gelu", "relu", "silu"]
_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


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
        changes = {part: self.change(part) for part in ("weight", "bias")}  # both from the layer as it is
        for part, change in changes.items():
            if change is None:
                continue
            held = getattr(self.base_layer, part, None)
            if held is None:
                setattr(self.base_layer, part, nn.Parameter(change.detach().clone()))
            else:
                held.data.add_(change.to(held.dtype))
        return self.base_layer


def wrap(model: nn.Module, name: str, wrapper: Callable[[nn.Module], M]) -> M:
    """Put what is made around the layer with this name in its place, and return it."""
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


class HeadOffsets(Wrapper):
    """Before an attention output layer: scales each head's output by ``1 + scale``, and adds ``offset`` to it.

    Each head has vectors of its own, ``scale.<head>`` and ``offset.<head>``; all start at zero, as the layer itself.
    """

    def __init__(self, base: nn.Module, heads: int) -> None:
        super().__init__(base)
        weight = base.get_parameter("weight")
        self.inputs_first = not isinstance(base, nn.Linear)
        width = weight.shape[0 if self.inputs_first else 1] // heads

        def vectors() -> nn.ParameterList:
            return nn.ParameterList(torch.zeros(width, dtype=weight.dtype, device=weight.device) for _ in range(heads))

        self.scale, self.offset = vectors(), vectors()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """What the layer makes of the changed outputs of its heads."""
        scale, offset = torch.cat(list(self.scale)), torch.cat(list(self.offset))
        output: torch.Tensor = self.base_layer(states + states * scale + offset)
        return output

    def change(self, part: str) -> torch.Tensor | None:
        weight = self.base_layer.get_parameter("weight")
        if part == "weight":
            scale = torch.cat(list(self.scale))
            return weight * (scale[:, None] if self.inputs_first else scale)
        offset = torch.cat(list(self.offset))
        return offset @ weight if self.inputs_first else weight @ offset


class Bottleneck(nn.Module):
    """Behind a layer: narrows its output, bends it, widens it again, and adds the result to the output.

    Because of the bend it cannot be folded into the layer. Its tensors are left unset until `start`.
    """

    def __init__(self, base: nn.Module, width: int, activation: Activation) -> None:
        super().__init__()
        self.base_layer = base
        weight = base.get_parameter("weight")
        outputs = weight.shape[0 if isinstance(base, nn.Linear) else 1]

        def linear(inputs: int, outputs: int) -> nn.Linear:  # PyTorch's own start would draw from the global stream
            made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=weight.device, dtype=weight.dtype)
            return made

        self.down, self.up = linear(outputs, width), linear(width, outputs)
        self._activation = _ACTIVATIONS[activation]

    @torch.no_grad()
    def start(self, std: float, draws: torch.Generator) -> None:
        """Weights normal, none beyond two deviations; biases at zero."""
        for linear in (self.down, self.up):
            drawn = torch.empty(linear.weight.shape)
            linear.weight.copy_(nn.init.trunc_normal_(drawn, std=std, a=-2 * std, b=2 * std, generator=draws))
            linear.bias.zero_()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The layer's output and what the bottleneck makes of it, added up."""
        output: torch.Tensor = self.base_layer(states)
        change: torch.Tensor = self.up(self._activation(self.down(output)))
        return output + change
