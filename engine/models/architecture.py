"""The architecture map: every parameter of a supported model as a row with layer, role and part.

Heat maps take their rows and columns from it, and methods name their targets by role. It
is built without torch, so that a plan can be made in the page's process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal[
    "token",  # token embeddings
    "position",
    "distance",  # relative positions: a table of distances, all of them reachable
    "type",  # token types (segments)
    "norm_in",  # norm after the embeddings
    "q",
    "k",
    "v",
    "qkv",  # the three in one matrix (GPT-2)
    "o",
    "norm_1",  # norm of the attention block
    "gate",
    "up",
    "down",
    "norm_2",  # norm of the feed-forward block
    "norm_out",  # final norm
    "pooler",
    "head",
    "other",
]
LINEAR_ROLES: tuple[Role, ...] = ("q", "k", "v", "qkv", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model.

    Attributes:
        name: its full name in `named_parameters()` of the loaded classifier.
        shape: as PyTorch stores it; a linear weight is (out, in) unless `transposed`.
        layer: block number from 0; -1 before the blocks, `Architecture.layers` after them.
        role: what it does.
        part: ``weight`` or ``bias`` in the base model; ``A``, ``B``, ``E``, ``magnitude``, ... for
            what a method adds.
        frozen_rows: rows that can never receive a gradient with a given task (padding row,
            unused positions and token types), as half-open ranges.
        transposed: whether a linear weight is stored as (in, out), as GPT-2 does.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    role: Role
    part: str
    frozen_rows: tuple[tuple[int, int], ...] = ()
    transposed: bool = False

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that owns it: the name without its last component."""
        return self.name.rpartition(".")[0]

    @property
    def eligible(self) -> int:
        """Scalars outside the frozen rows."""
        dead = sum(stop - start for start, stop in self.frozen_rows)
        return self.size - dead * (self.size // self.shape[0] if self.shape else 0)


@dataclass(frozen=True)
class Architecture:
    """A supported model as a table, in `named_parameters()` order, tied tensors once.

    Attributes:
        model_type: the family's name in its configuration, for example ``"bert"``.
        kind: encoder or decoder.
        layers, hidden, heads: number of blocks, width, and attention heads of a block.
        parameters: the rows.
        rotary: whether positions are rotary.
        relative_queries: whether relative positions are matched against keys (DeBERTa's p2c).
        pad_token: row of the padding token in the embeddings, if the model has one.
        max_positions: longest input.
    """

    model_type: str
    kind: Literal["encoder", "decoder"]
    layers: int
    hidden: int
    heads: int
    parameters: tuple[Parameter, ...]
    rotary: bool = False
    relative_queries: bool = False
    pad_token: int | None = None
    max_positions: int = 512

    @property
    def key_bias_alive(self) -> bool:
        """Whether key biases can change the output: not where they shift all scores of a query alike."""
        return self.rotary or self.relative_queries

    @property
    def backbone(self) -> tuple[Parameter, ...]:
        """All rows but the task head."""
        return tuple(p for p in self.parameters if p.role != "head")

    @property
    def head(self) -> tuple[Parameter, ...]:
        """The rows of the task head."""
        return tuple(p for p in self.parameters if p.role == "head")

    @property
    def common_budget(self) -> tuple[int, str]:
        """A budget at which methods can meet, and why: all biases, or a thousandth of a model that has none."""
        biases = sum(p.size for p in self.backbone if p.part == "bias")
        if biases:
            return biases, "all its biases, which is as far as BitFit goes"
        return sum(p.size for p in self.backbone) // 1000, "a thousandth of its weights"

    def linears(self, roles: Iterable[str] = LINEAR_ROLES) -> tuple[Parameter, ...]:
        """Weight matrices of the blocks with one of the roles, in model order."""
        wanted = set(roles)
        return tuple(
            p
            for p in self.parameters
            if p.role in wanted and p.part == "weight" and len(p.shape) == 2 and 0 <= p.layer < self.layers
        )

    def find(self, name: str) -> Parameter:
        """The row with this name; KeyError when there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def with_frozen_rows(self, *, max_length: int, pairs: bool) -> Architecture:
        """The map with the rows marked that a task with these inputs can never reach."""
        return replace(self, parameters=tuple(self._mark(p, max_length, pairs) for p in self.parameters))

    def _mark(self, parameter: Parameter, max_length: int, pairs: bool) -> Parameter:
        rows = parameter.shape[0] if parameter.shape else 0
        ranges: list[tuple[int, int]] = []
        if parameter.role == "token" and self.pad_token is not None:
            ranges = [(self.pad_token, self.pad_token + 1)]
        elif parameter.role == "position":
            # RoBERTa-like models count positions from the padding index plus one.
            first = self.pad_token + 1 if self.model_type in OFFSET_POSITIONS and self.pad_token is not None else 0
            ranges = [(0, first), (min(first + max_length, rows), rows)]
        elif parameter.role == "type":
            ranges = [(2 if pairs else 1, rows)]
        kept = tuple((start, stop) for start, stop in ranges if start < stop)
        return replace(parameter, frozen_rows=kept)


OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
