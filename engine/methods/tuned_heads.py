"""Localise, then tune: switch attention heads off one by one, and train those that the answer misses most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._examples import from_state, kept, to_state
from engine.methods._neurons import inputs_of, neurons_of
from engine.methods._phases import first_phase
from engine.methods._scored import scored
from engine.methods._static import StaticMask
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

Head = tuple[int, int]
"""Layer and number of a head."""


class TunedHeadsConfig(MethodConfig):
    """Settings of localise-then-tune."""

    heads: int = Field(
        4,
        ge=1,
        le=1_000_000,
        title="Heads",
        description="How many attention heads are trained, of all layers together.",
        json_schema_extra={"source": "authors: under a twentieth of the heads; here 4 of MiniLM's 72", "budget": True},
    )
    samples: int = Field(
        64,
        ge=1,
        le=1_024,
        title="Examples",
        description="Training examples on which each head is switched off.",
        json_schema_extra={"source": "this lab"},
    )
    warm: float = Field(
        0.2,
        gt=0,
        lt=1,
        title="Share of the first phase",
        description="Which part of the steps trains the task head alone, so that switching a head off means something.",
        json_schema_extra={"source": "this lab: the authors' model can do its task before"},
    )


@register
class TunedHeads(StaticMask):
    r"""Finds by experiment which attention heads the answer depends on, and trains these and no others.

    ### Why it exists

    A large gradient says that a weight could change the answer; switching a part off says whether the
    answer depends on it. Interpretability calls this a causal test. Its authors found that a few heads
    do most of the work in arithmetic, and that training just these heads improves it and leaves other
    abilities alone. Here every head's output is set to zero in turn, and the heads whose loss is missed
    most are trained: their share of the query, key, value and output matrices.

    ### What to watch

    First the task head trains alone and nothing inside moves. Then the mask appears, all at once: bands
    of rows in queries, keys and values, and of columns in the output matrix. See in which layers they
    lie, how far the chosen heads stand out from the others, and whether another seed finds the same ones.

    ### When it fails

    Heads stand in for each other: where two do the same work, neither is missed when it goes alone. A
    head that hurts is not found, nor one that could learn the task and has not. And with so small a
    model as MiniLM, most heads hardly matter for a task as easy as this.
    """

    name = "tuned_heads"
    title = "Localised heads"
    paper = Paper(
        title="Interpreting and Improving Large Language Models in Arithmetic Calculation",
        authors="Zhang, Wan, Zhang, Cheung, Tian, Shen, Ye",
        venue="ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2409.01659",
    )
    formula = (
        r"e_i = \mathbb{E}\big[\mathcal{L}(x; z_i \leftarrow 0) - \mathcal{L}(x)\big], \qquad "
        r"S = \operatorname{top}_H e_i"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"e_i": "effect of head i: how much the loss grows without it",
        r"z_i": "output of head i, before the output matrix mixes the heads",
        r"\mathcal{L}": "loss of an example",
        r"S": "the H heads with the largest effects, whose weights are trained",
    }
    lr = LearningRate(3e-3, f"best of 3e-5 to 1e-2 in half decades by {TUNED_BY}, own settings")
    notes = (
        "A reconstruction in the paper's spirit. The authors patch single paths with activations of other prompts, and "
        "train some feed-forward layers too; here the whole output of a head is set to zero, and heads alone are "
        "trained. Their model knows its task; here the task head must learn first, and does so alone for the first "
        "part of the run. Where several heads share keys and values, as in a Llama with grouped queries, these "
        "belong to none of them and stay frozen; so does the bias of the output matrix."
    )
    Config: ClassVar[type[MethodConfig]] = TunedHeadsConfig
    views: ClassVar[tuple[str, ...]] = ("scores", *StaticMask.views)
    scores_first = True
    finds_late = True
    scattered = False
    composes = False
    captured = ""
    packs = ""
    not_capturable = "In mid-run it switches heads off, looks at the losses, and trains what it has found."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        settings: Any = config
        self.switch = first_phase(settings.warm, context.steps)
        """Steps of the first phase."""
        self._examples: list[dict[str, torch.Tensor]] = []
        self._findings: dict[str, Any] = {}
        self._model: nn.Module | None = None

    # --- declaration -------------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        """Weights and biases that are divided among the heads."""
        width = architecture.linears(["o"])[0]
        owned = {"o"} | {
            row.role
            for row in architecture.linears(["q", "k", "v", "qkv"])
            if neurons_of(row) % inputs_of(width) == 0  # shared keys and values are narrower
        }
        return tuple(
            row
            for row in architecture.backbone
            if 0 <= row.layer < architecture.layers
            and row.role in owned
            and (row.part == "weight" or (row.part == "bias" and row.role != "o"))
        )

    @classmethod
    def of_one_head(cls, architecture: Architecture, config: Any) -> int:
        """Weights of one head."""
        rows = cls.trainables(architecture, config)
        return sum(row.size for row in rows) // (architecture.layers * architecture.heads)

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return min(config.heads, architecture.layers * architecture.heads) * cls.of_one_head(architecture, config)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """As many heads as `target` allows.

        Raises:
            BudgetError: when one is too many.
        """
        each = cls.of_one_head(architecture, config)
        if target < each:
            raise BudgetError(
                f"{cls.title} trains at least {each:,} parameters here: those of one head.",
                f"Ask for at least {each:,}, or choose another method.",
            )
        return config.model_copy(update={"heads": min(architecture.layers * architecture.heads, target // each)})

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in cls.trainables(architecture, config))

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = []
        count = architecture.layers * architecture.heads
        if config.heads > count:
            found.append(f"This model has {count:,} attention heads: all of them train, not {config.heads:,}.")
        if first_phase(config.warm, steps) >= steps:
            found.append(f"All {steps} steps belong to the first phase: the heads it finds are never trained.")
        return found

    # --- work --------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Nothing is selected yet: gradients are dropped until the heads have been chosen."""
        self._model = super().attach(model)
        return self._model

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Put examples aside, on which heads are switched off once the task head has learned something.

        Raises:
            DataError: when there is none.
        """
        config: Any = self.config
        self._examples = kept(batches, config.samples, progress)

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        if self.sparse.count:
            super().update(lr, scale)

    def after_step(self, step: int) -> None:
        """At the end of the first phase measure all heads, and select the weights of the best."""
        if not self.sparse.count and step + 1 == self.switch:
            config: Any = self.config
            effects = self.effects()
            best = sorted(sorted(effects, key=lambda head: (-effects[head], head))[: config.heads])
            self._findings = scored(
                "head", "effect: loss without it - loss, nats", effects, best, len(self._examples), step + 1
            )
            self._select(best)
            self._examples = []

    def findings(self) -> dict[str, Any]:
        """The effect of every head, once it has been measured."""
        return self._findings

    def effects(self) -> dict[Head, float]:
        """How much the mean loss of the examples grows without each head."""
        import torch

        assert self._model is not None, "attach first"
        architecture = self.context.architecture
        heads = [(layer, head) for layer in range(architecture.layers) for head in range(architecture.heads)]
        totals = torch.zeros(len(heads), dtype=torch.float64)
        was_training = self._model.training
        self._model.eval()
        for example in self._examples:
            whole, without = self._losses(example, [None]), self._losses(example, heads)
            totals += without - whole
        self._model.train(was_training)
        return dict(zip(heads, (totals / len(self._examples)).tolist(), strict=True))

    def _losses(self, example: dict[str, torch.Tensor], off: Sequence[Head | None]) -> torch.Tensor:
        """Loss of one example with each of these heads switched off, None for no head; float64 (n,)."""
        import torch

        assert self._model is not None
        found = []
        for start in range(0, len(off), 64):
            part = off[start : start + 64]
            batch = {key: tensor.expand(len(part), *tensor.shape[1:]) for key, tensor in example.items()}
            labels = batch.pop("labels")
            hooks = list(self._switches(part))
            with torch.no_grad():
                logits = self._model(**batch).logits.double()
            for hook in hooks:
                hook.remove()
            found.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu())
        return torch.cat(found)

    def _switches(self, off: Sequence[Head | None]) -> Iterator[Any]:
        """Hooks that set one head's output to zero in each example of a batch."""
        import torch

        assert self._model is not None
        architecture = self.context.architecture
        for row in architecture.linears(["o"]):
            gates = torch.ones(len(off), architecture.heads, device=self.context.device)
            for place, head in enumerate(off):
                if head is not None and head[0] == row.layer:
                    gates[place, head[1]] = 0.0
            wide = gates.repeat_interleave(inputs_of(row) // architecture.heads, dim=1)[:, None]

            def switch(module: nn.Module, inputs: tuple[torch.Tensor], wide: torch.Tensor = wide) -> tuple[Any, ...]:
                return (inputs[0] * wide, *inputs[1:])

            yield self._model.get_submodule(row.module).register_forward_pre_hook(switch)

    def _select(self, heads: list[Head]) -> None:
        import torch

        tensors, indices = [], []
        for number, row in enumerate(self.rows):
            own = [head for layer, head in heads if layer == row.layer]
            if own:
                index = entries_of(row, own, self.context.architecture.heads)
                tensors.append(torch.full_like(index, number))
                indices.append(index)
        device = self._tensors[0].device
        self.sparse.add(torch.cat(tensors).to(device), torch.cat(indices).to(device), self.switch)
        self._freeze_unused()

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """In the first phase the examples, then what is selected."""
        if self.sparse.count:
            return super().state_dict()
        return to_state(self._examples)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if "steps" in state:
            self._examples = []
            super().load_state_dict(state)
            return
        self._examples = from_state(state, self.context.device)


def entries_of(row: Parameter, own: Sequence[int], heads: int) -> torch.Tensor:
    """Flat positions, ascending, of the entries of one tensor that belong to these heads of its layer."""
    import torch

    table = torch.arange(row.size).view(row.shape)
    # The axis along which heads lie: inputs of the output matrix, outputs of the others.
    axis = 0 if row.part == "bias" or (row.role == "o") == row.transposed else 1
    parts = 3 if row.role == "qkv" else 1
    divided = table.movedim(axis, 0).reshape(parts, heads, -1)
    return divided[:, list(own)].flatten().sort().values
