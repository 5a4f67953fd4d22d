"""What methods share that train without gradients: two losses a step, taken on both sides of the weights.

A direction is never stored. It is drawn anew from the seed of its step whenever it is needed, so
that a step holds the weights, the activations of one layer, and the direction of one tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from engine.errors import SpecError
from engine.methods.contract import Context, Method, MethodConfig
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

ENOUGH_STEPS = 2_000
"""With fewer, the plan warns."""


class ZerothOrderConfig(MethodConfig):
    """Settings of methods that train without gradients."""

    epsilon: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Epsilon",
        description=(
            "How far the weights are moved to both sides before the loss is measured. Too small, and rounding hides "
            "the difference; too large, and the loss bends in between."
        ),
        json_schema_extra={"source": "MeZO authors' code", "level": "advanced"},
    )


class ZerothOrder(Method):
    """Estimates the slope of the loss along a random direction, and walks along it; no tensor has a gradient."""

    family = "zeroth-order"
    differentiates = False
    captured = ""
    not_capturable = "The direction is drawn several times over from the seed of its step, which a graph would freeze."
    Config: ClassVar[type[MethodConfig]] = ZerothOrderConfig

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        if inner is not None and _trains_itself(inner):
            raise SpecError(
                f"{self.title} cannot stand on {inner.title}, which chooses or trains its weights by gradients.",
                "Put it on LoRA, DoRA or BitFit, or leave out `on`.",
            )
        self.rows = self.trainables(context.architecture, config)
        self._model: Any = None
        self._tensors: list[tuple[Parameter, nn.Parameter]] = []
        self._step = 0
        self._slope: torch.Tensor | None = None

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        if steps >= ENOUGH_STEPS:
            return []
        return [f"{steps:,} steps are few for {cls.title}, which learns one number a step: its authors took thousands."]

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze what is not perturbed, and find the head, which is."""
        if self.inner is not None:
            model = self.inner.attach(model)
        named = dict(model.named_parameters())
        own = dict(named if self.inner is None else self.inner.parameters())
        head = [(row, named[row.name]) for row in self.context.architecture.head]
        self._tensors = [*((row, own[row.name]) for row in self.rows), *head]
        for parameter in named.values():
            parameter.requires_grad_(False)
        for _, tensor in self._tensors:
            tensor.requires_grad_(True)
        self._model = model
        return model

    def estimate(self, step: int, loss_of: Callable[[], torch.Tensor]) -> None:
        """Slope of the loss along the step's direction, from one loss on each side; `update` brings the weights back.

        In eval mode: another dropout on each side would drown the difference.
        """
        config: Any = self.config
        self._step = step
        self._model.eval()
        self._shift(config.epsilon)
        above = loss_of()
        self._shift(-2 * config.epsilon)
        below = loss_of()
        self._model.train()
        self._slope = (above - below) / (2 * config.epsilon)

    def _shift(self, length: float) -> None:
        """Move all weights along the direction."""
        import torch

        with torch.no_grad():
            for number, entries, direction in self.directions():
                self.move(number, entries, direction.mul_(length))

    def directions(self) -> Iterator[tuple[int, torch.Tensor | None, torch.Tensor]]:
        """The direction of this step, tensor by tensor: its number, which entries (None: all), and how each moves.

        The same at every call within a step; each part may be overwritten. No entry is named twice.
        """
        generator = self.generator()
        for number, (_, tensor) in enumerate(self._tensors):
            yield number, None, normal(tensor, tensor.shape, generator)

    def generator(self) -> torch.Generator:
        """A stream of its own for the step."""
        import torch

        word = np.random.SeedSequence([self.context.method_seed, self._step]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.context.device).manual_seed(int(word >> np.uint64(1)))

    def move(self, number: int, entries: torch.Tensor | None, change: torch.Tensor) -> None:
        """Add a change, which may be overwritten, to some entries of a tensor, or to all of it."""
        from engine.sparse.optimizer import put

        tensor = self._tensors[number][1].detach()
        if entries is None:
            tensor.add_(change)
        else:
            put(tensor.view(-1), entries, change.add_(_at(tensor, entries)))

    def gradient_square(self) -> torch.Tensor | None:
        """Square of the slope, which on average is the squared norm of the gradient: so clipping means the same."""
        return None if self._slope is None else self._slope.square()

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """Back to where the step began, then down the slope; weight decay spares biases and norms."""
        import torch

        assert self._slope is not None, "estimate first"
        config: Any = self.config
        decay = self.context.weight_decay
        with torch.no_grad():
            length = -lr * scale * self._slope
            for number, entries, direction in self.directions():
                row, tensor = self._tensors[number]
                self.move(number, entries, direction * config.epsilon)
                if decay and _decays(row):
                    self.move(number, entries, _at(tensor, entries).mul_(-lr * decay))
                self.move(number, entries, direction.mul_(length))

    # --- observation -----------------------------------------------------------------------

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        if self.inner is not None:
            return self.inner.delta(weight, base)
        tensor = next((tensor for row, tensor in self._tensors if row.name == weight.name), None)
        return None if tensor is None or weight.role == "head" else tensor.detach() - base

    # --- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights it trains, the head apart; directions are drawn from the number of the step."""
        return {row.name: tensor.detach() for row, tensor in self._tensors if row.role != "head"}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.install(state)

    def result(self) -> dict[str, torch.Tensor]:
        """The weights; on another method they are that method's result already."""
        if self.inner is not None:
            return {}
        return {name: tensor.cpu().clone() for name, tensor in self.state_dict().items()}

    def install(self, result: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for row, tensor in self._tensors:
                if row.name in result:
                    tensor.copy_(result[row.name])

    def merged(self, model: nn.Module) -> nn.Module:
        return model if self.inner is None else self.inner.merged(model)


def _trains_itself(inner: Method) -> bool:
    """Whether a method does more with its tensors than to hand them to an optimizer."""
    updates = type(inner).update is not Method.update or type(inner).estimate is not Method.estimate
    return updates or inner.scores_first or not inner.steady or "rank" in inner.views


def _decays(row: Parameter) -> bool:
    return not row.part.endswith("bias") and not row.role.startswith("norm")


def normal(like: torch.Tensor, shape: Any, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, where and of the type that `like` is."""
    import torch

    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)


def _at(tensor: torch.Tensor, entries: torch.Tensor | None) -> torch.Tensor:
    """A copy of some entries, or of all."""
    return tensor.detach().clone() if entries is None else tensor.detach().view(-1).index_select(0, entries)
