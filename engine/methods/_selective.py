"""What methods that train single weights share: eligibility, budget, sparse optimizer, state, export.

A subclass decides which entries are selected and when; everything else is here. On top of
another method (``on:``) the eligible entries are those of the tensors that method adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from engine.errors import BudgetError, SpecError
from engine.methods.contract import Context, Method, MethodConfig
from engine.methods.observed import Selection
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from engine.sparse.optimizer import Correction, SparseAdamW

Group = Literal["token", "position", "type", "norm", "bias", "pooler"]
_ROLES: dict[str, tuple[str, ...]] = {
    "token": ("token",),
    "position": ("position", "distance"),
    "type": ("type",),
    "norm": ("norm_in", "norm_1", "norm_2", "norm_out"),
    "pooler": ("pooler",),
}

_STARTS_AT_ZERO = frozenset({"B", "down bias", "up bias"})
"""Parts of LoRA and of adapters that are zero before the first step."""


class CountConfig(MethodConfig):
    """The setting of methods that train a number of single weights."""

    k: int = Field(
        26_112,
        ge=1,
        title="Selected weights",
        description="How many single weights are trained, the task head apart.",
        json_schema_extra={"budget": True, "source": "this lab: as many as MiniLM has biases, for equal comparisons"},
    )


class SelectiveConfig(CountConfig):
    """Settings of selective methods for which all backbone tensors compete."""

    exclude: tuple[Group, ...] = Field(
        (),
        title="Never select from",
        description=(
            "Kinds of tensors that stay frozen: token, position and type embeddings, norms (gains and biases), "
            "biases (those of norms too), pooler. By default everything competes."
        ),
        json_schema_extra={"source": "FISH, ID3: all backbone tensors compete", "level": "advanced"},
    )


def _excluded(row: Parameter, groups: Sequence[str]) -> bool:
    if "bias" in groups and row.part.endswith("bias"):
        return True
    return any(row.role in _ROLES.get(group, ()) for group in groups)


class Selective(Method):
    """Base of the methods that train k single weights with state for these k only."""

    family = "selective"
    views: ClassVar[tuple[str, ...]] = ("mask", "plane", "change")
    composes = True
    export_formats: ClassVar[tuple[str, ...]] = ("delta", "merged")
    Config: ClassVar[type[MethodConfig]] = SelectiveConfig
    scattered: ClassVar[bool] = True
    """Whether single entries are chosen, each for itself, and not whole blocks."""
    correction: Correction = "global"
    anchored: ClassVar[bool] = False
    """Whether an entry that gives its place to another goes back to what it was."""

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        if inner is not None and "rank" in inner.views:
            raise SpecError(
                f"{self.title} cannot stand on {inner.title}, which needs the gradients of all its entries "
                "to move ranks, while a sparse method drops them.",
                "Put it on LoRA or DoRA.",
            )
        if inner is not None and not inner.steady:
            raise SpecError(
                f"{self.title} cannot stand on {inner.title}, which changes what it trains in mid-run.",
                "Put it on LoRA or DoRA, or leave out `on`.",
            )
        if isinstance(inner, Selective):
            raise SpecError(
                f"{self.title} cannot stand on {inner.title}, which selects weights too.", "Leave out `on`."
            )
        self.rows = self.trainables(context.architecture, config)
        self.k = self.size(context.architecture, config)
        self._numbers = {row.name: number for number, row in enumerate(self.rows)}
        self._tensors: list[nn.Parameter] = []
        self.flat = context.device != "cpu" and self.grows
        """Whether gradients are read in a few large parts, without a question to the device, as a GPU likes it.

        Where entries give their place to others, each tensor is looked at for itself.
        """
        self._sparse: SparseAdamW | None = None
        self._by_rows: list[nn.Embedding] = []

    # --- declaration ---------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return tuple(row for row in architecture.backbone if row.eligible and not _excluded(row, config.exclude))

    @classmethod
    def eligible(cls, architecture: Architecture, config: Any) -> int:
        """Scalars that may be selected: without excluded tensors and without rows no example reaches."""
        return sum(row.eligible for row in cls.trainables(architecture, config))

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return min(config.k, cls.eligible(architecture, config))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """Exactly `target` selected weights.

        Raises:
            BudgetError: for a target below 1 or above the eligible weights.
        """
        eligible = cls.eligible(architecture, config)
        if target < 1:
            raise BudgetError(f"A budget of {target:,} selects no weight.", "Ask for at least one.")
        if target > eligible:
            raise BudgetError(
                f"{target:,} weights were asked for, but {cls.title} may select from {eligible:,} here.",
                "Ask for at most that many" + (", or exclude less." if config.exclude else "."),
            )
        return config.model_copy(update={"k": target})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        eligible = cls.eligible(architecture, config)
        if config.k <= eligible:
            return []
        return [f"Only {eligible:,} weights may be selected here: all of them are, not {config.k:,}."]

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        """Those of the blocks' matrices; word embeddings give the rows of the batch's words alone."""
        return sum(row.size for row in architecture.linears())

    @classmethod
    def on_lora_alone(cls, architecture: Architecture, config: Any) -> bool:
        """Whether all that may be selected are the two matrices of LoRA, one of which starts at zero."""
        return {row.part for row in cls.trainables(architecture, config)} == {"A", "B"}

    @classmethod
    def zeros_at_start(cls, architecture: Architecture, config: Any) -> int:
        """Eligible entries of the tensors that another method adds as zeros; 0 on the model itself."""
        rows = cls.trainables(architecture, config)
        return sum(row.eligible for row in rows if row.part in _STARTS_AT_ZERO)

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze all that cannot be selected, and make room for the state of k entries."""
        if self.inner is None:
            named = dict(model.named_parameters())
        else:
            model = self.inner.attach(model)
            named = dict(self.inner.parameters())
        self._tensors = [named[row.name] for row in self.rows]
        self.freeze(model)
        for tensor in self._tensors:
            tensor.requires_grad_(True)
        if not self.flat:
            self._ask_for_rows(model)
        self._sparse = self._optimizer()
        return model

    def _optimizer(self) -> SparseAdamW:
        from engine.sparse.flat import FlatSparseAdamW
        from engine.sparse.optimizer import SparseAdamW

        settings: Any = {"weight_decay": self.context.weight_decay, "correction": self.correction}
        if self.flat:
            return FlatSparseAdamW(self._tensors, self.k, **settings)
        return SparseAdamW(self._tensors, self.k, anchored=self.anchored, **settings)

    def _ask_for_rows(self, model: nn.Module) -> None:
        """Let word embeddings give the gradients of touched rows alone; large parts are made of whole gradients."""
        from torch import nn

        own = {row.module for row in self.rows if row.role == "token"}
        modules = [module for name, module in model.named_modules() if name in own]
        self._by_rows = [module for module in modules if isinstance(module, nn.Embedding)]
        for module in self._by_rows:
            module.sparse = True

    @property
    def sparse(self) -> SparseAdamW:
        """The optimizer of the selected entries; there once the method is attached."""
        assert self._sparse is not None, "attach first"
        return self._sparse

    def entries(self) -> SparseAdamW:
        return self.sparse

    def streamed(self) -> list[tuple[str, nn.Parameter]]:
        rows = zip(self.rows, self._tensors, strict=True)
        return [(row.name, tensor) for row, tensor in rows if tensor.requires_grad]

    def on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Take the selected entries of one gradient and drop the rest."""
        if parameter.grad is not None:
            gradient, parameter.grad = parameter.grad, None
            self.sparse.take(self._numbers[name], gradient)

    def before_step(self, step: int) -> None:
        self.sparse.take_rest()

    def gradient_square(self) -> torch.Tensor:
        """Mask, then clip: the norm is that of the selected gradients."""
        return self.sparse.gradient_square()

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        self.sparse.step(lr, scale)

    def optimizer_scalars(self) -> int:
        return self.sparse.scalars()

    def unmoved(self) -> int:
        """Selected entries that have received no gradient so far, such as words that never occurred."""
        return self.sparse.unmoved()

    # --- observation -----------------------------------------------------------------------

    def selection(self) -> Selection:
        entries = {key: column.cpu().numpy().copy() for key, column in self.sparse.entries().items()}
        return Selection(self.rows, entries["tensor"], entries["index"], entries["step"])

    def newest(self, known: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sparse.since(known)

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        if self.inner is not None:
            return self.inner.delta(weight, base)
        number = self._numbers.get(weight.name)
        if number is None or self.sparse.selected(number) is None:
            return None
        return self._tensors[number].detach() - base

    # --- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.sparse.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.sparse.load_state_dict(state)

    def result(self) -> dict[str, torch.Tensor]:
        """Per changed tensor ``<name>.index`` (int32, ascending), ``<name>.value`` and ``<name>.step``."""
        selection = self.selection()
        found: dict[str, torch.Tensor] = {}
        for number in np.unique(selection.tensor).tolist():
            found.update(self._triple(number, selection))
        return found

    def _triple(self, number: int, selection: Selection) -> dict[str, torch.Tensor]:
        import torch

        own = np.flatnonzero(selection.tensor == number)
        own = own[np.argsort(selection.index[own])]
        index = torch.from_numpy(selection.index[own])
        values = self._tensors[number].detach().cpu().view(-1)[index.long()]
        name = self.rows[number].name
        return {
            f"{name}.index": index,
            f"{name}.value": values,
            f"{name}.step": torch.from_numpy(selection.step[own]),
        }

    def install(self, result: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for row, tensor in zip(self.rows, self._tensors, strict=True):
                if f"{row.name}.index" in result:
                    index = result[f"{row.name}.index"].long().to(tensor.device)
                    tensor.view(-1).index_copy_(0, index, result[f"{row.name}.value"].to(tensor))

    def merged(self, model: nn.Module) -> nn.Module:
        for module in self._by_rows:
            module.sparse = False  # a plain model again, which any optimizer can train
        self.sparse.separate()
        return model if self.inner is None else self.inner.merged(model)
