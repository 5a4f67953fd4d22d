"""SSF: scale and shift the features that every layer puts out; merged into the weights it costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper, largest
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.models.added import Wrapper

Place = Literal["attention", "feed_forward", "norms", "pooler"]
_ROLES: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "qkv", "o"),
    "feed_forward": ("gate", "up", "down"),
    "norms": ("norm_in", "norm_1", "norm_2", "norm_out"),
    "pooler": ("pooler",),
}


class SsfConfig(MethodConfig):
    """Settings of SSF."""

    places: tuple[Place, ...] = Field(
        ("attention", "feed_forward", "norms"),
        min_length=1,
        title="Where",
        description="Whose outputs are scaled and shifted: linear layers of attention and feed-forward, norms, pooler.",
        json_schema_extra={"source": "authors' code, whose model has no pooler"},
    )
    layers: int = Field(
        0,
        ge=0,
        le=1_000,
        title="Last layers only",
        description="How many of the last layers take part, with what comes after them; 0 for the whole model.",
        json_schema_extra={"source": "this lab: so that a budget can be met; the authors take all", "budget": True},
    )
    std: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Spread at the start",
        description="Scales start at 1 and shifts at 0, with this standard deviation. 0 starts exactly at the model.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )


@register
class SSF(Method):
    r"""Freezes every weight and learns, behind each layer, one factor and one offset per feature.

    ### Why it exists

    Features of a pretrained model may be right for a new task but for their statistics: some should
    be louder, some weaker, and their zero points may be off. SSF puts two vectors behind each linear
    layer and each norm, and trains these alone. Both are linear, so after training they are folded
    into the weights and biases, and the model is as fast as before.

    ### What to watch

    In the view of magnitude and direction the matrices barely turn: a factor per output feature
    lengthens or shortens a row of the matrix, and never turns it. Set it beside LoRA, which does
    both. Training does not start at the pretrained model unless the spread at the start is 0.

    ### When it fails

    It can weigh features, not make new ones, so a task that is far from pretraining is beyond it.
    Every factor touches all tokens alike. And its count is fixed by the model's widths: a budget can
    only leave out layers.
    """

    name = "ssf"
    title = "SSF"
    family = "reparameterised"
    paper = Paper(
        title="Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
        authors="Lian, Zhou, Feng, Wang",
        venue="NeurIPS 2022",
        year=2022,
        url="https://arxiv.org/abs/2210.08823",
    )
    formula = (
        r"y = \gamma \odot (W_0 x + b_0) + \beta, \qquad W = \operatorname{diag}(\gamma)\, W_0,\; "
        r"b = \gamma \odot b_0 + \beta"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"W_0, b_0": "pretrained weight and bias of a layer, frozen; of a norm its gain and bias",
        r"\gamma": "one factor per output feature, about 1 at the start",
        r"\beta": "one offset per output feature, about 0 at the start",
        r"W, b": "what the layer has after merging",
    }
    lr = LearningRate(1e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "A port from vision. Scale and shift stand behind all linear layers of the blocks and all norms, as in the "
        "authors' code; not behind the embeddings, whose norm follows at once. A layer without a bias gets a scale "
        "alone: a shift could not be merged into it. So a Llama has factors and no offsets. Drawn around 1 and 0 as "
        "there, the start is near the pretrained model and not at it. The authors train with weight decay 0.05, which "
        "pulls factors towards 0 and not 1, and average the weights over steps; the lab's recipe does neither."
    )
    Config: ClassVar[type[MethodConfig]] = SsfConfig

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._wrappers: dict[str, Wrapper] = {}

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def scaled(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The weights of the layers behind which features are scaled, in model order."""
        roles = {role for place in config.places for role in _ROLES[place]}
        first = architecture.layers - config.layers if config.layers else -1
        return tuple(
            row for row in architecture.backbone if row.role in roles and row.part == "weight" and row.layer >= first
        )

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        names = {row.name for row in architecture.backbone}
        found = []
        for row in cls.scaled(architecture, config):
            width = (row.shape[-1] if row.transposed else row.shape[0],)
            found.append(Parameter(f"{row.module}.scale", width, row.layer, row.role, "scale"))
            if f"{row.module}.bias" in names:
                found.append(Parameter(f"{row.module}.shift", width, row.layer, row.role, "shift"))
        return tuple(found)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The whole model, or as many of its last layers as `target` allows.

        Raises:
            BudgetError: when one layer is too many.
        """

        def size(layers: int) -> int:
            return cls.size(architecture, config.model_copy(update={"layers": layers}))

        if size(0) <= target:
            return config.model_copy(update={"layers": 0})
        found = largest(size, 1, architecture.layers, target)
        if found is None:
            raise BudgetError(
                f"{cls.title} trains at least {size(1):,} parameters here: behind the layers of the last block.",
                f"Ask for at least {size(1):,}, or name fewer `places`.",
            )
        return config.model_copy(update={"layers": found})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        present = {row.role for row in architecture.backbone if row.part == "weight"}
        found = [
            f"This model has no {place.replace('_', ' ')}: that part of `places` trains nothing."
            for place in config.places
            if not present & set(_ROLES[place])
        ]
        parts = {row.part for row in cls.trainables(architecture, config)}
        if parts == {"scale"}:
            found.append("The layers of this model have no biases: they get factors and no offsets.")
        return found

    # --- work --------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze the model, and put a scale and a shift behind its layers."""
        import torch

        from engine.models.added import ScaledShifted, wrap

        config: Any = self.config
        architecture = self.context.architecture
        self.freeze(model)
        for row in self.scaled(architecture, config):
            wrapper = wrap(model, row.module, ScaledShifted)
            self._wrappers[row.name] = self._wrappers[f"{row.module}.bias"] = wrapper
        named = dict(model.named_parameters())
        self._parameters = [(row.name, named[row.name]) for row in self.trainables(architecture, config)]
        draws = torch.Generator().manual_seed(self.context.init_seed)
        with torch.no_grad():
            for _, parameter in self._parameters:
                parameter.add_(config.std * torch.randn(parameter.shape, generator=draws).to(parameter))
        return model

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self._parameters

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        import torch

        wrapper = self._wrappers.get(weight.name)
        if wrapper is None:
            return None
        with torch.no_grad():
            return wrapper.change(weight.part)

    def merged(self, model: nn.Module) -> nn.Module:
        """A plain copy of the model with scales and shifts folded into its weights and biases."""
        from engine.models.added import without_wrappers

        return without_wrappers(model)
