"""What methods share that train whole tensors of their choice, another set whenever they like.

Moments are kept for what is trained, so that freezing a tensor again can free them. The tensors
are the method's own to update: the loop's optimizer is made before a choice can be known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError
from engine.methods.contract import Context, Family, Method, MethodConfig, largest
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch
    from torch import nn


class OwnAdamW:
    """AdamW that a method runs itself, over tensors known by name; one without a gradient is left alone.

    Args:
        tensors: what it may train.
        weight_decay: decoupled, of whole tensors.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        import torch

        self._tensors = dict(tensors)
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        self._adamw = torch.optim.AdamW(
            list(tensors.values()), weight_decay=weight_decay, fused=True, capturable=on_gpu
        )

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those there are, by name."""
        return {name: tensor.grad for name, tensor in self._tensors.items() if tensor.grad is not None}

    def square(self) -> torch.Tensor | None:
        """Their sum of squares, 0-d; None when there is none."""
        import torch

        squares = [gradient.square().sum() for gradient in self.gradients().values()]
        return torch.stack(squares).sum() if squares else None

    def step(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """One update with the gradients times `scale`, which are dropped then."""
        for gradient in self.gradients().values():
            gradient.mul_(scale)
        self._adamw.param_groups[0]["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def forget(self, name: str) -> None:
        """Drop the moments of one tensor."""
        self._adamw.state.pop(self._tensors[name], None)

    def scalars(self) -> int:
        """Scalars of moments."""
        return 2 * sum(state["exp_avg"].numel() for state in self._adamw.state.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All moments, by ``<moment>.<tensor>``."""
        return {
            f"{key}.{name}": moment
            for name, tensor in self._tensors.items()
            for key, moment in self._adamw.state.get(tensor, {}).items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`; other keys are ignored."""
        for name, tensor in self._tensors.items():
            if f"exp_avg.{name}" in state:
                self._adamw.state[tensor] = {
                    key: state[f"{key}.{name}"].to(tensor.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }


class ActiveTensors(Method):
    """Trains the tensors named by the last call of `activate`, by AdamW."""

    family: ClassVar[Family] = "selective"
    views: ClassVar[tuple[str, ...]] = ("layers", "change")
    steady = False

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.active: frozenset[str] = frozenset()
        self.touched: set[str] = set()
        """Names of all tensors that have been active so far."""
        self._tensors: dict[str, nn.Parameter] = {}
        self._optimizer: OwnAdamW | None = None

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return cls.size(architecture, config)

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze what is no candidate; all candidates have gradients until some are made active."""
        named = dict(model.named_parameters())
        rows = self.trainables(self.context.architecture, self.config)
        self._tensors = {row.name: named[row.name] for row in rows}
        self.freeze(model, but=self._tensors)
        self._optimizer = OwnAdamW(self._tensors, self.context.weight_decay)
        return model

    @property
    def optimizer(self) -> OwnAdamW:
        """Of the active tensors; there once the method is attached."""
        assert self._optimizer is not None, "attach first"
        return self._optimizer

    def activate(self, names: Collection[str], *, keep_state: bool = False) -> None:
        """From now on train these tensors and no others; moments of the others are dropped unless kept."""
        self.active = frozenset(names)
        self.touched |= self.active
        for name, tensor in self._tensors.items():
            tensor.requires_grad_(name in self.active)
            if name not in self.active:
                tensor.grad = None
                if not keep_state:
                    self.optimizer.forget(name)

    def gradient_square(self) -> torch.Tensor | None:
        return self.optimizer.square()

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        self.optimizer.step(lr, scale)

    def optimizer_scalars(self) -> int:
        return self.optimizer.scalars()

    # --- observation -----------------------------------------------------------------------

    def active_now(self) -> frozenset[str] | None:
        return self.active

    def kept(self) -> int | None:
        """All that has ever been active may differ from the base."""
        return sum(self._tensors[name].numel() for name in self.touched) or None

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        return self._tensors[weight.name].detach() - base if weight.name in self.touched else None

    # --- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Values of all tensors touched, which of them are active, and the moments there are."""
        import torch

        state = self.optimizer.state_dict()
        for name in sorted(self.touched):
            state[f"value.{name}"] = self._tensors[name].detach()
            state[f"active.{name}"] = torch.tensor(name in self.active)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        values = {key.removeprefix("value."): value for key, value in state.items() if key.startswith("value.")}
        self.touched = set(values)
        self.activate([name for name in values if bool(state[f"active.{name}"])])
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(value)
        self.optimizer.load_state_dict(state)

    def result(self) -> dict[str, torch.Tensor]:
        return {name: self._tensors[name].detach().cpu().clone() for name in sorted(self.touched)}

    def install(self, result: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in result.items():
                if name in self._tensors:
                    self._tensors[name].copy_(value)


def layers_field(default: int, description: str, source: str) -> Any:
    """The setting that says how many layers train."""
    return Field(
        default,
        ge=1,
        le=1_000,
        title="Layers",
        description=description,
        json_schema_extra={"source": source, "budget": True},
    )


def outside_field(default: bool, source: str) -> Any:
    """The setting that says whether what is outside the layers trains too."""
    return Field(
        default,
        title="Train what is outside the layers",
        description="Whether embeddings, final norm and pooler train all the time.",
        json_schema_extra={"source": source},
    )


class BlockConfig(MethodConfig):
    """Settings of methods that train whole layers."""

    layers: int = layers_field(1, "How many layers train.", "this lab")
    outside: bool = outside_field(False, "this lab")


class ActiveBlocks(ActiveTensors):
    """Trains a number of whole layers, and beside them, if asked to, all that is outside the layers."""

    Config: ClassVar[type[MethodConfig]] = BlockConfig

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        beside = {row.name for row in outside(architecture)}
        return tuple(row for row in architecture.backbone if config.outside or row.name not in beside)

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        sizes = [sum(row.size for row in block(architecture, layer)) for layer in range(architecture.layers)]
        beside = sum(row.size for row in outside(architecture)) if config.outside else 0
        return sum(sorted(sizes, reverse=True)[: config.layers]) + beside

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many layers as `target` allows.

        Raises:
            BudgetError: when one is too many.
        """

        def size(layers: int) -> int:
            return cls.size(architecture, config.model_copy(update={"layers": layers}))

        found = largest(size, 1, architecture.layers, target)
        if found is None:
            beside = " beside all that is outside the layers" if config.outside else ""
            raise BudgetError(
                f"{cls.title} trains at least one layer{beside}: {size(1):,} parameters here.",
                f"Ask for at least {size(1):,}, or choose another method.",
            )
        return config.model_copy(update={"layers": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        if config.layers <= architecture.layers:
            return []
        return [f"This model has {architecture.layers} layers: all of them train, not {config.layers}."]


def block(architecture: Architecture, layer: int) -> list[Parameter]:
    """All tensors of one block."""
    return [row for row in architecture.backbone if row.layer == layer]


def outside(architecture: Architecture) -> list[Parameter]:
    """All tensors outside the blocks: embeddings, final norm, pooler."""
    return [row for row in architecture.backbone if not 0 <= row.layer < architecture.layers]
