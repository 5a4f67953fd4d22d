"""LoFiT: find the attention heads that matter, then add one trained vector to the output of each of these."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError, SpecError
from engine.methods._active import ActiveTensors
from engine.methods._phases import first_phase
from engine.methods.contract import TUNED_BY, Context, Family, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.models.added import HeadOffsets


class LofitConfig(MethodConfig):
    """Settings of LoFiT."""

    heads: int = Field(
        7,
        ge=1,
        le=1_000_000,
        title="Heads",
        description="How many attention heads get an offset, of all layers together.",
        json_schema_extra={"source": "authors' code keeps a tenth of the heads: 7 of MiniLM's 72", "budget": True},
    )
    probe: float = Field(
        0.5,
        gt=0,
        lt=1,
        title="Share of the first phase",
        description="Which part of the steps trains a scale for every head, to find the heads that matter.",
        json_schema_extra={"source": "authors' scripts: both phases take as many epochs"},
    )
    sparsity: float = Field(
        5e-4,
        ge=0,
        le=1,
        title="Weight of the penalty",
        description="Factor of the sum of the scales' sizes, which is added to the loss of the first phase.",
        json_schema_extra={"source": "authors' scripts for Llama 2 7B", "level": "advanced"},
    )
    first_rate: float = Field(
        0.5,
        gt=0,
        le=100,
        title="Rate of the first phase",
        description="The learning rate of the scales, as a multiple of that of the offsets.",
        json_schema_extra={"source": "authors' scripts for Llama 2 7B: 5e-3 and 1e-2", "level": "advanced"},
    )
    std: float = Field(
        1e-3,
        ge=0,
        le=1,
        title="Spread at the start",
        description="Standard deviation of the scales and offsets before they are trained.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )


@register
class LoFiT(ActiveTensors):
    r"""Adds a constant vector to the outputs of a few attention heads, those that the task asks for.

    ### Why it exists

    Single attention heads have been found to carry single abilities. If so, a task needs a change of
    few heads, and a small one. LoFiT looks for them by training a scale for every head with a penalty
    that keeps most scales small; where a scale grows, the head matters. Then the scales are thrown
    away, and the chosen heads each learn one vector, which is added to what they put out, whatever
    the input: a few hundred numbers in a small model.

    ### What to watch

    There are two phases. In the first all output matrices of attention change a little; then the model
    jumps back, and from there only the biases behind the chosen heads move. Count the layers in which
    they lie. The head of the task keeps what it has learned before the jump.

    ### When it fails

    A constant offset says the same to every sentence, so it steers, and does not compute. The first
    phase costs steps, and needs gradients for all heads. If the scales hardly move before they are
    ranked, the choice is that of the random start.
    """

    name = "lofit"
    title = "LoFiT"
    family: ClassVar[Family] = "additive"
    paper = Paper(
        title="LoFiT: Localized Fine-tuning on LLM Representations",
        authors="Yin, Ye, Durrett",
        venue="NeurIPS 2024",
        year=2024,
        url="https://arxiv.org/abs/2406.01563",
    )
    formula = (
        r"\text{1: } z_i \leftarrow (1 + A_i) \odot z_i,\; \mathcal{L} + \lambda \textstyle\sum_i \|A_i\|_1 \qquad "
        r"\text{2: } z_i \leftarrow z_i + v_i,\; i \in \operatorname{top}_K \|A_i\|_2"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"z_i": "output of attention head i, before the output matrix mixes the heads",
        r"A_i": "scale of the head, trained in the first phase and then dropped",
        r"\lambda": "weight of the penalty that keeps scales small",
        r"v_i": "offset of the head, trained in the second phase for the K heads with the largest scales",
    }
    lr = LearningRate(
        3e-2,
        f"best of 3e-4 to 1e-1 in half decades, but for one example less than 1e-1, by {TUNED_BY}, own settings",
    )
    notes = (
        "Both phases and the start are those of the authors' code. There each phase has a schedule of its own, and a "
        "language model answers with its own vocabulary; here one schedule runs over both, so that the offsets learn "
        "at falling rates, and the task head goes on from where the first phase left it. An offset becomes part of "
        "the bias of the attention's output layer. A merged Llama gets biases in its attention, which its format "
        "allows; Mistral and Qwen2 have no place for them. The budget counts the offsets."
    )
    Config: ClassVar[type[MethodConfig]] = LofitConfig
    views: ClassVar[tuple[str, ...]] = ("change", "bias")
    captured = ""
    not_capturable = "In mid-run it goes back and trains something else."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        settings: Any = config
        self.switch = first_phase(settings.probe, context.steps)
        """Steps of the first phase."""
        self.rows = self.trainables(context.architecture, config)
        self._wrappers: dict[str, HeadOffsets] = {}

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """A scale and an offset of every head.

        Raises:
            SpecError: when the model could not hold the offsets once they are merged.
        """
        names = {row.name for row in architecture.backbone}
        outputs = architecture.linears(["o"])
        if architecture.model_type != "llama" and not all(f"{row.module}.bias" in names for row in outputs):
            raise SpecError(
                f"Attention outputs of {architecture.model_type} models have no bias, which would have to hold the "
                f"offsets of {cls.title}.",
                "Choose another model or method.",
            )
        return tuple(
            Parameter(f"{row.module}.{part}.{head}", (_width(architecture, row),), row.layer, "o", part)
            for row in outputs
            for part in ("scale", "offset")
            for head in range(architecture.heads)
        )

    @classmethod
    def all_heads(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The rows of all offsets, one per head."""
        return tuple(row for row in cls.trainables(architecture, config) if row.part == "offset")

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in cls.all_heads(architecture, config)[: config.heads])

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        """In the first phase every head has a scale."""
        return sum(row.size for row in cls.all_heads(architecture, config))

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many heads as `target` allows.

        Raises:
            BudgetError: when one is too many.
        """
        heads = cls.all_heads(architecture, config)
        each = heads[0].size
        if target < each:
            raise BudgetError(
                f"{cls.title} trains at least {each:,} parameters here: the offset of one head.",
                f"Ask for at least {each:,}, or choose another method.",
            )
        return config.model_copy(update={"heads": min(len(heads), target // each)})

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return 0

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = []
        count = len(cls.all_heads(architecture, config))
        if config.heads > count:
            found.append(f"This model has {count:,} attention heads: all of them get an offset, not {config.heads:,}.")
        if first_phase(config.probe, steps) >= steps:
            found.append(f"All {steps} steps belong to the first phase: the offsets it chooses are never trained.")
        return found

    # --- work --------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Give every head a scale and an offset; the scales train first."""
        from engine.models.added import HeadOffsets, wrap

        architecture = self.context.architecture
        for row in architecture.linears(["o"]):
            wrapper = wrap(model, row.module, partial(HeadOffsets, heads=architecture.heads))
            self._wrappers[row.module] = wrapper
        model = super().attach(model)
        self._draw([row for row in self.rows if row.part == "scale"], 0)
        self.activate([row.name for row in self.rows if row.part == "scale"])
        return model

    def _draw(self, rows: list[Parameter], number: int) -> None:
        """The random start of these vectors: the same for a head whatever the others are."""
        import torch

        config: Any = self.config
        draws = torch.Generator().manual_seed(self.context.init_seed * 2 + number)
        places = [row.name for row in self.rows if row.part == rows[0].part]
        table = torch.randn(len(places), rows[0].size, generator=draws) * config.std
        with torch.no_grad():
            for row in rows:
                self._tensors[row.name].copy_(table[places.index(row.name)])

    @property
    def localising(self) -> bool:
        """Whether the first phase is not over."""
        return any(self._tensors[row.name].requires_grad for row in self.rows if row.part == "scale")

    def extra_loss(self) -> torch.Tensor | None:
        """In the first phase, the sum of the sizes of all scales times its weight."""
        import torch

        config: Any = self.config
        if not self.localising or not config.sparsity:
            return None
        scales = [self._tensors[row.name].abs().sum() for row in self.rows if row.part == "scale"]
        penalty: torch.Tensor = config.sparsity * torch.stack(scales).sum()
        return penalty

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        config: Any = self.config
        super().update(lr * config.first_rate if self.localising else lr, scale)

    def after_step(self, step: int) -> None:
        """At the end of the first phase choose the heads, drop the scales, and start the offsets."""
        if self.localising and step + 1 == self.switch:
            chosen = self._chosen()
            self._drop_scales()
            self._draw(chosen, 1)
            self.activate([row.name for row in chosen])
            self.touched = {row.name for row in chosen}

    def _chosen(self) -> list[Parameter]:
        """The offsets of the heads with the largest scales, in model order."""
        config: Any = self.config
        scales = [row for row in self.rows if row.part == "scale"]
        offsets = [row for row in self.rows if row.part == "offset"]
        norms = [float(self._tensors[row.name].detach().norm()) for row in scales]
        best = sorted(range(len(norms)), key=lambda place: (-norms[place], place))[: config.heads]
        return [offsets[place] for place in sorted(best)]

    def _drop_scales(self) -> None:
        import torch

        with torch.no_grad():
            for row in self.rows:
                if row.part == "scale":
                    self._tensors[row.name].zero_()

    # --- observation and export ---------------------------------------------------------------

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        """The scales' share in an output matrix, then the offsets' in its bias."""
        import torch

        wrapper = self._wrappers.get(weight.module)
        if wrapper is None or not self._changes(weight):
            return None
        with torch.no_grad():
            return wrapper.change(weight.part)

    def _changes(self, weight: Parameter) -> bool:
        part = "scale" if weight.part == "weight" else "offset"
        return any(name.startswith(f"{weight.module}.{part}.") for name in self.touched)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._drop_scales()
        super().load_state_dict(state)

    def install(self, result: dict[str, torch.Tensor]) -> None:
        self._drop_scales()
        super().install(result)
        self.activate(result)
        self.touched = set(result)

    def merged(self, model: nn.Module) -> nn.Module:
        """A plain copy of the model with the offsets in the biases of the attention's output layers."""
        from engine.models.added import without_wrappers

        plain: Any = without_wrappers(model)
        if self.context.architecture.model_type == "llama":
            self._allow_biases(plain)
        return plain

    def _allow_biases(self, plain: Any) -> None:
        """A Llama has biases in all four layers of its attention or in none: those that it lacks are zero."""
        import torch
        from torch import nn

        plain.config.attention_bias = True
        for row in self.context.architecture.linears(["q", "k", "v"]):
            layer = plain.get_submodule(row.module)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0]))


def _width(architecture: Architecture, row: Parameter) -> int:
    """Length of the vector that one head hands to this output matrix."""
    return (row.shape[0] if row.transposed else row.shape[1]) // architecture.heads
