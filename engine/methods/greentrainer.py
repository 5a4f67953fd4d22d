"""GreenTrainer: train the tensors that lower the loss most for what their backward pass costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError, Diverged
from engine.methods._active import ActiveTensors
from engine.methods._backward import backward_pass
from engine.methods._examples import from_state, kept_groups, to_state
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper, largest
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

GROUPS = 4
"""Choices are made on so many groups of examples in turn."""
_EPS = 1e-8


class GreenTrainerConfig(MethodConfig):
    """Settings of GreenTrainer."""

    share: float = Field(
        0.25,
        gt=0,
        le=1,
        title="Share of the backward pass",
        description="Multiplications of a backward pass, at most, as a share of those of full fine-tuning.",
        json_schema_extra={
            "source": "the paper's one half of both passes, of which the backward pass is two thirds",
            "budget": True,
        },
    )
    interval: int = Field(
        200,
        ge=1,
        le=100_000,
        title="Steps between choices",
        description="After so many steps the tensors that train are chosen anew.",
        json_schema_extra={"source": "this lab; the authors choose in every second epoch"},
    )
    samples: int = Field(
        32,
        ge=1,
        le=1_024,
        title="Examples per choice",
        description="Training examples whose loss says what tensors are worth; four groups of so many take turns.",
        json_schema_extra={"source": "this lab; the authors take one batch, another each time"},
    )
    trial_rate: float = Field(
        2e-5,
        gt=0,
        le=1,
        title="Learning rate of the trial",
        description="How far each weight goes in the step that is tried and taken back when tensors are chosen.",
        json_schema_extra={"source": "authors' code: the learning rate", "level": "advanced"},
    )
    length: int = Field(
        64,
        ge=1,
        le=100_000,
        title="Tokens per example",
        description="For which the cost of attention and pooler is computed.",
        json_schema_extra={"source": "this lab: its length for sentences", "level": "advanced"},
    )


@register
class GreenTrainer(ActiveTensors):
    r"""Chooses whole tensors so that the backward pass stays cheap and the loss falls as far as it can.

    ### Why it exists

    LoRA trains few numbers, but its backward pass goes through the whole model all the same. Half of a
    backward pass carries gradients down to the tensors that train, the other half computes what these
    tensors need. So a tensor near the output is cheap, and one near the input costs the whole way.
    GreenTrainer sets a limit to the work and asks what to train within it: each tensor is worth what a
    trial step of its weights takes from the loss, and a dynamic program finds the set of tensors that
    is worth most, over all depths that training could reach.

    ### What to watch

    The picture of turns shows which tensors train, and from where on nothing does: so deep does the
    gradient go. Lower the share, and that line moves up. When tensors are chosen anew, see whether the
    set follows the training or stays. The plan says how much of the work of both passes is left.

    ### When it fails

    What is worth most in one step need not be in a thousand. Choosing costs two full passes, with
    gradients for every weight, so memory is not what it saves. The forward pass stays as it is, and
    with it a third of the work. Small tensors are nearly free, but a small model on a GPU waits for
    launches and not for multiplications, so that fewer of them may not be faster.
    """

    name = "greentrainer"
    title = "GreenTrainer"
    paper = Paper(
        title="Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
        authors="Huang, Yin, Huang, Gao",
        venue="ICLR 2024",
        year=2024,
        url="https://arxiv.org/abs/2309.13192",
    )
    formula = (
        r"\max_{S} \sum_{k \in S} I_k \;\; \text{so that} \; \sum_{k \in S} w_k + \sum_{j < \mathrm{depth}(S)} y_j \le "
        r"\rho\, T, \qquad I_k = -\sum_{i \in k} g_i\, \Delta\theta_i"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"S": "tensors that train until the next choice",
        r"I_k": "worth of tensor k: how far the trial step of its weights lowers the loss, to first order",
        r"\Delta\theta_i": "step of weight i that is tried",
        r"g_i": "its gradient after the trial",
        r"w_k": "cost of the tensor's own gradient",
        r"y_j": "cost of carrying the gradient through the tensors of depth j, counted from the output",
        r"\rho, T": "share, and cost of the whole backward pass",
    }
    lr = LearningRate(1e-3, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "Worth is that of the authors' code: one step of all weights is tried, the gradient after it is multiplied by "
        "the step, and the step is taken back. There it is a step of the running optimizer, whose moments keep it; "
        "here it is AdamW's first step, at a rate that is a setting, and the optimizer never sees it. The paper's "
        "share is of forward and backward pass together; here it is of the backward pass, so that it can be small. "
        "The authors count every tensor as one link of a chain, a deepest tensor with what lies below it, and round "
        "costs down to thousandths; here queries, keys and values lie side by side, as gate and up do, and costs are "
        "rounded up. Embeddings cost what looking them up costs, since no output layer shares them. The task head "
        "always trains and is not counted. Moments of tensors that no longer train are kept, as there. The parameter "
        "budget counts the most scalars that any choice within the share could train at a time."
    )
    Config: ClassVar[type[MethodConfig]] = GreenTrainerConfig
    scores_first = True
    captured = ""
    not_capturable = "Which tensors have gradients changes from choice to choice."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        settings: Any = config
        self.costs = backward_pass(context.architecture, settings.length)
        self._groups: list[dict[str, torch.Tensor]] = []
        self._model: nn.Module | None = None

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        """The most scalars that a choice within the share can train."""
        sizes = {row.name: row.size for row in architecture.backbone}
        found = backward_pass(architecture, config.length).best(sizes, config.share)
        return sum(sizes[name] for name in found)

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        """A choice looks at every tensor, and moments of tensors that no longer train are kept."""
        return sum(row.size for row in architecture.backbone)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The largest share, in thousandths, within which no choice trains more than `target`.

        Raises:
            BudgetError: when even a thousandth allows more, or the target trains nothing.
        """

        def size(thousandths: int) -> int:
            return cls.size(architecture, config.model_copy(update={"share": thousandths / 1000}))

        found = largest(size, 1, 1000, target)
        least = next(filter(None, map(size, range(1, 1001))))
        if found is None or target < least:
            raise BudgetError(
                f"{cls.title} may train {least:,} parameters here at the smallest share of work that trains any.",
                f"Ask for at least {least:,}, or set `share` and leave the budget out.",
            )
        return config.model_copy(update={"share": found / 1000})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        costs = backward_pass(architecture, config.length)
        both = (costs.forward + config.share * costs.whole) / (costs.forward + costs.whole)
        found = [
            f"Between choices a step takes at most {both:.0%} of the multiplications of full fine-tuning: the whole "
            f"forward pass, and {config.share:.1%} of the backward pass."
        ]
        if not cls.size(architecture, config):
            found.append("This share of the backward pass pays for no tensor: only the head trains.")
        if steps <= config.interval:
            found.append(f"Tensors are chosen anew after {config.interval} steps: this run chooses once.")
        return found

    # --- work ----------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        self._model = super().attach(model)
        return self._model

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Keep the examples that choices are made on, and make the first.

        Raises:
            DataError: when there is none.
        """
        config: Any = self.config
        pad = self.context.architecture.pad_token or 0
        self._groups = kept_groups(batches, GROUPS, config.samples, pad, progress)
        self._choose(0)

    def after_step(self, step: int) -> None:
        """Choose anew when it is time."""
        config: Any = self.config
        done = step + 1
        if done % config.interval == 0 and done < self.context.steps:
            self._choose(done)

    def _choose(self, done: int) -> None:
        """Train what is worth most within the share, from step `done` on.

        Raises:
            Diverged: when a tensor's worth is not finite.
        """
        config: Any = self.config
        worth = self.worth(self._groups[done // config.interval % len(self._groups)])
        if not all(map(math.isfinite, worth.values())):
            raise Diverged(f"What tensors are worth after step {done} is not finite.", "Lower the learning rate.")
        self.activate(self.costs.best(worth, config.share), keep_state=True)

    def worth(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """How far a step of each tensor lowers the loss of a batch; the model is left as it was."""
        import torch

        assert self._model is not None, "attach first"
        config: Any = self.config
        model, tensors = self._model, list(self._tensors.values())
        were = [tensor.requires_grad for tensor in tensors]
        was_training = model.training
        model.eval()
        for tensor in tensors:
            tensor.requires_grad_(True)
        held = [tensor.detach().clone() for tensor in tensors]
        steps = [_first_step(gradient, config.trial_rate) for gradient in _gradients(model, batch, tensors)]
        with torch.no_grad():
            for tensor, step in zip(tensors, steps, strict=True):
                tensor.add_(step)
        after = _gradients(model, batch, tensors)
        with torch.no_grad():
            for tensor, value, trained in zip(tensors, held, were, strict=True):
                tensor.copy_(value)
                tensor.requires_grad_(trained)
        model.train(was_training)
        gains = [-(gradient.float() * step.float()).sum() for gradient, step in zip(after, steps, strict=True)]
        return dict(zip(self._tensors, torch.stack(gains).tolist(), strict=True))

    # --- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What `ActiveTensors` holds, and the examples that choices are made on."""
        return super().state_dict() | to_state(self._groups)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self._groups = from_state(state, self.context.device)


def _gradients(model: nn.Module, batch: dict[str, torch.Tensor], tensors: list[nn.Parameter]) -> list[torch.Tensor]:
    """Of a batch's loss; zero for a tensor that takes no part."""
    import torch

    found = torch.autograd.grad(model(**batch).loss, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def _first_step(gradient: torch.Tensor, rate: float) -> torch.Tensor:
    """What AdamW's first step adds to a tensor, at this learning rate and without decay."""
    return gradient.div(gradient.abs().add_(_EPS)).mul_(-rate)
