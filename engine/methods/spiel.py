"""SpIEL: a mask of constant size that keeps dropping what has hardly moved and growing where gradients pull."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from engine.errors import Diverged, RunFailed
from engine.methods._selective import CountConfig
from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.sparse.gradient import StreamedGradient


class SpielConfig(CountConfig):
    """Settings of SpIEL."""

    every: int = Field(
        20,
        ge=2,
        le=10_000,
        title="Steps between exchanges",
        description="How many steps lie between one exchange of weights and the next.",
        json_schema_extra={"source": "authors' code"},
    )
    window: int = Field(
        5,
        ge=1,
        le=1_000,
        title="Steps of looking",
        description=(
            "How many steps' gradients are added up, before the first exchange, to choose what to grow. Later "
            "exchanges look one step longer."
        ),
        json_schema_extra={"source": "authors' code"},
    )
    rate: float = Field(
        0.2,
        gt=0,
        le=1,
        title="Share exchanged",
        description="Which part of each matrix's selected weights is up for exchange at first; it falls to 0.",
        json_schema_extra={"source": "authors' code"},
    )
    decline: Literal["linear", "cosine"] = Field(
        "linear",
        title="How the share falls",
        description="linear: in a straight line, after a first exchange of everything. cosine: along half a wave.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )

    @model_validator(mode="after")
    def _looks_before_it_exchanges(self) -> SpielConfig:
        """A look that lasts until the next one begins would never end."""
        if self.window >= self.every:
            raise ValueError(f"`window` {self.window} has to be smaller than `every` {self.every}")
        return self


@dataclass
class Candidates:
    """What one matrix may grow: index int64 (n,), sums of gradients and of their squares, fp32 (n,)."""

    index: torch.Tensor
    total: torch.Tensor
    square: torch.Tensor
    seen: int = 1

    def add(self, gradient: StreamedGradient) -> None:
        """One more step's gradient."""
        own = gradient.at(self.index)
        self.total += own
        self.square.addcmul_(own, own)
        self.seen += 1


@register
class SpIEL(StaticMask):
    r"""Starts from a random mask and improves it: what hardly moves gives its place to what is pulled hardest.

    ### Why it exists

    A fixed mask has to be right before training starts, and a mask that grows can take nothing back.
    SpIEL does both, growing and dropping, at constant size: every few steps the selected weights that
    have moved least return to their pretrained values, and weights with the largest gradients, added
    up over a few batches, take their places. No weight needs state before it is selected, so that
    memory stays as small as the mask.

    ### What to watch

    The first mask is drawn by lot and replaced whole after a few steps; then a fifth of it moves at a
    time, and less and less. The number of selected weights is a flat line all the while: it is the map
    that changes. When the run is over the picture of a matrix shows how old each weight's place is.

    ### When it fails

    A dropped weight forgets all it has learned. A weight that came a few steps ago has moved little
    and is the next to go, however promising, so a short time between exchanges only churns. In a run
    of few steps the exchanges are too few to matter. And each matrix has its share of the budget by its
    size alone: which matrix deserves more is never asked.
    """

    name = "spiel"
    title = "SpIEL"
    paper = Paper(
        title="Scaling Sparse Fine-Tuning to Large Language Models",
        authors="Ansell, Vulić, Sterz, Korhonen, Ponti",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2401.16405",
    )
    formula = (
        r"\mathrm{drop} = \operatorname{bottom}_{p_t k_i} |\delta_j|, \qquad "
        r"\mathrm{grow} = \operatorname{top}_{p_t k_i} \Bigl|\sum_{s \in \mathrm{window}} g_j^{(s)}\Bigr|, \qquad "
        r"p_t = p_0 \left(1 - \tfrac{t}{T}\right)"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"\delta_j": "how far a selected weight has moved from its pretrained value",
        r"g_j^{(s)}": "gradient of weight j at step s of the window",
        r"k_i": "selected weights of matrix i: its share of k by size",
        r"p_t": "part of them up for exchange after step t; all of them the first time",
        r"p_0, T": "the first share, and steps of the run",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "The variant with accumulated gradients, after the authors' code: candidates are the largest gradients of the "
        "window's first batch, a weight that would both leave and come stays as it is, newcomers start with the mean "
        "gradients of the window as moments, bias correction counts each weight's own age, and decay pulls towards "
        "the pretrained value. The variant with SM3's momentum is left out: there SM3 is the optimizer as well. Shares "
        "of matrices add up to exactly k here; rounding down loses a few in their code. During a window each matrix "
        "also holds two sums per candidate, which are not counted as optimizer state. The authors train decoders of "
        "billions of weights, with windows of several small batches to a step."
    )
    Config: ClassVar[type[MethodConfig]] = SpielConfig
    composes = False
    grows = False
    packs = ""
    correction = "entry"
    anchored = True
    captured = "gradients"
    not_capturable = "Now and then it looks at all gradients and exchanges what it trains."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._done = 0
        self._candidates: dict[int, Candidates] = {}

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears()

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """Exactly `target` selected weights, or all in the blocks' matrices where that is fewer.

        Raises:
            BudgetError: for a target below 1.
        """
        return super().fit(architecture, config, min(target, cls.eligible(architecture, config)))

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if steps <= config.window:
            found.append(
                f"The first exchange comes after step {config.window}: in {steps} steps the mask stays random."
            )
        return found

    # --- the step ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Draw the first mask."""
        model = super().attach(model)
        self.choose_by_lot(self.equal_shares())
        return model

    def looking(self, step: int) -> bool:
        """Whether the gradients of a step (from 0) are looked at."""
        settings: Any = self.config
        past = (step + 1) % settings.every
        return step < settings.window or (step + 1 >= settings.every and past <= settings.window)

    def share(self, done: int) -> float:
        """Part of the selected weights that is up for exchange after so many steps; 0 between exchanges."""
        settings: Any = self.config
        if done % settings.every != settings.window:
            return 0.0
        if settings.decline == "cosine":
            return float(settings.rate * (1 + math.cos(math.pi * done / self.context.steps)) / 2)
        return 1.0 if done == settings.window else float(settings.rate * (1 - done / self.context.steps))

    def on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Take the selected entries of one gradient, look at the others if it is time to, and drop it."""
        from engine.sparse.gradient import StreamedGradient

        if parameter.grad is None:
            return
        number, gradient = self._numbers[name], StreamedGradient.of(parameter.grad)
        self.sparse.gather(number, gradient)
        if self.looking(self._done):
            self._look(number, gradient)
        parameter.grad = None

    def _look(self, number: int, gradient: StreamedGradient) -> None:
        """Add up the gradients of a matrix's candidates, which its first gradient decides.

        Raises:
            Diverged: when a gradient is not finite.
        """
        from engine.sparse.selection import select

        if number in self._candidates:
            self._candidates[number].add(gradient)
            return
        chosen = self.sparse.selected(number)
        assert chosen is not None, "a matrix without selected entries is frozen"
        strength = gradient.values.abs()
        try:
            index = select(lambda _: strength, [len(strength)], len(chosen)).index
        except RunFailed as error:
            raise Diverged(error.what, error.todo) from None
        own = gradient.at(index)
        self._candidates[number] = Candidates(index, own, own.square())

    def after_step(self, step: int) -> None:
        """Exchange, if the window ends with this step."""
        self._done = step + 1
        if share := self.share(self._done):
            self._exchange(share)
        if self._done % self.config.every == self.config.window:  # type: ignore[attr-defined]
            self._candidates = {}

    def _exchange(self, share: float) -> None:
        import torch

        from engine.sparse.optimizer import BETAS

        parts = [self._pairs(number, found, share) for number, found in self._candidates.items()]
        if not parts:
            return
        slots, tensor, index, mean, square = (torch.cat(column) for column in zip(*parts, strict=True))
        seen = next(iter(self._candidates.values())).seen
        first, second = (1 - beta**seen for beta in BETAS)
        self.sparse.replace(slots, tensor, index, self._done, (mean * first, square * second), seen)

    def _pairs(self, number: int, found: Candidates, share: float) -> tuple[torch.Tensor, ...]:
        """Of one matrix: places that become free, the tensor and index of what comes, and its mean gradients."""
        import torch

        slots, index = self.sparse.slots(number), self.sparse.selected(number)
        assert slots is not None
        assert index is not None
        count = int(len(index) * share)
        leaving = self.sparse.change(slots).abs().argsort(stable=True)[:count]
        staying = torch.ones(len(index), dtype=torch.bool, device=index.device)
        staying[leaving] = False
        free = (~torch.isin(found.index, index[staying])).nonzero().flatten()
        coming = free[found.total[free].abs().argsort(descending=True, stable=True)[:count]]
        both = torch.isin(found.index[coming], index[leaving])
        leaving = leaving[~torch.isin(index[leaving], found.index[coming])]
        coming = coming[~both]
        leaving = leaving[: len(coming)]  # what has moved least, where there is less to grow
        return (
            slots[leaving],
            torch.full_like(found.index[coming], number),
            found.index[coming],
            found.total[coming] / found.seen,
            found.square[coming] / found.seen,
        )

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The mask, and what an open window has seen."""
        import torch

        state = super().state_dict()
        for number, found in self._candidates.items():
            name = self.rows[number].name
            state |= {f"candidates.{name}": found.index, f"total.{name}": found.total, f"square.{name}": found.square}
            state[f"seen.{name}"] = torch.tensor(found.seen)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self._done = self.sparse.steps
        self._candidates = {}
        for number, (row, tensor) in enumerate(zip(self.rows, self._tensors, strict=True)):
            if f"candidates.{row.name}" in state:
                index, total, square = (
                    state[f"{key}.{row.name}"].to(tensor.device) for key in ("candidates", "total", "square")
                )
                self._candidates[number] = Candidates(index, total, square, int(state[f"seen.{row.name}"]))
