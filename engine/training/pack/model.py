"""One frozen model with the adapters and heads of several runs, stacked.

All rows of a forward pass are ordered by run. A frozen layer sees them as one large batch; beside
it, each run's own thin matrices multiply its own rows, as one batched product for all runs. Where
runs change the layer itself, each has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.training.build import Built, copy_sharing
from engine.training.pack.entries import Entries, with_own


@dataclass(frozen=True)
class Slot:
    """One trained tensor of every run, at the same place of each run's row.

    Attributes:
        start: of its numbers in the row.
        shape: large enough for every run's; what a run does not use of it stays 0.
        members: each run's own tensor.
    """

    start: int
    shape: tuple[int, ...]
    members: tuple[nn.Parameter, ...]

    def of(self, rows: torch.Tensor, run: int | None = None) -> torch.Tensor:
        """The slot in (runs, numbers): (runs, *shape), or what one run uses of it."""
        size = 1
        for side in self.shape:
            size *= side
        part = rows[:, self.start : self.start + size].view(len(rows), *self.shape)
        return part if run is None else part[run][tuple(slice(side) for side in self.members[run].shape)]


class Stacks:
    """What several runs train, in one buffer with a row for each of them.

    Args:
        runs: built, with the same modules trained in each.

    Attributes:
        values, gradients, first, second: float32 (runs, numbers): weights and AdamW's two moments.
    """

    def __init__(self, runs: Sequence[Built]) -> None:
        self._slots: list[Slot] = []
        self._trained: list[tuple[nn.Parameter, torch.Tensor]] = []
        # Selected weights are at the front of each row.
        kind = runs[0].method.packs
        self._size = runs[0].method.entries().count if kind == "entries" else 0
        self.products = self._products(runs)
        self.tensors = self._named([run.dense if kind == "tensors" else run.head for run in runs])
        device = runs[0].head[0][1].device
        self.values, self.gradients, self.first, self.second = (
            torch.zeros(len(runs), self._size, device=device) for _ in range(4)
        )
        self.entries = Entries(runs, self._size) if kind == "entries" else None

    def adopt(self, run: int, optimizer: torch.optim.Optimizer) -> None:
        """Take over a run's weights and moments: its own tensors become views of its row."""
        with torch.no_grad():
            for slot in self._slots:
                parameter, state = slot.members[run], optimizer.state[slot.members[run]]
                for rows, old in ((self.first, state.get("exp_avg")), (self.second, state.get("exp_avg_sq"))):
                    if old is not None:
                        slot.of(rows, run).copy_(old)
                slot.of(self.values, run).copy_(parameter)
                parameter.data = slot.of(self.values, run)
                state["exp_avg"], state["exp_avg_sq"] = slot.of(self.first, run), slot.of(self.second, run)
            if self.entries is not None:
                own = (rows[run, : self.entries.count] for rows in (self.values, self.first, self.second))
                self.entries.adopt(run, *own)

    def trained(self, slot: Slot) -> nn.Parameter:
        """A slot as a tensor to differentiate by; its values are those of the buffer."""
        parameter = nn.Parameter(slot.of(self.values))
        self._trained.append((parameter, slot.of(self.gradients)))
        return parameter

    def differentiate(self, loss: torch.Tensor) -> None:
        """Put the gradients of a loss into their buffer."""
        parameters, places = zip(*self._trained, strict=True)
        whole = list(self.entries.tensors.values()) if self.entries is not None else []
        gradients = torch.autograd.grad(loss, [*parameters, *whole])
        torch._foreach_copy_(list(places), list(gradients[: len(places)]))
        if self.entries is not None:
            self.entries.gather(gradients[len(places) :], self.gradients)

    def updated(self, moves: torch.Tensor) -> None:
        """After an update of the values: of the runs that `moves` says, bool (runs,)."""
        if self.entries is not None:
            self.entries.write(self.values)
            self.entries.steps += moves

    def _products(self, runs: Sequence[Built]) -> dict[str, tuple[Slot, Slot, torch.Tensor]]:
        """By module: the slots of A and B, and each run's scale as (runs, 1, 1)."""
        found = {}
        for products in zip(*(run.method.products() for run in runs), strict=True):
            (module,) = {product.module for product in products}
            scales = torch.tensor([[[product.scale]] for product in products], device=products[0].a.device)
            found[module] = (self._slot([p.a for p in products]), self._slot([p.b for p in products]), scales)
        return found

    def _named(self, tensors: Sequence[Sequence[tuple[str, nn.Parameter]]]) -> dict[str, Slot]:
        """Slots by name of each run's tensors."""
        return {same[0][0]: self._slot([parameter for _, parameter in same]) for same in zip(*tensors, strict=True)}

    def _slot(self, members: Sequence[nn.Parameter]) -> Slot:
        shape = tuple(max(sides) for sides in zip(*(parameter.shape for parameter in members), strict=True))
        slot = Slot(self._size, shape, tuple(members))
        self._slots.append(slot)
        self._size += int(torch.Size(shape).numel())
        return slot


class PackedProduct(nn.Module):
    """A frozen linear layer with each run's own product beside it."""

    def __init__(self, plain: nn.Linear, a: nn.Parameter, b: nn.Parameter, scales: torch.Tensor) -> None:
        super().__init__()
        self.plain, self.a, self.b = plain, a, b
        self._scales = scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs), rows ordered by run, to (rows, outputs)."""
        rows = x.reshape(len(self.a), -1, x.shape[-1])
        wide: torch.Tensor = _Beside.apply(rows, self.plain.weight, self.plain.bias, self.a, self.b, self._scales)
        return wide.view(*x.shape[:-1], wide.shape[-1])


class _Beside(torch.autograd.Function):
    """W x + b + s B A x; its own derivative adds to what is there, where autograd would add once more."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        low = torch.bmm(x, a.transpose(1, 2)).mul_(scales)
        ctx.save_for_backward(x, weight, a, b, scales, low)
        return functional.linear(x, weight, bias).baddbmm_(low, b.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        (gradient,), (x, weight, a, b, scales, low) = given, ctx.saved_tensors
        of_low = torch.bmm(gradient, b).mul_(scales)
        of_x = (gradient @ weight).baddbmm_(of_low, a) if ctx.needs_input_grad[0] else None
        of_a, of_b = torch.bmm(of_low.transpose(1, 2), x), torch.bmm(gradient.transpose(1, 2), low)
        return of_x, None, None, of_a, of_b, None


def packed_model(base: nn.Module, stacks: Stacks) -> nn.Module:
    """A copy of the base model, on its tensors, that trains what is stacked and nothing else."""
    model = copy_sharing(base).requires_grad_(False).eval()
    own = {name: stacks.trained(slot) for name, slot in stacks.tensors.items()}
    with_own(model, own if stacks.entries is None else own | stacks.entries.tensors)
    for name, (a, b, scales) in stacks.products.items():
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear), name
        model.set_submodule(name, PackedProduct(plain, stacks.trained(a), stacks.trained(b), scales))
    return model
