"""GMT: at every step update only the weights with the largest gradients, whichever they are just then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError, Diverged, RunFailed
from engine.methods._active import ActiveTensors, OwnAdamW
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.observed import Boundary
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class GmtConfig(MethodConfig):
    """Settings of GMT."""

    k: int = Field(
        26_112,
        ge=1,
        title="Weights per step",
        description="How many weights are updated at each step; other ones at the next.",
        json_schema_extra={"budget": True, "source": "this lab: the common budget"},
    )
    scope: Literal["tensor", "global"] = Field(
        "tensor",
        title="Ranking",
        description="tensor: the same share in each tensor. global: one ranking over all of them.",
        json_schema_extra={"source": "this lab: no code was published"},
    )
    mask: Literal["gradient", "update"] = Field(
        "gradient",
        title="What is masked",
        description=(
            "gradient: the others' gradients are set to zero, and AdamW's momentum still moves those that were chosen "
            "before. update: the others do not move at all."
        ),
        json_schema_extra={"source": "paper: the gradient"},
    )


@register
class GMT(ActiveTensors):
    r"""Chooses anew at every step: only the weights with the largest gradients are updated.

    ### Why it exists

    A batch has something to say about a few weights and next to nothing about the others, whose small
    gradients are mostly noise. GMT ignores them: at every step it keeps the largest gradients and sets
    the rest to zero. Nothing is fixed for the run, so any weight can have its turn when its gradient
    is large.

    ### What to watch

    The number of weights that have moved at all grows far beyond the number updated at a time. Two
    masks are possible, and they differ more than they seem to: with the gradient masked, momentum goes
    on moving weights that were chosen some steps ago; with the update masked they stand still.

    ### When it fails

    It saves nothing. Every gradient has to be computed, every weight has its moments, and the result
    is a whole model. It is a way to train with less noise, and belongs here as the opposite of a fixed
    mask: ID3 stands between the two.
    """

    name = "gmt"
    title = "Gradient-Mask Tuning"
    paper = Paper(
        title="Gradient-Mask Tuning Elevates the Upper Limits of LLM Performance",
        authors="Li et al.",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2406.15330",
    )
    formula = r"M_j = \begin{cases} g_j & |g_j| \ge \tau_k \\ 0 & \text{otherwise} \end{cases}"
    symbols: ClassVar[dict[str, str]] = {
        r"g_j": "gradient of weight j at this step",
        r"\tau_k": "the k-th largest size of a gradient, in each tensor or of all",
        r"M_j": "what the optimizer is given",
    }
    lr = LearningRate(3e-4, f"best of 1e-4 to 3e-2 in half decades by {TUNED_BY}, budgets 10,000 to 100,000")
    notes = (
        "A reconstruction, as no code was published: whether the ranking is one per tensor is a setting, and exactly "
        "k weights are kept, ties going to the lowest index. The paper accumulates several batches before it "
        "looks; here a step is one batch. The budget counts what is updated at a time; a finished run says how many "
        "weights moved in the end."
    )
    Config: ClassVar[type[MethodConfig]] = GmtConfig
    views = ("plane", "change")
    captured = "gradients"
    not_capturable = "Every step ranks all gradients, tensor by tensor, and looks at the result."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.rows = self.trainables(context.architecture, config)
        self._ever: dict[str, torch.Tensor] = {}
        self._masks: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]] = []

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return min(config.k, sum(row.size for row in architecture.backbone))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """Exactly `target` weights per step.

        Raises:
            BudgetError: for a target below 1 or above the model.
        """
        most = sum(row.size for row in architecture.backbone)
        if not 1 <= target <= most:
            raise BudgetError(f"{cls.title} updates 1 to {most:,} weights per step here.", "Ask for at least one.")
        return config.model_copy(update={"k": target})

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in architecture.backbone)

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return cls.peak(architecture, config)

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = cls.peak(architecture, config)
        return [] if config.k <= most else [f"This model has {most:,} weights: all are updated, not {config.k:,}."]

    def attach(self, model: nn.Module) -> nn.Module:
        """Everything may be updated."""
        import torch

        model = super().attach(model)
        self._optimizer = OwnAdamW(self._tensors, 0.0)  # decay is of the chosen weights alone
        self.activate([row.name for row in self.rows])
        self._ever = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in self._tensors.items()}
        return model

    def ranked(self) -> list[tuple[str, nn.Parameter]]:
        return list(self._tensors.items())

    def boundary(self) -> Boundary | None:
        config: Any = self.config
        return Boundary(1, 0, moment="step") if config.scope == "global" else None

    def before_step(self, step: int) -> None:
        """Keep the largest gradients."""
        config: Any = self.config
        gradients = self.optimizer.gradients()
        for name, mask in self._chosen(gradients).items():
            tensor = self._tensors[name]
            gradients[name].mul_(mask)
            self._ever[name] |= mask & (gradients[name] != 0)
            self._masks.append((tensor, mask, tensor.detach().clone() if config.mask == "update" else None))

    def _chosen(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights to update, bool by name.

        Raises:
            Diverged: when a gradient is not finite.
        """
        from engine.sparse.selection import select, select_by_tensor, shares

        config: Any = self.config
        gradients = [gradient.reshape(-1) for gradient in found.values()]
        sizes = [len(gradient) for gradient in gradients]
        k = min(config.k, sum(sizes))

        def strength(number: int) -> torch.Tensor:
            return gradients[number].float().abs()

        try:
            if config.scope == "tensor":
                picks = select_by_tensor(strength, sizes, shares(sizes, k))
            else:
                picks = select(strength, sizes, k)
        except RunFailed as error:
            raise Diverged(error.what, error.todo) from None
        masks = picks.masks(sizes)
        return {name: mask.view(found[name].shape) for name, mask in zip(found, masks, strict=True)}

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        import torch

        decay = lr * self.context.weight_decay
        with torch.no_grad():
            for tensor, mask, _ in self._masks if self.context.weight_decay else ():
                tensor.mul_(torch.where(mask, 1 - decay, 1.0))
        super().update(lr, scale)
        with torch.no_grad():
            for tensor, mask, before in self._masks:
                if before is not None:
                    tensor.copy_(torch.where(mask, tensor, before))
        self._masks = []

    def kept(self) -> int | None:
        """Weights that have been updated at least once."""
        return int(sum(int(mask.sum()) for mask in self._ever.values())) or None

    def state_dict(self) -> dict[str, torch.Tensor]:
        return super().state_dict() | {f"ever.{name}": mask for name, mask in self._ever.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        for name, mask in self._ever.items():
            mask.copy_(state[f"ever.{name}"])
