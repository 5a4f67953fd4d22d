"""Single weights of several runs, and the layers that hold each run's own copy of a tensor.

Where a run changes a tensor, or single weights of it, the pack has that tensor once for each run; all
other tensors are the base model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.sparse.optimizer import put
from engine.training.build import Built


class Entries:
    """The selected weights of several runs: numbers at the front of each run's row, and places in stacked tensors.

    Args:
        runs: built; each has selected equally many weights, all before its first step.
        numbers: length of a row.

    Attributes:
        tensors: (runs, *shape) by name, of all tensors in which some run has selected a weight.
        steps: updates of each run, float64 (runs,).
    """

    def __init__(self, runs: Sequence[Built], numbers: int) -> None:
        self._sparse = [run.method.entries() for run in runs]
        self.count = self._sparse[0].count
        self._models = [dict(run.model.named_parameters()) for run in runs]
        self._bases = [dict(run.placed.named_parameters()) for run in runs]
        method = runs[0].method
        names = [row.name for row in method.trainables(method.context.architecture, method.config)]
        self.tensors: dict[str, nn.Parameter] = {}
        self._where: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.steps = torch.zeros(len(runs), dtype=torch.float64, device=self._sparse[0].clock().device)
        found = [sparse.entries() for sparse in self._sparse]
        for number in torch.cat([entries["tensor"] for entries in found]).unique().tolist():
            members = [model[names[number]] for model in self._models]
            self.tensors[names[number]] = nn.Parameter(torch.stack([member.detach() for member in members]))
            slots, places = [], []
            for run, entries in enumerate(found):
                own = (entries["tensor"] == number).nonzero().flatten()
                slots.append(own + run * numbers)
                places.append(entries["index"][own].long() + run * members[run].numel())
            self._where.append((torch.cat(slots), torch.cat(places)))
        self._untouched = [name for name in names if name not in self.tensors]

    def adopt(self, run: int, value: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
        """Take over a run's weights and state: its tensors become views of the stacked ones, or the base model's.

        Args:
            value, first, second: its part of the rows, fp32 (count,).
        """
        for name, stacked in self.tensors.items():
            self._models[run][name].data = stacked.data[run]
        for name in self._untouched:
            self._models[run][name].data = self._bases[run][name].data
        self._sparse[run].move_to(value, first, second, self.steps[run])

    def gather(self, gradients: Sequence[torch.Tensor], rows: torch.Tensor) -> None:
        """Take the selected weights' gradients out of those of `tensors`, in their order."""
        for gradient, (slots, places) in zip(gradients, self._where, strict=True):
            put(rows.view(-1), slots, gradient.reshape(-1).index_select(0, places))

    @torch.no_grad()
    def write(self, rows: torch.Tensor) -> None:
        """Write the selected weights' values into the tensors."""
        for stacked, (slots, places) in zip(self.tensors.values(), self._where, strict=True):
            put(stacked.data.view(-1), places, rows.view(-1).index_select(0, slots).to(stacked.dtype))


class PackedLinear(nn.Module):
    """A linear layer of which each run has its own weight or bias."""

    def __init__(self, plain: nn.Linear, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.plain, self.weight, self.bias = plain, own.get("weight"), own.get("bias")
        self._runs = _runs(own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs), rows ordered by run, to (rows, outputs)."""
        rows = x.reshape(self._runs, -1, x.shape[-1])
        bias = self.plain.bias if self.bias is None else self.bias[:, None]
        if self.weight is None:
            wide = functional.linear(rows, self.plain.weight) + bias
        elif bias is None:
            wide = torch.bmm(rows, self.weight.transpose(1, 2))
        else:
            wide = torch.baddbmm(bias, rows, self.weight.transpose(1, 2))
        return wide.view(*x.shape[:-1], wide.shape[-1])


class PackedEmbedding(nn.Module):
    """An embedding of which each run has its own table."""

    def __init__(self, plain: nn.Embedding, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.weight = own["weight"]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Integers, ordered by run, to vectors."""
        runs, size, width = self.weight.shape
        rows = ids.reshape(runs, -1) + torch.arange(runs, device=ids.device)[:, None] * size
        return functional.embedding(rows, self.weight.view(-1, width)).view(*ids.shape, width)


class PackedNorm(nn.Module):
    """A norm, with a mean or without, of which each run has its own gain or bias."""

    def __init__(self, plain: Any, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.weight, self.bias = own.get("weight"), own.get("bias")
        self._plain, self._runs = plain, _runs(own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, width), rows ordered by run."""
        plain, width = self._plain, (x.shape[-1],)
        if isinstance(plain, nn.LayerNorm):
            normed = functional.layer_norm(x, width, eps=plain.eps)
        else:
            normed = functional.rms_norm(x, width, eps=plain.variance_epsilon)
        rows = normed.reshape(self._runs, -1, x.shape[-1])
        rows = rows * (plain.weight if self.weight is None else self.weight[:, None])
        bias = getattr(plain, "bias", None) if self.bias is None else self.bias[:, None]
        return (rows if bias is None else rows + bias).view(x.shape)


def with_own(model: nn.Module, tensors: Mapping[str, nn.Parameter]) -> None:
    """Put layers that hold each run's own tensors in the places of those that hold the base model's."""
    modules: dict[str, dict[str, nn.Parameter]] = {}
    for name, stacked in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = stacked
    for name, own in modules.items():
        plain = model.get_submodule(name)
        packed = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}.get(type(plain), PackedNorm)
        model.set_submodule(name, packed(plain, own))


def _runs(own: Mapping[str, nn.Parameter]) -> int:
    return len(next(iter(own.values())))
