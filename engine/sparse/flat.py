"""Sparse training without a question to the device: tensors in one buffer, gradients in a few large parts.

A GPU is slow at many small operations, and waits for each answer. Here the tensors that a mask may
reach are views of one buffer, so that an entry is one address; gradients are looked at in parts of
several tensors, smaller than the largest tensor, which is looked at where it is; and every shape is
the same in each step, so that the work can be recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from engine.errors import ModelError
from engine.sparse.blocks import BLOCK
from engine.sparse.kernels import gather_kernel, launch
from engine.sparse.optimizer import Correction, Groups, SparseAdamW, put


@dataclass(frozen=True)
class Part:
    """Consecutive tensors whose gradients are looked at together.

    Attributes:
        tensors: their numbers.
        begin: address of the first entry.
        filled: entries.
    """

    tensors: range
    begin: int
    filled: int

    @property
    def size(self) -> int:
        """Addresses, a multiple of `BLOCK`; the last one belongs to no entry: what concerns none is written there."""
        return (self.filled // BLOCK + 1) * BLOCK

    @property
    def end(self) -> int:
        return self.begin + self.size

    def local(self, address: torch.Tensor) -> torch.Tensor:
        """Addresses counted from the part's first; those of other parts become its last, unused one."""
        place = address - self.begin
        return place.masked_fill_((place < 0) | (place >= self.size), self.size - 1)


class FlatTensors:
    """Tensors as views of one buffer.

    Args:
        parameters: of one type and on one device; their data moves into the buffer.

    Raises:
        ModelError: for tensors of several types.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        if len({parameter.dtype for parameter in parameters}) > 1:
            raise ModelError("The weights to choose from have several number formats.", "Convert the model to one.")
        self.parameters = list(parameters)
        self.parts, starts = _layout([parameter.numel() for parameter in parameters])
        end = self.parts[-1].end
        self.unused = end - 1
        """An address that belongs to no entry."""
        device = parameters[0].device
        self.values = torch.zeros(end, dtype=parameters[0].dtype, device=device)
        self.starts = torch.tensor(starts, device=device)
        """Address of each tensor's first entry."""
        self.kernel = gather_kernel(device)
        self._begins = starts
        self._arrived: dict[int, torch.Tensor] = {}
        self._part = [number for number, part in enumerate(self.parts) for _ in part.tensors]
        for parameter, start in zip(parameters, starts, strict=True):
            home = self.values[start : start + parameter.numel()].view(parameter.shape)
            home.copy_(parameter.detach())
            parameter.data = home

    def span(self, tensor: int, start: int, stop: int) -> tuple[Part, slice]:
        """The part of a tensor, and where its entries `start` to `stop` lie in it."""
        part = self.parts[self._part[tensor]]
        offset = self._begins[tensor] - part.begin
        return part, slice(offset + start, offset + stop)

    def take(self, tensor: int, gradient: torch.Tensor) -> Iterator[tuple[Part, torch.Tensor]]:
        """One tensor's gradient; gives its part, once all its gradients are there, fp32.

        With a kernel the gradient of a part of one tensor is what came, if its length is a multiple of `BLOCK`;
        otherwise it is a copy (size,).
        """
        self._arrived[tensor] = gradient
        part = self.parts[self._part[tensor]]
        if all(one in self._arrived or not self.parameters[one].requires_grad for one in part.tensors):
            yield part, self._joined(part)

    def rest(self) -> Iterator[tuple[Part, torch.Tensor]]:
        """The parts of which some gradients have not come: those are 0."""
        for part in self.parts:
            if any(one in self._arrived for one in part.tensors):
                yield part, self._joined(part)

    def _joined(self, part: Part) -> torch.Tensor:
        none = torch.zeros((), device=self.values.device)
        pieces = [
            self._arrived.pop(one, none).expand(self.parameters[one].shape).reshape(-1).float() for one in part.tensors
        ]
        if self.kernel is not None and len(pieces) == 1 and part.filled % BLOCK == 0:
            return pieces[0].contiguous()
        return torch.cat([*pieces, none.expand(part.size - part.filled)])

    def separate(self) -> None:
        """Give every tensor a place of its own again."""
        for parameter in self.parameters:
            parameter.data = parameter.detach().clone()


def _layout(sizes: Sequence[int]) -> tuple[list[Part], list[int]]:
    """Parts, and the address of each tensor; several tensors together have at most 3/4 of the largest one's entries.

    They are filled from the last tensor on, as the backward pass goes, so that a part is complete early.
    """
    most, runs = max(sizes) * 3 // 4, [[len(sizes) - 1]]
    for number in reversed(range(len(sizes) - 1)):
        if sizes[number] + sum(sizes[one] for one in runs[-1]) > most:
            runs.append([])
        runs[-1].append(number)
    parts: list[Part] = []
    starts: list[int] = []
    begin = 0
    for run in reversed(runs):
        tensors = range(run[-1], run[0] + 1)
        address = begin
        for number in tensors:
            starts.append(address)
            address += sizes[number]
        parts.append(Part(tensors, begin, address - begin))
        begin = parts[-1].end
    return parts, starts


class FlatSparseAdamW(SparseAdamW):
    """`SparseAdamW` over tensors in one buffer; nothing in a step asks the device.

    Slots that hold no entry yet stand for the unused address, with value and gradient 0.

    Args:
        parameters, weight_decay, correction: as there.
        capacity: the most entries there will ever be.
        most: the most that `unmask` is given at once; 0 when it is not used.
    """

    _places: ClassVar[dict[str, torch.dtype]] = {"address": torch.int64}

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        capacity: int,
        *,
        most: int = 0,
        weight_decay: float = 0.0,
        correction: Correction = "global",
    ) -> None:
        self.flat = FlatTensors(parameters)
        self._filled = torch.zeros((), dtype=torch.int64, device=self.flat.values.device)
        self._listed: tuple[int, list[torch.Tensor]] | None = None
        super().__init__(parameters, capacity + most, weight_decay=weight_decay, correction=correction)
        self._blank()

    @property
    def count(self) -> int:
        """Entries selected so far; asks the device."""
        return int(self._filled)

    @count.setter
    def count(self, value: int) -> None:
        self._filled.fill_(value)

    def _used(self) -> int:
        return len(self._where["address"])

    def _blank(self) -> None:
        super()._blank()
        self._where["address"].fill_(self.flat.unused)
        self._listed = None

    def _locate(self, slots: slice | torch.Tensor, tensor: torch.Tensor, index: torch.Tensor) -> None:
        self._where["address"][slots] = self.flat.starts.index_select(0, tensor) + index

    def _list_all(self) -> None:
        """Nothing to list: an entry is found by its address."""

    def _enlist(self, groups: Groups, index: torch.Tensor, slots: torch.Tensor) -> None:
        """Nothing to list either."""

    def _read(self, groups: Groups, index: torch.Tensor, slots: torch.Tensor) -> None:
        address = self._where["address"].index_select(0, slots)
        put(self._values["value"], slots, self.flat.values.index_select(0, address).float())

    def entries(self) -> dict[str, torch.Tensor]:
        count = self.count
        address = self._where["address"][:count]
        tensor = torch.searchsorted(self.flat.starts, address, right=True) - 1
        index = address - self.flat.starts.index_select(0, tensor)
        return {"tensor": tensor.int(), "index": index.int(), "step": self._where["step"][:count]}

    def selected(self, number: int) -> torch.Tensor | None:
        count = self.count
        if self._listed is None or self._listed[0] != count:
            entries = self.entries()
            order = entries["tensor"].argsort(stable=True)
            counts = torch.bincount(entries["tensor"], minlength=len(self.flat.parameters)).tolist()
            self._listed = count, list(entries["index"][order].split(counts))
        found = self._listed[1][number].long()
        return found if len(found) else None

    def take(self, number: int, gradient: torch.Tensor) -> None:
        """Take the selected entries of a part when its last gradient is there."""
        self._gather(self.flat.take(number, gradient))

    def take_rest(self) -> None:
        """Take those of the parts of which some gradients have not come."""
        self._gather(self.flat.rest())

    def _gather(self, complete: Iterator[tuple[Part, torch.Tensor]]) -> None:
        for part, gradient in complete:
            self.gather_part(part, gradient)

    def separate(self) -> None:
        """Give every tensor a place of its own in memory."""
        self.flat.separate()

    def move_to(self, value: torch.Tensor, m: torch.Tensor, v: torch.Tensor, steps: torch.Tensor) -> None:
        super().move_to(value, m, v, steps)
        self.flat.values = self.flat.values.new_empty(0)

    def gather_part(self, part: Part, gradient: torch.Tensor, mark: float | None = None) -> None:
        """Take the gradients of the selected entries of one part, fp32 (n,), and mark them there, if asked to."""
        address, taken = self._where["address"], self._values["gradient"]
        # A step leaves every slot with gradient 0, and the unused place holds 0.
        if self.flat.kernel is not None:
            marked = (mark or 0.0, int(mark is not None))
            first, count = part.begin // BLOCK, len(address)
            launch(self.flat.kernel, count, address, taken, gradient, first, part.filled, *marked, count)
            return
        places = part.local(address)
        taken.add_(gradient.index_select(0, places))
        if mark is not None:
            gradient.index_fill_(0, places, mark)

    def unmask(self, address: torch.Tensor, gradient: torch.Tensor, quota: torch.Tensor) -> None:
        """Select the first `quota` of some entries, which are not selected yet.

        Args:
            address: int64 (n,).
            gradient: of the current step, fp32 (n,).
            quota: how many, 0-d int64, at most n.
        """
        rank = torch.arange(len(address), device=address.device)
        chosen = rank < quota
        slots = self._filled + rank
        put(self._where["address"], slots, torch.where(chosen, address, self.flat.unused))
        put(self._where["step"], slots, self._steps.int().expand(len(slots)))
        put(self._values["value"], slots, torch.where(chosen, self.flat.values.index_select(0, address).float(), 0.0))
        put(self._values["gradient"], slots, torch.where(chosen, gradient, 0.0))
        self._filled.add_(quota)

    def _write_back(self) -> None:
        put(self.flat.values, self._where["address"], self._values["value"].to(self.flat.values.dtype))
