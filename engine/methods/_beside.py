"""LoRA beside linear layers that keep their own names and tensors, so that these may train beside it."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from engine.methods._active import OwnAdamW
from engine.methods._peft import in_out
from engine.models.architecture import LINEAR_ROLES, Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn


def size_beside(row: Parameter, rank: int) -> int:
    """Scalars of LoRA beside a matrix."""
    return rank * sum(row.shape)


def has_room(row: Parameter, rank: int) -> bool:
    """Whether LoRA of this rank makes sense for a tensor: a linear layer's matrix that has more weights than it."""
    linear = row.part == "weight" and len(row.shape) == 2 and row.role in (*LINEAR_ROLES, "pooler")
    return linear and size_beside(row, rank) < row.size


def thin_of(row: Parameter, rank: int) -> tuple[Parameter, Parameter]:
    """LoRA's two matrices of a linear layer, A and B."""
    inputs, outputs = in_out(row)
    return (
        Parameter(f"{row.module}.lora_A", (rank, inputs), row.layer, row.role, "A"),
        Parameter(f"{row.module}.lora_B", (outputs, rank), row.layer, row.role, "B"),
    )


class Beside:
    """LoRA without a scale beside some of a model's matrices, trained by an AdamW of its own.

    Args:
        model: whose layers get it; changed in place.
        rows: the matrices that may get it.
        rank: of all.
        seed: A is drawn from it, uniform within 1/sqrt(inputs); B is zero.
        weight_decay: decoupled.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Parameter], rank: int, seed: int, weight_decay: float) -> None:
        self._model, self._rank, self._seed, self._decay = model, rank, seed, weight_decay
        self._candidates = tuple(row for row in rows if has_room(row, rank))
        self.rows: dict[str, Parameter] = {}
        """The matrices that have it, by name."""
        self.tensors: dict[str, nn.Parameter] = {}
        """The thin matrices, by name."""
        self._optimizer: OwnAdamW | None = None
        self._hooks: list[Any] = []

    def give(self, rows: Sequence[Parameter]) -> None:
        """Give it to these matrices and to no others, at its start."""
        self._put({row.name: row for row in rows}, self._starts())

    def restore(self, values: Mapping[str, torch.Tensor]) -> None:
        """Give it to the matrices whose thin ones are among these values, and to no others."""
        held = [row for row in self._candidates if thin_of(row, self._rank)[0].name in values]
        self._put({row.name: row for row in held}, values)

    def _put(self, rows: dict[str, Parameter], values: Mapping[str, torch.Tensor]) -> None:
        from torch import nn

        self._unhook()
        _strip(self._model, self.rows.values())
        self.rows, self.tensors = rows, {}
        for row in rows.values():
            module, weight = self._model.get_submodule(row.module), self._model.get_parameter(row.name)
            for thin in thin_of(row, self._rank):
                self.tensors[thin.name] = nn.Parameter(values[thin.name].detach().to(weight, copy=True))
                module.register_parameter(f"lora_{thin.part}", self.tensors[thin.name])
        self._hook()
        self._optimizer = OwnAdamW(self.tensors, self._decay) if self.tensors else None

    def _starts(self) -> dict[str, torch.Tensor]:
        """A and B of every matrix, whichever get them: so the start of one does not depend on the others."""
        import torch

        draws = torch.Generator().manual_seed(self._seed)
        found = {}
        for row in self._candidates:
            a, b = thin_of(row, self._rank)
            bound = 1 / math.sqrt(a.shape[1])
            found[a.name] = torch.empty(a.shape).uniform_(-bound, bound, generator=draws)
            found[b.name] = torch.zeros(b.shape)
        return found

    def _hook(self) -> None:
        modules = [self._model.get_submodule(row.module) for row in self.rows.values()]
        self._hooks = [module.register_forward_hook(_with_low_rank) for module in modules]

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def square(self) -> torch.Tensor | None:
        """Sum of squares of its gradients, 0-d; None when there is none."""
        return self._optimizer.square() if self._optimizer is not None else None

    def step(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """One update with the gradients times `scale`."""
        if self._optimizer is not None:
            self._optimizer.step(lr, scale)

    def scalars(self) -> int:
        """Scalars of moments."""
        return self._optimizer.scalars() if self._optimizer is not None else 0

    def change(self, row: Parameter) -> torch.Tensor:
        """What it adds to a matrix that has it, in the matrix's own layout."""
        a, b = (self.tensors[thin.name].detach() for thin in thin_of(row, self._rank))
        return (b @ a).T if row.transposed else b @ a

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Values and moments, for `load_state_dict`."""
        values = {f"value.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        return values | (self._optimizer.state_dict() if self._optimizer is not None else {})

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`; other keys are ignored."""
        self.restore({key.removeprefix("value."): value for key, value in state.items() if key.startswith("value.")})
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state)

    def folded(self) -> nn.Module:
        """A copy of the model without it, and with its products added to the weights; the model stays as it is."""
        import torch

        self._unhook()  # hooks would be copied with the layers
        plain = copy.deepcopy(self._model)
        self._hook()
        _strip(plain, self.rows.values())
        with torch.no_grad():
            for row in self.rows.values():
                plain.get_parameter(row.name).add_(self.change(row))
        return plain


def _strip(model: nn.Module, rows: Any) -> None:
    """Take the thin matrices of these out of their layers."""
    for row in rows:
        module = model.get_submodule(row.module)
        del module.lora_A, module.lora_B


def _with_low_rank(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """What a linear layer puts out, with its low-rank change."""
    return output + inputs[0] @ module.lora_A.T @ module.lora_B.T
