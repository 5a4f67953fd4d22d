"""SPT-LoRA: LoRA where a matrix has many sensitive weights, single weights where it has few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.methods._beside import Beside, has_room, size_beside, thin_of
from engine.methods._peft import MAX_RANK
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.methods.spt import SPT, SptConfig
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class SptLoraConfig(SptConfig):
    """Settings of SPT-LoRA."""

    k: int = Field(
        26_112,
        ge=1,
        title="Trained parameters",
        description="How many train at most, the task head apart: single weights, whole vectors and LoRA's matrices.",
        json_schema_extra={"budget": True, "source": "this lab: as many as MiniLM has biases, for equal comparisons"},
    )
    rank: int = Field(
        8,
        ge=1,
        le=MAX_RANK,
        title="Rank",
        description="Of the LoRA module that a matrix with many sensitive weights gets.",
        json_schema_extra={"source": "authors' scripts"},
    )
    matrix_ease: float = Field(
        10.0,
        ge=1,
        le=1e6,
        title="Ease for matrices (alpha)",
        description="A matrix gets LoRA when its sensitive weights are at least LoRA's own number divided by this.",
        json_schema_extra={"source": "authors' scripts"},
    )
    vector_ease: float = Field(
        5.0,
        ge=1,
        le=1e6,
        title="Ease for vectors (beta)",
        description="A bias or norm trains whole when one in beta of its weights is sensitive.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )


@dataclass(frozen=True)
class Offer:
    """How a tensor may train other than weight by weight.

    Attributes:
        need: sensitive weights it takes; more than it has where there is no other way.
        whole: scalars that train then, not fewer than `need`.
    """

    need: int
    whole: int


@register
class SptLoRA(SPT):
    r"""Gives LoRA to the matrices that are sensitive all over, and trains single weights of the others.

    ### Why it exists

    Two ways to spend a budget: single weights, put exactly where the task asks for them, or modules
    like LoRA, which can change a whole matrix along a few directions. SPT-LoRA lets the task decide.
    It walks down the list of the model's most sensitive weights. Where many of them fall into one
    matrix, that matrix gets a LoRA module; where only a few do, these few are trained as they are.
    Biases and norms with many sensitive weights train whole.

    ### What to watch

    The mask shows single weights and whole vectors; matrices with LoRA are empty in it, and are the
    ones that move in the view of magnitude and direction. Raise alpha and modules come sooner. With
    a small budget no module can be paid for, and it is SPT with vectors that train whole.

    ### When it fails

    A module costs alpha times the weights that called for it, so a module more or less is a large
    step of the budget. What is left may not pay for the next one, whose matrix then trains a few
    weights. As everywhere, the sensitivity is that before training, with a random head.
    """

    name = "spt_lora"
    title = "SPT-LoRA"
    formula = (
        r"\Delta W = \begin{cases} B A & |S \cap W| \ge r\,(d + k) / \alpha \\ M_S \odot \Delta & "
        r"\text{otherwise} \end{cases}"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"S": "the most sensitive weights of the model, by sums of squared gradients of batches",
        r"|S \cap W|": "how many of them lie in matrix W, which has d outputs and k inputs",
        r"A, B": "LoRA's two thin matrices of rank r",
        r"M_S \odot \Delta": "a change of the sensitive weights alone",
        r"\alpha": "ease with which a matrix gets LoRA",
    }
    lr = LearningRate(1e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "A port from vision. Thresholds, rank, LoRA without a scale and its start (A uniform within 1/sqrt(inputs), B "
        "zero) are those of the authors' code. There several numbers of sensitive weights are tried, and the "
        "configuration nearest to the budget is taken, which may be above it. Here the list is walked down once; a "
        "module or vector that the rest of the budget cannot pay for is left at the single weights it has by then. A "
        "matrix that is not larger than its LoRA would be trains single weights only. In a matrix with LoRA the "
        "sensitive weights themselves stay frozen. Their drop path on modules is left out. The budget counts single "
        "weights, vectors, A and B."
    )
    Config: ClassVar[type[MethodConfig]] = SptLoraConfig
    views: ClassVar[tuple[str, ...]] = ("mask", "plane", "change")
    export_formats: ClassVar[tuple[str, ...]] = ("merged",)
    composes = False
    steady = False
    packs = ""

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.rows = self.candidates(context.architecture, config)
        self._beside: Beside | None = None

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def candidates(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The model's tensors whose weights compete."""
        return super().trainables(architecture, config)

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        rows = cls.candidates(architecture, config)
        return (*rows, *(thin for row in rows if has_room(row, config.rank) for thin in thin_of(row, config.rank)))

    @classmethod
    def eligible(cls, architecture: Architecture, config: Any) -> int:
        """The most that it can train: LoRA in every matrix it suits, and all else whole."""
        rows = cls.candidates(architecture, config)
        return sum(size_beside(row, config.rank) if has_room(row, config.rank) else row.eligible for row in rows)

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = cls.eligible(architecture, config)
        rows = [row for row in cls.candidates(architecture, config) if has_room(row, config.rank)]
        least = min((size_beside(row, config.rank) for row in rows), default=0)
        found = [f"At most {most:,} parameters can train here, not {config.k:,}."] if config.k > most else []
        if not rows:
            found.append(f"No matrix here is larger than its LoRA of rank {config.rank}: only its own weights train.")
        elif config.k < least:
            found.append(f"LoRA takes at least {least:,} parameters: this budget pays for single weights only.")
        return found

    # --- work ----------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        config: Any = self.config
        model = super().attach(model)
        self._beside = Beside(model, self.rows, config.rank, self.context.init_seed, self.context.weight_decay)
        return model

    @property
    def beside(self) -> Beside:
        """LoRA of the matrices that have it; there once the method is attached."""
        assert self._beside is not None, "attach first"
        return self._beside

    def offer(self, row: Parameter) -> Offer:
        """What a tensor needs to get LoRA, or to train whole."""
        config: Any = self.config
        if has_room(row, config.rank):
            size = size_beside(row, config.rank)
            return Offer(math.ceil(size / config.matrix_ease), size)
        if len(row.shape) == 1:
            return Offer(math.ceil(row.size / config.vector_ease), row.size)
        return Offer(row.size + 1, row.size + 1)

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Walk down the sensitive weights of the model, and decide for each tensor how it trains."""
        import torch

        from engine.sparse.selection import exclude, select_by_tensor

        def allowed(number: int) -> torch.Tensor:
            row = self.rows[number]
            return exclude(totals[number].clone(), row.frozen_rows, row.size // max(1, row.shape[0]))

        offers = [self.offer(row) for row in self.rows]
        # Of each tensor as many as can matter: the last of them is the one that makes it train otherwise.
        quotas = [min(offer.need, row.eligible, self.k) for offer, row in zip(offers, self.rows, strict=True)]
        best = select_by_tensor(allowed, [row.size for row in self.rows], quotas)
        scores = [total[index] for total, index in zip(totals, best.index.split(quotas), strict=True)]
        order = torch.cat(scores).sort(descending=True, stable=True).indices
        taken, whole = spend(best.tensor[order].tolist(), offers, self.k)
        places = order[torch.tensor(taken, dtype=torch.int64, device=order.device)].sort().values
        vectors = [number for number in whole if len(self.rows[number].shape) == 1]
        every = [torch.arange(self.rows[number].size, device=order.device) for number in vectors]
        numbers = [torch.full_like(index, number) for index, number in zip(every, vectors, strict=True)]
        self.fix(torch.cat([best.tensor[places], *numbers]), torch.cat([best.index[places], *every]))
        self.beside.give([self.rows[number] for number in whole if number not in vectors])

    def gradient_square(self) -> torch.Tensor:
        single, thin = super().gradient_square(), self.beside.square()
        return single if thin is None else single + thin

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        super().update(lr, scale)
        self.beside.step(lr, scale)

    def optimizer_scalars(self) -> int:
        return super().optimizer_scalars() + self.beside.scalars()

    # --- observation and state -----------------------------------------------------------------

    def boundary(self) -> Boundary | None:
        """None: a matrix with LoRA has its most sensitive weights frozen."""
        return None

    def kept(self) -> int | None:
        """What really trains: modules and vectors may leave some of the budget over."""
        return self.sparse.count + sum(tensor.numel() for tensor in self.beside.tensors.values()) or None

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        if weight.name in self.beside.rows:
            return self.beside.change(self.beside.rows[weight.name])
        return super().delta(weight, base)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return super().state_dict() | self.beside.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self.beside.load_state_dict(state)

    def result(self) -> dict[str, torch.Tensor]:
        """The selected entries of the model's tensors, and the thin matrices by name."""
        thin = {name: tensor.detach().cpu().clone() for name, tensor in self.beside.tensors.items()}
        return super().result() | thin

    def install(self, result: dict[str, torch.Tensor]) -> None:
        super().install(result)
        self.beside.restore(result)

    def merged(self, model: nn.Module) -> nn.Module:
        """A plain copy of the model with the products added to its weights."""
        super().merged(model)
        return self.beside.folded()


def spend(ranking: Sequence[int], offers: Sequence[Offer], budget: int) -> tuple[list[int], list[int]]:
    """What a budget pays for, walking down the sensitive weights.

    Args:
        ranking: the tensor of each weight, the most sensitive first.
        offers: by tensor.
        budget: scalars that may train.

    Returns:
        Places in the ranking of the weights that train one by one, and the tensors that train otherwise.
    """
    taken: dict[int, list[int]] = {}
    settled: dict[int, bool] = {}
    for place, tensor in enumerate(ranking):
        if tensor in settled:
            continue
        own, offer = taken.setdefault(tensor, []), offers[tensor]
        tips = len(own) + 1 >= offer.need
        cost = offer.whole - len(own) if tips else 1
        if tips or cost > budget:
            settled[tensor] = tips and cost <= budget
        if cost > budget:
            continue
        budget -= cost
        own.append(place)
    whole = sorted(tensor for tensor, paid in settled.items() if paid)
    return [place for tensor, own in taken.items() if tensor not in whole for place in own], whole
