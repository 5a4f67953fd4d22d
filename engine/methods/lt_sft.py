"""LT-SFT: fine-tune everything, see what moved most, go back, and train only that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import Diverged, RunFailed
from engine.methods._active import OwnAdamW
from engine.methods._phases import first_phase
from engine.methods._selective import SelectiveConfig
from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class LtSftConfig(SelectiveConfig):
    """Settings of LT-SFT."""

    probe: float = Field(
        0.5,
        gt=0,
        lt=1,
        title="Share of the first phase",
        description="Which part of the steps fine-tunes everything, to find out what moves most.",
        json_schema_extra={"source": "authors' scripts: both phases take as many epochs"},
    )


@register
class LTSFT(StaticMask):
    r"""Looks for the winning weights by training all of them first, then starts over with these alone.

    ### Why it exists

    What should a sparse method train? Ask full fine-tuning: train everything for a while, note which
    weights have moved most, put all of them back to where they were, and train only the noted ones.
    That is the lottery ticket idea applied to fine-tuning. The result is a sparse difference from the
    pretrained model, and differences of a task and of a language can be added up.

    ### What to watch

    There are two phases. In the first nothing is selected yet and all matrices move; then the model
    jumps back, the mask appears at once, and accuracy starts again from near the bottom. Compare the
    mask with those that look at gradients at the very beginning: they had to guess what this method
    has seen.

    ### When it fails

    It pays for two trainings, and the first one needs the memory of full fine-tuning, whatever the
    budget. What moves most under AdamW is not what matters most: the optimizer divides by the size
    of the gradient. At a fixed number of steps half of them are spent on looking.
    """

    name = "lt_sft"
    title = "LT-SFT"
    paper = Paper(
        title="Composable Sparse Fine-Tuning for Cross-Lingual Transfer",
        authors="Ansell, Ponti, Korhonen, Vulić",
        venue="ACL 2022",
        year=2022,
        url="https://arxiv.org/abs/2110.07560",
    )
    formula = (
        r"S = \operatorname{top}_k |\theta^{(1)} - \theta^{(0)}|, \qquad \theta^{(2)} = \mathrm{train}(\theta^{(0)}; S)"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"\theta^{(0)}": "pretrained weights",
        r"\theta^{(1)}": "weights after the first phase, in which everything trains",
        r"S": "the k weights that moved most",
        r"\theta^{(2)}": "weights after the second phase",
    }
    lr = LearningRate(1e-2, f"best of 3e-5 to 3e-2 in half decades by {TUNED_BY}, own settings")
    notes = (
        "One iteration, as in the authors' scripts; exactly k weights, where their threshold lets ties through. They "
        "restart the learning rate's schedule with the second phase and freeze norms; here one schedule runs over "
        "both phases, so that the second learns at falling rates, and the norms compete. The task head goes on from "
        "where the first phase left it. The default rate is the best for what comes out in the end; the first phase, "
        "which trains everything, learns little at it, and 1e-3 shows one that does."
    )
    Config: ClassVar[type[MethodConfig]] = LtSftConfig
    composes = False
    captured = ""
    packs = ""
    not_capturable = "In mid-run it goes back and trains other weights."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        settings: Any = config
        self.switch = first_phase(settings.probe, context.steps)
        """Steps of the first phase."""
        self._base: list[torch.Tensor] = []
        self._dense: OwnAdamW | None = None

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        """Everything that is eligible trains in the first phase."""
        return sum(row.size for row in cls.trainables(architecture, config))

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return cls.peak(architecture, config)

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        first = first_phase(config.probe, steps)
        if first >= steps:
            found.append(f"All {steps} steps belong to the first phase: nothing is left to train what it finds.")
        return found

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Remember where everything starts."""
        model = super().attach(model)
        self._base = [tensor.detach().clone() for tensor in self._tensors]
        named = {row.name: tensor for row, tensor in zip(self.rows, self._tensors, strict=True)}
        self._dense = OwnAdamW(named, self.context.weight_decay)
        return model

    def _ask_for_rows(self, model: nn.Module) -> None:
        """The first phase needs whole gradients."""

    def on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """In the first phase gradients stay until all are there; in the second they are read and dropped."""
        if self._dense is None:
            super().on_gradient(name, parameter)

    def gradient_square(self) -> torch.Tensor:
        square = None if self._dense is None else self._dense.square()
        return super().gradient_square() if square is None else square

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        if self._dense is None:
            super().update(lr, scale)
        else:
            self._dense.step(lr, scale)

    def after_step(self, step: int) -> None:
        """At the end of the first phase select what moved most, and go back."""
        if self._dense is not None and step + 1 == self.switch:
            self._go_back()

    def _go_back(self) -> None:
        import torch

        from engine.sparse.selection import exclude, select

        def moved(number: int) -> torch.Tensor:
            row, tensor = self.rows[number], self._tensors[number].detach()
            scores = (tensor - self._base[number]).abs().reshape(-1).float()
            return exclude(scores, row.frozen_rows, row.size // max(1, row.shape[0]))

        try:
            picks = select(moved, [row.size for row in self.rows], self.k)
        except RunFailed as error:
            raise Diverged(error.what, error.todo) from None
        with torch.no_grad():
            for tensor, base in zip(self._tensors, self._base, strict=True):
                tensor.copy_(base)
        self._second_phase()
        self.sparse.add(picks.tensor, picks.index, self.switch)
        self._freeze_unused()

    def _second_phase(self) -> None:
        """Let go of what only the first phase needs."""
        self._dense, self._base = None, []

    def optimizer_scalars(self) -> int:
        return super().optimizer_scalars() if self._dense is None else self._dense.scalars()

    # --- observation -----------------------------------------------------------------------

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        if self._dense is None:
            return super().delta(weight, base)
        number = self._numbers.get(weight.name)
        return None if number is None else self._tensors[number].detach() - base

    # --- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        if self._dense is None:
            return super().state_dict()
        values = {f"value.{row.name}": tensor.detach() for row, tensor in zip(self.rows, self._tensors, strict=True)}
        return self._dense.state_dict() | values

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        if "steps" in state:
            self._second_phase()
            super().load_state_dict(state)
            return
        assert self._dense is not None, "attach first"
        with torch.no_grad():
            for row, tensor in zip(self.rows, self._tensors, strict=True):
                tensor.copy_(state[f"value.{row.name}"])
        self._dense.load_state_dict(state)
