"""What a backward pass costs, by which tensors train, and the best choice of tensors for a given cost.

A backward pass does two kinds of work. It carries the gradient of the activations from the output
down to the deepest tensor that trains, and for each tensor that trains it computes that tensor's own
gradient. Tensors that read the same activations, such as those of queries, keys and values, lie
side by side: none needs the others' share of the way. Costs are multiplications per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.methods._peft import in_out
from engine.models.architecture import Architecture, Parameter

UNITS = 20_000
"""Parts that the whole backward pass is divided into when tensors are chosen; costs are rounded up to them."""
_ROUNDING = 1e-6
_LOOKED_UP = ("token", "position", "type")


@dataclass(frozen=True)
class Stage:
    """Tensors at one depth.

    Attributes:
        tensors: the own gradient of each is computed from what has come down to here.
        passing: cost of carrying the gradient on, to the next stage below.
    """

    tensors: tuple[Parameter, ...]
    passing: float


@dataclass(frozen=True)
class BackwardPass:
    """The stages of a model, from the output down.

    Attributes:
        stages: every tensor of the backbone is in one of them.
        length: tokens of an example.
        forward: cost of the forward pass.
    """

    stages: tuple[Stage, ...]
    length: int
    forward: float

    def own(self, row: Parameter) -> float:
        """Cost of one tensor's own gradient."""
        if row.role == "pooler":
            return row.size / self.length  # it sees one token of an example
        return row.shape[-1] if row.role in _LOOKED_UP else row.size

    @property
    def whole(self) -> float:
        """Cost when everything trains."""
        return self.cost({row.name for stage in self.stages for row in stage.tensors})

    def cost(self, names: Collection[str]) -> float:
        """Cost when the tensors of these names train."""
        own, passed, carried = 0.0, 0.0, 0.0
        for stage in self.stages:
            trained = [self.own(row) for row in stage.tensors if row.name in names]
            if trained:
                own, carried = own + sum(trained), passed
            passed += stage.passing
        return own + carried

    def best(self, worth: Mapping[str, float], share: float) -> set[str]:
        """The tensors that together are worth most, at no more than a share of the whole cost.

        For each depth that training may reach, the way down is paid first; what is left is filled like
        a knapsack with tensors from there upwards, which one table, built on the way down, answers for
        all depths. Tensors without a positive worth are never chosen.
        """
        gains = {name: value for name, value in worth.items() if value > 0}
        if share >= 1:
            return set(gains)
        unit, room = self.whole / UNITS, math.floor(share * UNITS + _ROUNDING)
        table, passed = np.zeros(room + 1), 0.0
        items: list[tuple[str, int, np.ndarray]] = []
        most, end, left = 0.0, 0, 0
        for stage in self.stages:
            free = room - math.ceil(passed / unit - _ROUNDING)
            if free < 0:
                break
            for row in stage.tensors:
                cost = math.ceil(self.own(row) / unit - _ROUNDING)
                if row.name in gains and cost <= free:
                    grown = table[: room + 1 - cost] + gains[row.name]
                    taken = np.zeros(room + 1, dtype=bool)
                    taken[cost:] = grown > table[cost:]
                    table[cost:] = np.maximum(table[cost:], grown)
                    items.append((row.name, cost, taken))
            if table[free] > most:
                most, end, left = float(table[free]), len(items), free
            passed += stage.passing
        return _traced(items[:end], left)


def _traced(items: Sequence[tuple[str, int, np.ndarray]], left: int) -> set[str]:
    """The items that made up the best value for so much room."""
    found = set()
    for name, cost, taken in reversed(items):
        if taken[left]:
            found.add(name)
            left -= cost
    return found


def backward_pass(architecture: Architecture, length: int) -> BackwardPass:
    """The stages of a model whose examples have so many tokens.

    Encoders here normalise after attention and after the feed-forward block, decoders before.
    """
    decoder = architecture.kind == "decoder"
    order: tuple[tuple[str, ...], ...] = (("norm_2",), ("down",), ("up", "gate"), ("norm_1",), ("o",), ())
    if decoder:
        order = (("down",), ("up", "gate"), ("norm_2",), ("o",), (), ("norm_1",))
    named = {role for roles in order for role in roles}
    rest = list(architecture.backbone)
    groups: list[list[Parameter]] = []

    def take(belongs: Callable[[Parameter], bool]) -> None:
        groups.append([row for row in rest if belongs(row)])
        rest[:] = [row for row in rest if not belongs(row)]

    take(lambda row: row.role == "pooler" or (decoder and row.role == "norm_out"))
    for layer in reversed(range(architecture.layers)):
        for roles in order:  # queries, keys, values and whatever else a block has lie where no role is named
            take(lambda row, layer=layer, roles=roles: row.layer == layer and _fits(row, roles, named))  # type: ignore[misc]
    take(lambda row: row.role not in (*_LOOKED_UP, "distance"))
    take(lambda row: True)
    bare = BackwardPass((), length, 0.0)
    stages = tuple(Stage(tuple(group), _passing(group, bare)) for group in groups)
    products = sum(_products(row, length) for row in architecture.linears(["o"]))
    forward = sum(bare.own(row) for row in architecture.backbone) + products / 2
    return BackwardPass(stages, length, forward)


def _fits(row: Parameter, roles: Collection[str], named: Collection[str]) -> bool:
    return row.role in roles if roles else row.role not in named


def _passing(group: Sequence[Parameter], bare: BackwardPass) -> float:
    """Cost of the gradient of what these tensors read; below attention's output lie its two products."""
    weights = [row for row in group if row.part == "weight" and row.role not in (*_LOOKED_UP, "distance")]
    return sum(bare.own(row) + (_products(row, bare.length) if row.role == "o" else 0) for row in weights)


def _products(row: Parameter, length: int) -> float:
    """Backward cost of attention's two products, of queries with keys and of weights with values."""
    return 4 * length * in_out(row)[0]
