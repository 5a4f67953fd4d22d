"""AdamW for single weights: state for the selected entries only, in one arena.

The arena holds, per selected entry, where it is, an fp32 master copy, two moments and the
step of its selection. Entries are appended, or take the place of others. One update is a handful
of vector operations over the arena, in the order of `torch.optim.AdamW`, so that selecting
everything reproduces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from engine.errors import ModelError
from engine.sparse.gradient import StreamedGradient

Correction = Literal["global", "entry"]
BETAS = (0.9, 0.999)
EPS = 1e-8
Groups = list[tuple[int, torch.Tensor]]
"""Numbers of tensors, each with the places of its entries in a list of entries."""


def put(target: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    """``target[indices] = values`` for indices that all differ.

    Writing in any order gives the same result then, so that the deterministic kernel, which sorts
    on a GPU and is ten times slower, is not needed.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if target.is_cuda and deterministic:
        torch.use_deterministic_algorithms(False)
        target.index_copy_(0, indices, values)
        torch.use_deterministic_algorithms(True)
    else:
        target.index_copy_(0, indices, values)


def _by_tensor(tensor: torch.Tensor) -> Groups:
    """Entries by the tensor they lie in, in their own order."""
    order = tensor.argsort(stable=True)
    numbers, counts = tensor[order].unique_consecutive(return_counts=True)
    pairs = torch.stack([numbers, counts]).T.tolist()
    parts = order.split([count for _, count in pairs])
    return [(number, part) for (number, _), part in zip(pairs, parts, strict=True)]


class SparseAdamW:
    """Trains single entries of some tensors.

    Args:
        parameters: the tensors, contiguous and all on one device.
        capacity: the most entries there will ever be.
        weight_decay: decoupled, applied to selected entries only.
        correction: ``global`` corrects the bias of the moments with the number of steps so far,
            as the methods' authors do, so that an entry selected late starts with up to 3.2
            times the learning rate; ``entry`` counts from the entry's own selection.
        anchored: keep what every entry was when it was selected: decay pulls towards that, and an
            entry that is replaced goes back to it. Without, a replaced entry stays as it is.

    Raises:
        ModelError: for a tensor with 2^31 entries or more, whose indices do not fit int32.
    """

    _places: ClassVar[dict[str, torch.dtype]] = {"tensor": torch.int32, "index": torch.int32}
    """Columns that say where an entry is."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        capacity: int,
        *,
        weight_decay: float = 0.0,
        correction: Correction = "global",
        anchored: bool = False,
    ) -> None:
        for parameter in parameters:
            if parameter.numel() >= 2**31:
                raise ModelError(f"A tensor of {parameter.numel():,} weights is too large to index.", "Exclude it.")
        device = parameters[0].device if parameters else torch.device("cpu")
        self._parameters = list(parameters)
        self._decay, self._correction, self._anchored = weight_decay, correction, anchored
        self.count = 0
        """Entries selected so far."""
        self._steps = torch.zeros((), dtype=torch.float64, device=device)
        where, values = {**self._places, "step": torch.int32}, ["value", "m", "v", "gradient"]
        if anchored:
            where, values = {**where, "history": torch.int32}, [*values, "base"]
        self._where = {key: torch.zeros(capacity, dtype=kind, device=device) for key, kind in where.items()}
        self._values = {key: torch.zeros(capacity, device=device) for key in values}
        # Per tensor: slots in the arena and flat indices, int64 because index_copy_ wants it.
        self._slots: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._indices: list[torch.Tensor | None] = [None] * len(self._parameters)

    def add(self, tensor: torch.Tensor, index: torch.Tensor, step: int, gradient: torch.Tensor | None = None) -> None:
        """Select entries that are not selected yet.

        Args:
            tensor, index: int64 (n,), which tensor and which flat position.
            step: the step they are selected at, from 0.
            gradient: of the current step, fp32 (n,), when it has been computed already.
        """
        start, stop = self.count, self.count + len(index)
        self._locate(slice(start, stop), tensor, index)
        self._where["step"][start:stop] = step
        if gradient is not None:
            self._values["gradient"][start:stop] = gradient
        self.count = stop
        groups, slots = _by_tensor(tensor), torch.arange(start, stop, device=tensor.device)
        self._enlist(groups, index, slots)
        self._read(groups, index, slots)

    @torch.no_grad()
    def replace(
        self,
        slots: torch.Tensor,
        tensor: torch.Tensor,
        index: torch.Tensor,
        step: int,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
        history: int = 0,
    ) -> None:
        """Select entries in place of others; all that is neither keeps its state bit for bit.

        Args:
            slots: int64 (n,), places in the arena of the entries that leave.
            tensor, index: int64 (n,), the entries that come, none of which is selected.
            step: the first step they take part in.
            moments: to start with, fp32 (n,) each; zero by default.
            history: steps that these moments count for; only when anchored.
        """
        if self._anchored:
            self._values["value"][slots] = self._values["base"][slots]
            self._write_back()
            self._where["history"][slots] = history
        self._locate(slots, tensor, index)
        self._where["step"][slots] = step
        self._values["gradient"][slots] = 0.0
        for place, key in enumerate(("m", "v")):
            self._values[key][slots] = moments[place] if moments is not None else 0.0
        self._list_all()
        self._read(_by_tensor(tensor), index, slots)

    def _locate(self, slots: slice | torch.Tensor, tensor: torch.Tensor, index: torch.Tensor) -> None:
        """Note where the entries in some slots are."""
        self._where["tensor"][slots] = tensor.int()
        self._where["index"][slots] = index.int()

    def _list_all(self) -> None:
        """Make the lists of all tensors anew, each in the order of the arena."""
        self._slots = [None] * len(self._parameters)
        self._indices = [None] * len(self._parameters)
        tensor, index = (self._where[key][: self.count].long() for key in ("tensor", "index"))
        self._enlist(_by_tensor(tensor), index, torch.arange(self.count, device=tensor.device))

    def _enlist(self, groups: Groups, index: torch.Tensor, slots: torch.Tensor) -> None:
        """Give each entry its place at the end of its tensor's lists."""
        for number, chosen in groups:
            own_slots, own = slots[chosen], index[chosen]
            old_slots, old_indices = self._slots[number], self._indices[number]
            self._slots[number] = own_slots if old_slots is None else torch.cat([old_slots, own_slots])
            self._indices[number] = own if old_indices is None else torch.cat([old_indices, own])

    def _read(self, groups: Groups, index: torch.Tensor, slots: torch.Tensor) -> None:
        """Take the master copies of entries from the model."""
        for number, chosen in groups:
            values = self._flat(number).index_select(0, index[chosen]).float()
            put(self._values["value"], slots[chosen], values)
        if self._anchored:
            put(self._values["base"], slots, self._values["value"].index_select(0, slots))

    def _flat(self, number: int) -> torch.Tensor:
        return self._parameters[number].detach().view(-1)

    def selected(self, number: int) -> torch.Tensor | None:
        """Flat indices selected in one tensor, int64, in the order of the arena; None when none is."""
        return self._indices[number]

    def slots(self, number: int) -> torch.Tensor | None:
        """Places in the arena of the entries that `selected` gives, in the same order."""
        return self._slots[number]

    def change(self, slots: torch.Tensor) -> torch.Tensor:
        """How far entries have moved since they were selected, fp32 (n,); only when anchored."""
        return self._values["value"][slots] - self._values["base"][slots]

    def take(self, number: int, gradient: torch.Tensor) -> None:
        """Take the selected entries of one tensor's gradient, dense or sparse by rows."""
        self.gather(number, StreamedGradient.of(gradient))

    def take_rest(self) -> None:
        """Take what has not been taken yet: here nothing, since each gradient is read when it comes."""

    def separate(self) -> None:
        """Give every tensor a place of its own in memory: here each has one."""

    def gather(self, number: int, gradient: StreamedGradient) -> None:
        """Take the selected entries of one tensor's gradient."""
        slots, indices = self._slots[number], self._indices[number]
        if slots is not None and indices is not None:
            put(self._values["gradient"], slots, gradient.at(indices))

    def gradient_square(self) -> torch.Tensor:
        """Sum of squares of the gathered gradients, 0-d."""
        return self._values["gradient"][: self._used()].square().sum()

    def _used(self) -> int:
        """Slots that an update runs over: those of the selected entries."""
        return self.count

    @property
    def steps(self) -> int:
        """Updates done."""
        return int(self._steps)

    def clock(self) -> torch.Tensor:
        """Updates done, int64 (1,), on the device."""
        return self._steps.long().view(1)

    @torch.no_grad()
    def step(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """One AdamW update of all selected entries with their gradients times `scale`; asks nothing of the device."""
        self._steps.add_(1)
        value, m, v, gradient = (self._values[key][: self._used()] for key in ("value", "m", "v", "gradient"))
        gradient.mul_(scale)
        if self._anchored:
            value.sub_((value - self._values["base"][: self._used()]).mul_(lr * self._decay))
        else:
            value.mul_(1 - lr * self._decay)
        m.lerp_(gradient, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        age = self._steps
        if self._correction == "entry":
            age = age - self._where["step"][: self._used()]
        if self._correction == "entry" and self._anchored:
            age = age + self._where["history"][: self._used()]
        first, second = (1 - beta**age for beta in BETAS)
        spread = v.sqrt().div_(second.sqrt().float()).add_(EPS)
        value.add_(torch.mul(m, (-lr / first).float()).div_(spread))
        # A tensor that takes no part in the next step must not repeat this gradient.
        gradient.zero_()
        self._write_back()

    def _write_back(self) -> None:
        """Round the master copies into the model's own precision."""
        values = self._values["value"]
        for number, (slots, indices) in enumerate(zip(self._slots, self._indices, strict=True)):
            if slots is not None and indices is not None:
                target = self._flat(number)
                put(target, indices, values.index_select(0, slots).to(target.dtype))

    def move_to(self, value: torch.Tensor, m: torch.Tensor, v: torch.Tensor, steps: torch.Tensor) -> None:
        """Go on in other memory, where somebody else updates: what is there is this state from now on.

        Args:
            value, m, v: fp32 (count,).
            steps: updates done, float64, 0-d.
        """
        for key, place in (("value", value), ("m", m), ("v", v)):
            place.copy_(self._values[key][: self.count])
            self._values[key] = place
        steps.copy_(self._steps)
        self._steps = steps

    def scalars(self) -> int:
        """Scalars of optimizer state in use: two moments per selected entry."""
        return 2 * self.count

    def unmoved(self) -> int:
        """Selected entries that never received a gradient: part of the budget that is wasted."""
        return int((self._values["v"][: self.count] == 0).sum())

    def entries(self) -> dict[str, torch.Tensor]:
        """`tensor`, `index` and `step` of the selected entries, int32 (count,), in the order of the arena."""
        return {key: self._where[key][: self.count] for key in ("tensor", "index", "step")}

    def since(self, known: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and gathered gradients, fp32, of all entries after the first `known`."""
        return self._values["value"][known : self.count], self._values["gradient"][known : self.count]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything a resume needs: the arena up to its filled part, and the step counter."""
        columns = {**self.entries(), **self._values}
        if self._anchored:
            columns["history"] = self._where["history"]
        kept = {key: column[: self.count].clone() for key, column in columns.items() if key != "gradient"}
        return {**kept, "steps": self._steps.clone()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a state and write its weights into the tensors."""
        self._blank()
        self.count = count = len(state["index"])
        self._steps.copy_(state["steps"])
        self._locate(slice(0, count), *(state[key].to(self._steps.device) for key in ("tensor", "index")))
        for columns in (self._where, self._values):
            for key, column in columns.items():
                if key != "gradient" and key not in self._places:
                    column[:count] = state[key]
        self._list_all()
        self._write_back()

    def _blank(self) -> None:
        """Forget all entries."""
        for column in (*self._where.values(), *self._values.values()):
            column.zero_()
        self._slots = [None] * len(self._parameters)
        self._indices = [None] * len(self._parameters)
