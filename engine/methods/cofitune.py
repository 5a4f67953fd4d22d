"""CoFiTune: train the feed-forward matrices of a range of layers, and those of their units less that matter already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._examples import kept
from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper, largest
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class CoFiTuneConfig(MethodConfig):
    """Settings of CoFiTune."""

    start: float = Field(
        0.25,
        ge=0,
        lt=1,
        title="Layers from",
        description="Share of the layers, from the input, below the trained range.",
        json_schema_extra={"source": "paper: a quarter"},
    )
    end: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Layers up to",
        description="Share of the layers at which the trained range ends; it has at least one layer.",
        json_schema_extra={"source": "paper: half", "budget": True},
    )
    soft: Literal["gradient", "update", "off"] = Field(
        "gradient",
        title="What is damped",
        description=(
            "gradient: that of important units is made smaller, which AdamW mostly undoes. update: their step is. "
            "off: nothing, the range alone trains."
        ),
        json_schema_extra={"source": "authors' code: the gradient; the others are this lab's"},
    )
    samples: int = Field(
        64,
        ge=1,
        le=16_384,
        title="Examples of the scores",
        description="Training examples on which the importance of units is measured, before the first step.",
        json_schema_extra={"source": "this lab"},
    )
    noise: float = Field(
        0.003,
        gt=0,
        lt=1,
        title="Dropout of the scores",
        description="Dropout that makes two passes over an example differ, while importance is measured.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )


@register
class CoFiTune(WholeTensors):
    r"""Trains the feed-forward block of some lower-middle layers, and spares the units that matter already.

    ### Why it exists

    A model that learns one trade forgets others. CoFiTune looks for the place where learning costs
    least: first coarsely, by modules and ranges of layers, where its authors found the feed-forward
    matrices from a quarter to half of the depth; then finely, by giving each unit a factor. A unit
    that stands out among its neighbours learns more slowly than one that does not.

    ### What to watch

    In the view of magnitude and direction only a band of layers moves. Compare damped gradients with
    damped updates. AdamW divides each gradient by its own running size, so that a constant factor on
    it nearly cancels: only the second truly slows a unit down.

    ### When it fails

    Where the range is wrong for the model. It was found by trying many on large decoders, and six
    layers leave little to choose from. What the fine part adds is small, more so with AdamW.
    """

    name = "cofitune"
    title = "CoFiTune"
    family = "selective"
    paper = Paper(
        title="Balancing Speciality and Versatility: a Coarse to Fine Framework for Supervised Fine-tuning Large "
        "Language Model",
        authors="Zhang et al.",
        venue="Findings of ACL 2024",
        year=2024,
        url="https://arxiv.org/abs/2404.10306",
    )
    formula = r"G_u \leftarrow (1 - \tilde I_u)\, G_u, \qquad \tilde I_u = |\tanh(\mathrm{zscore}(I_u))|"
    symbols: ClassVar[dict[str, str]] = {
        r"G_u": "gradient of the weights that make output u of a matrix, or their update",
        r"I_u": "derivative, by a factor on output u, of how much two noisy passes over an example disagree",
        r"\tilde I_u": "how far the unit stands out in its matrix, from 0 to 1",
    }
    lr = LearningRate(3e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "The paper's result of the coarse search is the default range; the search itself, over many whole runs, is not "
        "repeated. Disagreement is the Kullback-Leibler divergence of the answers of two passes with dropout, its "
        "derivatives summed over examples with their signs, as in the authors' code. That code lays the factors along "
        "the flattened gradient, where they do not meet their rows; here each factor scales its own row and bias. "
        "Of gated models the gate stays frozen, as in the paper's up and down projections."
    )
    Config: ClassVar[type[MethodConfig]] = CoFiTuneConfig
    scores_first = True

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.factors: dict[str, torch.Tensor] = {}
        """What is left of each unit's gradient or update, by module, one per output."""
        self._scales: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._before: list[torch.Tensor] = []

    # --- declaration ---------------------------------------------------------------------

    @staticmethod
    def layers_of(architecture: Architecture, config: Any) -> range:
        """The trained layers; at least one."""
        first, last = (int(share * architecture.layers + 1e-9) for share in (config.start, config.end))
        return range(first, max(first + 1, last))

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        layers = cls.layers_of(architecture, config)
        return tuple(row for row in architecture.backbone if row.role in ("up", "down") and row.layer in layers)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many layers, from the given one on, as `target` allows.

        Raises:
            BudgetError: when one is too many.
        """
        first = cls.layers_of(architecture, config).start

        def with_layers(count: int) -> MethodConfig:
            return config.model_copy(update={"end": (first + count) / architecture.layers})

        def size(count: int) -> int:
            return cls.size(architecture, with_layers(count))

        count = largest(size, 1, architecture.layers - first, target)
        if count is None:
            raise BudgetError(
                f"{cls.title} trains the feed-forward block of at least one layer: {size(1):,} parameters here.",
                f"Ask for at least {size(1):,}, or choose another method.",
            )
        return with_layers(count)

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        if config.end > config.start:
            return []
        return ["The range ends before it begins: one layer trains."]

    # --- work ----------------------------------------------------------------------------

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Measure how far each unit of the trained matrices stands out.

        Raises:
            DataError: when there is no example.
        """
        import torch
        from torch.nn import functional

        config: Any = self.config
        modules = {row.module: model.get_submodule(row.module) for row in self.rows_trained()}
        totals: dict[str, torch.Tensor] = {}
        was_training = model.training
        model.eval()
        with _masked(modules, config.noise, self.context.method_seed) as masks:
            for example in kept(batches, config.samples, progress):
                first, second = (model(**example).logits.float().log_softmax(-1) for _ in range(2))
                apart = functional.kl_div(second, first, log_target=True, reduction="batchmean")
                found = torch.autograd.grad(apart, list(masks.values()))
                for name, gradient in zip(masks, found, strict=True):
                    totals[name] = totals.get(name, 0) + gradient
        model.train(was_training)
        self._damp({name: 1 - standing_out(total) for name, total in totals.items()})

    def _damp(self, factors: dict[str, torch.Tensor]) -> None:
        """Damp by these factors from now on."""
        self.factors = factors
        parameters = dict(self.parameters())
        self._scales = []
        for row in self.rows_trained():
            factor = factors[row.module].to(parameters[row.name])
            across = row.part == "weight" and not row.transposed
            self._scales.append((parameters[row.name], factor[:, None] if across else factor))

    def before_step(self, step: int) -> None:
        """Damp the gradients, or remember where the weights are."""
        config: Any = self.config
        if config.soft == "gradient":
            for parameter, scale in self._scales:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        elif config.soft == "update":
            self._before = [parameter.detach().clone() for parameter, _ in self._scales]

    def after_step(self, step: int) -> None:
        """Take back the damped part of the updates."""
        import torch

        with torch.no_grad():
            for (parameter, scale), before in zip(self._scales, self._before, strict=bool(self._before)):
                parameter.copy_(before + scale * (parameter - before))
        self._before = []

    # --- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {f"factor.{name}": factor for name, factor in self.factors.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._damp({name.removeprefix("factor."): factor for name, factor in state.items()})


def standing_out(importance: torch.Tensor) -> torch.Tensor:
    """How far each number is from the mean of all, from 0 to 1; 0 for all when they are equal."""
    away = importance - importance.mean()
    spread = away.square().mean().sqrt()
    scores: torch.Tensor = (away / spread).tanh().abs() if float(spread) > 0 else away * 0
    return scores


@contextmanager
def _masked(modules: dict[str, nn.Module], noise: float, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """A factor of 1 on every output of these modules, and dropout after it, while they are looked at."""
    import torch

    masks: dict[str, torch.Tensor] = {}
    draws: dict[str, torch.Generator] = {}
    handles = []

    def hook(name: str) -> Callable[[Any, Any, Any], Any]:
        def scaled(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            stays = torch.rand(out.shape, generator=draws[name], device=out.device) >= noise
            return out * masks[name] * stays / (1 - noise)

        return scaled

    for number, (name, module) in enumerate(modules.items()):
        weight: Any = module.weight
        outputs = weight.shape[0] if isinstance(module, torch.nn.Linear) else weight.shape[1]
        masks[name] = torch.ones(outputs, device=weight.device, requires_grad=True)
        draws[name] = torch.Generator(weight.device).manual_seed(seed + number)
        handles.append(module.register_forward_hook(hook(name)))
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
