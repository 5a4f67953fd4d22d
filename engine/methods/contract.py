"""What a fine-tuning method is: a declaration that needs no torch, and a few hooks that do the work.

A method's file holds one class. Its declaration (name, family, paper, formula, settings,
budget formula, teaching text) feeds forms, command line, cards and docs; its hooks are
called by the training loop in this order::

    attach                          once: freeze, wrap, add
    score_pass                      once, phase "scoring"; only if `scores_first`
    per step:
        on_gradient                 per tensor, during the backward pass; only for `streamed()`
        estimate                    in place of the backward pass; only if not `differentiates`
        before_step                 after the backward pass: choose what to train
        gradient_square             its share of the norm that clipping uses
        update                      its own optimizer, if it has one
        after_step                  after every optimizer, gradients still there

Modules of `engine.methods` import torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from engine.errors import BudgetError
from engine.methods.observed import Boundary, Choice, Product, Ranks, Selection
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from engine.sparse.optimizer import SparseAdamW

Stacked = Literal["", "products", "entries", "tensors"]
"""What runs of a method stack to share one pass over their model."""
Family = Literal["baseline", "additive", "selective", "reparameterised", "mixture", "zeroth-order"]


class MethodConfig(BaseModel):
    """Base of every method's settings: each field has a title, a description, a default and bounds.

    ``json_schema_extra={"source": ...}`` says where a default comes from, ``{"level": "advanced"}``
    hides a field behind an expander, ``{"budget": True}`` marks the knob that the budget sets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    venue: str
    year: int
    url: str


@dataclass(frozen=True)
class LearningRate:
    """A default learning rate and how it was found.

    Attributes:
        value, tuned: for MiniLM, and for every model that has no own.
        own: rates of other models, by their id in the catalogue.
    """

    value: float
    tuned: str
    own: Mapping[str, LearningRate] = field(default_factory=dict)

    def of(self, model: str) -> LearningRate:
        """The default for one model."""
        return self.own.get(model, self)


@dataclass(frozen=True)
class Context:
    """What a method knows about its run.

    Attributes:
        architecture: the map of the base model, dead rows marked for this task.
        steps: optimizer steps of the whole run.
        init_seed, method_seed: seeds of the two streams a method may draw from.
        device: where the model is.
        weight_decay: decoupled decay of the recipe.
        clip: largest gradient norm of the recipe.
    """

    architecture: Architecture
    steps: int
    init_seed: int
    method_seed: int
    device: str
    weight_decay: float
    clip: float


TUNED_BY = (
    "mean validation accuracy of at least two seeds on Rotten Tomatoes with MiniLM (700 steps, batch 32, H100 or H200, "
    "TF32)"
)
"""How the default learning rates were found: `python -m engine bench tune`."""
_ON_NANO = (
    "best of 1e-4, 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by mean validation accuracy of two seeds on Rotten Tomatoes with "
    "nano-bert"
)
TUNED_ON_NANO = f"{_ON_NANO} (700 steps, batch 32, H100, TF32)"
TUNED_ON_NANO_CPU = f"{_ON_NANO} (400 steps, batch 16, CPU)"
"""How the rates for nano-bert were found: `python -m engine bench tuned`."""
Batches = Iterable[dict[str, "torch.Tensor"]]


class Method:
    """A fine-tuning method. Subclasses are found by the registry.

    The class docstring is the teaching text, in Markdown, under the three headings
    "Why it exists", "What to watch" and "When it fails".
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[Family]
    paper: ClassVar[Paper]
    formula: ClassVar[str]
    symbols: ClassVar[dict[str, str]]
    lr: ClassVar[LearningRate]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    notes: ClassVar[str] = ""
    """Which source is followed where paper, lecture and code differ; how papers count parameters."""
    views: ClassVar[tuple[str, ...]] = ("change",)
    """Inside views this method feeds: ``mask``, ``plane``, ``layers``, ``rank``, ``change``, ``bias``, and of its own
    findings ``path``, ``trials``, ``importance``, ``scores``."""
    demonstrations: ClassVar[tuple[str, ...]] = ()
    """What its card can measure on a real model: ``divergence``."""
    composes: ClassVar[bool] = False
    """Whether it can be put on top of another method (``on:``)."""
    grows: ClassVar[bool] = True
    """Whether a weight that was selected stays so; else its record holds the last mask, and only counts before it."""
    steady: ClassVar[bool] = True
    """Whether the tensors of `parameters` are the same ones all through a run, so that others can stand on it."""
    scores_first: ClassVar[bool] = False
    finds_late: ClassVar[bool] = False
    """Whether its findings are made at some step of the training, and not in `score_pass`."""
    differentiates: ClassVar[bool] = True
    """Whether its steps have a backward pass; if not, it trains the task head too, and nothing has a gradient."""
    captured: ClassVar[Literal["step", "gradients", ""]] = "step"
    """What of a step a CUDA graph can hold: all of it, forward and backward pass, or nothing.

    Of a captured step only the work on tensors is repeated: its hooks are called a few times in all.
    """
    packs: ClassVar[Stacked] = ""
    """What runs of it stack to share one pass over their model; empty where they cannot share it.

    They can where all that is trained, from first step to last, are `products` beside linear layers, `entries`, or
    the tensors of `parameters`.
    """
    differs: ClassVar[tuple[str, ...]] = ()
    """Settings in which runs that share a pass may differ."""
    not_capturable: ClassVar[str] = ""
    """Why not all of its step can be captured; empty when it can."""
    export_formats: ClassVar[tuple[str, ...]] = ("merged",)
    """Of ``delta`` (sparse file), ``peft`` (adapter folder), ``merged`` (whole model), or, for what cannot be merged,
    ``tensors`` (one file of what was added and trained)."""

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        self.config = config
        self.context = context
        self.inner = inner

    # --- declaration: no torch ---------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The tensors the method trains or adds (head apart), before any selection inside them."""
        raise NotImplementedError(cls.__name__)  # every registered method defines it: tested

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        """Scalars the method itself trains: what the budget counts."""
        return sum(parameter.size for parameter in cls.trainables(architecture, config))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The largest configuration whose size is not above `target`.

        Raises:
            BudgetError: when even the smallest is above it, or the size cannot be chosen and
                is above it.
        """
        size = cls.size(architecture, config)
        if size > target:
            raise BudgetError(
                f"{cls.title} trains {size:,} parameters here and cannot be made smaller than that.",
                f"Ask for at least {size:,}, or choose another method.",
            )
        return config

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        """Scalars it holds at most while it trains; more than `size` where ranks shrink."""
        return cls.size(architecture, config)

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        """Scalars of the model's own tensors whose gradients each step computes; those of added tensors apart."""
        return 0

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        """Plain sentences about what cannot work on this model in so many steps; shown before launch."""
        return []

    # --- work ---------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze, wrap or extend the model, and return the model to train. The head is the loop's."""
        raise NotImplementedError(type(self).__name__)

    def freeze(self, model: nn.Module, but: Collection[str] = ()) -> None:
        """Let the tensors of these names train and no others; the head, which is the loop's, stays as it is."""
        heads = {row.name for row in self.context.architecture.head}
        for name, parameter in model.named_parameters():
            if name not in heads:
                parameter.requires_grad_(name in but)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the loop's dense AdamW trains for the method, with names as in `trainables`."""
        return []

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Score parameters over data before training. Called once, only when `scores_first`.

        `batches` yields single examples with labels; `progress` takes (done, total).
        """

    def streamed(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Tensors whose gradients the method consumes one by one in the backward pass."""
        return ()

    def on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Called when `parameter.grad` is complete; the method sets it to None when done with it."""

    def estimate(self, step: int, loss_of: Callable[[], torch.Tensor]) -> None:
        """In place of the backward pass: learn from losses alone which way to go.

        `loss_of` computes the loss of the step's batch for the weights as they are then, 0-d and without
        a graph; the step reports the mean of all that were asked for.
        """
        raise NotImplementedError(type(self).__name__)

    def ranked(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Tensors whose whole gradients it compares in `before_step`, where it sets those it does not choose to 0."""
        return ()

    def before_step(self, step: int) -> None:
        """After the backward pass of step `step` (from 0), before clipping and updates."""

    def gradient_square(self) -> torch.Tensor | None:
        """Sum of squares of the gradients it consumed, for clipping; 0-d, on the device."""
        return None

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """Apply its own optimizer with this learning rate (0-d on a GPU); gradients times `scale` (clipping, 0-d)."""

    def extra_loss(self) -> torch.Tensor | None:
        """A term added to the task loss."""
        return None

    def after_step(self, step: int) -> None:
        """After all optimizers of step `step`, with the gradients of the dense ones still there."""

    def optimizer_scalars(self) -> int:
        """Scalars of optimizer state of its own optimizer; the loop counts those of `parameters()`."""
        return 0

    # --- observation ---------------------------------------------------------------------

    def selection(self) -> Selection | None:
        """The entries it trains, or None when it trains whole tensors."""
        return None

    def unmoved(self) -> int:
        """Selected entries that have received no gradient so far; 0 where nothing is selected one by one."""
        return 0

    def newest(self, known: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and gradients, fp32, of all entries selected after the first `known`; right after `before_step`."""
        raise NotImplementedError(type(self).__name__)

    def boundary(self) -> Boundary | None:
        """The line between chosen and other weights; None where no single line in the plane parts them."""
        return None

    def choice(self) -> Choice | None:
        """What its scoring phase saw, where it looked at gradients."""
        return None

    def active_now(self) -> frozenset[str] | None:
        """Names of the tensors that train just now, for methods that train whole tensors in turns."""
        return None

    def products(self) -> list[Product]:
        """What it adds to linear layers, in model order, where that is all that changes them."""
        return []

    def entries(self) -> SparseAdamW:
        """The optimizer of the single weights that it trains."""
        raise NotImplementedError(type(self).__name__)

    def findings(self) -> dict[str, Any]:
        """What it measured to choose by: plain JSON data by the view that shows it.

        Asked once, after `score_pass`; of a method that finds late, after each step until there are any.
        """
        return {}

    def importance_now(self) -> np.ndarray | None:
        """What it has learnt so far of each layer it chooses among, float64; recorded whenever it changes."""
        return None

    def kept(self) -> int | None:
        """Scalars that the finished method keeps, where that is known only at the end; else None."""
        return None

    def ranks(self) -> Ranks | None:
        """Ranks per matrix, for methods that allocate them."""
        return None

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        """Change of one base weight so far, in its own layout and on its device; None when unchanged.

        Args:
            weight: the row of the base weight.
            base: the untouched weight.
        """
        return None

    # --- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything a resume needs beyond `parameters()` and the loop's own state."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`, on a freshly attached method."""

    def result(self) -> dict[str, torch.Tensor]:
        """The trained tensors, head apart: what `install` needs, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters()}

    def install(self, result: dict[str, torch.Tensor]) -> None:
        """Put a `result` into a freshly attached model, for inference."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters():
                parameter.copy_(result[name])

    def merged(self, model: nn.Module) -> nn.Module:
        """The attached model as a plain one with the change folded into its weights."""
        return model

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """Write what `PeftModel.from_pretrained` loads; only with ``peft`` in `export_formats`."""
        raise NotImplementedError(type(self).__name__)


def largest(size: Callable[[int], int], low: int, high: int, target: int) -> int | None:
    """The largest knob in [low, high] with size(knob) <= target; None when size(low) is above it.

    `size` must not decrease. Used by every `fit`.
    """
    if size(low) > target:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle - 1)
    return low


def chain(method: Method) -> Iterator[Method]:
    """A method and all it stands on, outermost first."""
    current: Method | None = method
    while current is not None:
        yield current
        current = current.inner
