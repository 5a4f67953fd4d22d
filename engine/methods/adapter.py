"""Bottleneck adapters: small networks behind the sublayers of every block; nothing else of the blocks trains."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods.contract import (
    TUNED_BY,
    TUNED_ON_NANO_CPU,
    Context,
    LearningRate,
    Method,
    MethodConfig,
    Paper,
    largest,
)
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

Place = Literal["attention", "feed_forward"]
_ROLES: dict[str, str] = {"attention": "o", "feed_forward": "down"}
WIDEST = 4_096


class BottleneckConfig(MethodConfig):
    """Settings of adapters."""

    bottleneck: int = Field(
        64,
        ge=1,
        le=WIDEST,
        title="Bottleneck",
        description="Width to which each adapter narrows what it reads.",
        json_schema_extra={"source": "authors' code; on GLUE the paper tries 8, 64 and 256", "budget": True},
    )
    places: tuple[Place, ...] = Field(
        ("attention", "feed_forward"),
        min_length=1,
        title="Where",
        description=(
            "Behind the output layers of which sublayers. Both, as Houlsby et al.; feed_forward alone is the one "
            "adapter per block of Pfeiffer et al."
        ),
        json_schema_extra={"source": "Houlsby et al."},
    )
    norms: bool = Field(
        True,
        title="Train the norms",
        description="Whether gains and biases of all norms train too. They count; Pfeiffer et al. leave them frozen.",
        json_schema_extra={"source": "Houlsby et al., paper and code"},
    )
    activation: Literal["gelu", "relu", "silu"] = Field(
        "gelu",
        title="Activation",
        description="The bend between narrowing and widening. relu is that of Pfeiffer et al.",
        json_schema_extra={"source": "authors' code: GELU by its tanh formula", "level": "advanced"},
    )
    std: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Spread at the start",
        description="Deviation of the two matrices at the start, cut at twice that. Near 0 an adapter does nothing.",
        json_schema_extra={"source": "authors' code; the paper finds all below 1e-2 safe", "level": "advanced"},
    )


@register
class Adapter(Method):
    r"""Puts a small network behind each sublayer of a frozen model, and trains only these and the norms.

    ### Why it exists

    Full fine-tuning makes a whole new model for every task. Adapters leave the model as it is and add
    a few small modules, which are all that a task has to store. Each reads what attention or
    feed-forward has put out, squeezes it into a few numbers, bends these, widens them again, and adds
    the result to what it read. At the start all its weights are nearly zero, so the model begins as the
    pretrained one. They brought adding little and freezing the rest to language models; LoRA followed.

    ### What to watch

    The matrices of the model never move: what is learned lies beside them. Of the model's own biases
    those of the norms drift, and no others. When the run is over, look at its answer time: an adapter
    is one more thing to compute for every token, and because of its bend it cannot be merged into the
    weights as LoRA can. With ID3 on top, the mask shows into which adapters a budget goes.

    ### When it fails

    In small batches the added time is felt most, since every adapter waits for the layer before it. A
    start far from zero disturbs all layers at once, and training may not recover; a start at exactly
    zero would never begin, as neither matrix would get a gradient. The width comes in large steps: one
    more means as many numbers as there are adapters times twice the model's width, so small budgets
    are met badly.
    """

    name = "adapter"
    title = "Adapters"
    family = "additive"
    paper = Paper(
        title="Parameter-Efficient Transfer Learning for NLP",
        authors="Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly",
        venue="ICML 2019",
        year=2019,
        url="https://arxiv.org/abs/1902.00751",
    )
    formula = (
        r"h \leftarrow h + U\, \varphi(D h + c) + e, \qquad D \in \mathbb{R}^{m \times d},\; "
        r"U \in \mathbb{R}^{d \times m}"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"h": "output of attention or feed-forward, before the block's own skip connection",
        r"D, c": "narrow it: m by d, starts near zero, and m biases, which start at zero",
        r"\varphi": "activation",
        r"U, e": "widen it again: d by m, starts near zero, and d biases, which start at zero",
        r"m, d": "bottleneck and width of the model; an adapter has 2dm + d + m parameters",
    }
    lr = LearningRate(
        3e-4,
        f"best of 1e-4 to 3e-2 in half decades, in a tie with 1e-3, by {TUNED_BY}, own settings",
        {"nano-bert": LearningRate(1e-2, f"{TUNED_ON_NANO_CPU}, budget 5,888")},
    )
    notes = (
        "Width, start, activation and places are those of the authors' code. As in paper and code all norms train too, "
        "that of the embeddings included, and the pooler does not. The norms are part of what a task adds, so the "
        "budget counts them; the adapters alone have 2L(2dm + d + m) for L blocks, and a budget sets one width for "
        "all. In the code a model's dropout comes before the adapter, here after it; by default there is none. The "
        "paper has BERT alone: in decoders, whose norms stand before the sublayers, an adapter still reads what the "
        "sublayer puts out. `places: [feed_forward]` is the place that Pfeiffer et al. chose (EACL 2021), with "
        "`norms: false` and `activation: relu`, and not their whole design: their adapter reads the state behind the "
        "block's norm, here it reads the output of the feed-forward itself."
    )
    Config: ClassVar[type[MethodConfig]] = BottleneckConfig
    views: ClassVar[tuple[str, ...]] = ("bias",)
    export_formats: ClassVar[tuple[str, ...]] = ("tensors",)

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._parameters: list[tuple[str, nn.Parameter]] = []

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def adapted(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """The weights of the layers behind which an adapter stands, in model order."""
        return architecture.linears(_ROLES[place] for place in config.places)

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        adapted = {row.name for row in cls.adapted(architecture, config)}
        found: list[Parameter] = []
        for row in architecture.backbone:
            if row.name in adapted:
                found += _added(row, config.bottleneck)
            elif config.norms and row.role.startswith("norm"):
                found.append(row)
        return tuple(found)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The widest bottleneck, the same everywhere.

        Raises:
            BudgetError: when a width of 1 is too much.
        """

        def size(width: int) -> int:
            return cls.size(architecture, config.model_copy(update={"bottleneck": width}))

        width = largest(size, 1, WIDEST, target)
        if width is None:
            count = len(cls.adapted(architecture, config))
            norms = ", and the norms" if config.norms else ""
            raise BudgetError(
                f"{cls.title} train at least {size(1):,} parameters here: a bottleneck of 1 in each of {count}{norms}.",
                f"Ask for at least {size(1):,}, name fewer `places`, or set `norms` to false.",
            )
        return config.model_copy(update={"bottleneck": width})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        if config.bottleneck < architecture.hidden:
            return []
        return [
            f"A bottleneck of {config.bottleneck:,} is no narrower than the model, whose width is "
            f"{architecture.hidden:,}."
        ]

    # --- work --------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Put an adapter behind the sublayers of every block, and freeze all but these and the norms."""
        import torch

        from engine.models.added import Bottleneck, wrap

        config: Any = self.config
        architecture = self.context.architecture
        draws = torch.Generator().manual_seed(self.context.init_seed)
        made = partial(Bottleneck, width=config.bottleneck, activation=config.activation)
        for row in self.adapted(architecture, config):
            wrap(model, row.module, made).start(config.std, draws)
        names = [row.name for row in self.trainables(architecture, config)]
        self.freeze(model, names)
        named = dict(model.named_parameters())
        self._parameters = [(name, named[name]) for name in names]
        return model

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self._parameters

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        """Of the model's own tensors the norms alone change."""
        tensor = dict(self._parameters).get(weight.name)
        return None if tensor is None else tensor.detach() - base


def _added(row: Parameter, width: int) -> list[Parameter]:
    """The tensors of the adapter behind one layer."""
    outputs = row.shape[1 if row.transposed else 0]
    shapes = {
        "down.weight": ("down", (width, outputs)),
        "down.bias": ("down bias", (width,)),
        "up.weight": ("up", (outputs, width)),
        "up.bias": ("up bias", (outputs,)),
    }
    return [
        Parameter(f"{row.module}.{name}", shape, row.layer, row.role, part) for name, (part, shape) in shapes.items()
    ]
