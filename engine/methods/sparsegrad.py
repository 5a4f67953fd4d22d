"""SparseGrad: train the feed-forward matrices in a basis in which their gradients are nearly sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import BudgetError
from engine.methods._scored import ScoringConfig, add_up
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn


class SparseGradConfig(ScoringConfig):
    """Settings of SparseGrad."""

    samples: int = Field(
        128,
        ge=1,
        le=16_384,
        title="Scored examples",
        description="Training examples whose gradients say how to rotate, one by one, before the first step.",
        json_schema_extra={"source": "this lab; the authors stack the gradients of 11 to 30 batches"},
    )
    k: int = Field(
        26_112,
        ge=1,
        title="Entries per step",
        description="How many entries of the rotated matrices are updated at each step; other ones at the next.",
        json_schema_extra={"budget": True, "source": "this lab: the common budget; the authors take about 1 %"},
    )
    basis: Literal["rotated", "code", "plain"] = Field(
        "rotated",
        title="Basis",
        description=(
            "rotated: both sides by the singular vectors of the gradients, as in the paper. code: the input side "
            "transposed, as in the authors' code. plain: no rotation, for comparison."
        ),
        json_schema_extra={"source": "paper", "level": "advanced"},
    )


@register
class SparseGrad(Method):
    r"""Turns the feed-forward matrices so that a few entries hold most of the gradient, and trains those.

    ### Why it exists

    A weight's gradient is rarely large by itself: what a batch teaches a matrix is spread over
    thousands of its entries. But the gradients of all layers and examples have directions in common.
    SparseGrad finds them, by the singular vectors of many gradients put together, and looks at every
    gradient along these directions instead. In nano-bert one entry in a hundred then holds 94 to 97 %
    of a fresh batch's squared gradient, against 56 to 63 % before (MiniLM: 87 to 91 %, against 34 to
    78 %). Only these entries are updated, with a step of Adam in the turned basis.

    ### What to watch

    At the same number of entries, compare the turned basis with the plain one. Turned back, the change
    of a matrix is not sparse at all: every weight moves a little. So there is no mask to draw, but the
    change grows along few directions, as with LoRA, which had to choose a rank beforehand.

    ### When it fails

    Holding most of the gradient is not yet learning better: Adam moves every chosen entry by about as
    much, however large its gradient. In single runs of 300 steps on nano-bert the plain basis did as
    well. The directions are those of the first gradients, and stay; what the task needs later may lie
    elsewhere. And it saves little: two moments for each entry of the matrices, and two products with
    square matrices for each gradient. Only what feeds forward is trained.
    """

    name = "sparsegrad"
    title = "SparseGrad"
    family = "selective"
    paper = Paper(
        title="SparseGrad: A Selective Method for Efficient Fine-tuning of MLP Layers",
        authors="Chekalina et al.",
        venue="EMNLP 2024",
        year=2024,
        url="https://arxiv.org/abs/2410.07383",
    )
    formula = (
        r"\tilde{G} = V^{\top} G\, U, \qquad \tilde{W} = V^{\top} W\, U, \qquad "
        r"\tilde{W} \leftarrow \tilde{W} - \eta\, \mathrm{Adam}\bigl(\mathrm{top}_k(\tilde{G})\bigr)"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"G": "gradient of a feed-forward matrix W, outputs by inputs",
        r"V, U": "singular vectors of the outputs and of the inputs, of many gradients of all layers",
        r"\mathrm{top}_k": "the k largest entries, divided among the matrices by their sizes",
    }
    lr = LearningRate(1e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "The authors turn the layers themselves, inputs and outputs of every token; here the gradient and the change "
        "are turned, which is the same but for rounding. Their code turns the inputs by the transpose of U, which "
        "spreads the gradient again: a setting has it, the formula is the default. They collect gradients while they "
        "train, and keep what that has moved; here the gradients of single examples at the pretrained weights are "
        "taken. They train all other tensors densely, here those are frozen. As with PyTorch's SparseAdam, an entry "
        "without a gradient in a step neither moves nor forgets. The budget counts the entries updated at a time."
    )
    Config: ClassVar[type[MethodConfig]] = SparseGradConfig
    scores_first = True
    steady = False

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.rows = self.trainables(context.architecture, config)
        self._tensors: dict[str, nn.Parameter] = {}
        self._bases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        """Turns of outputs and inputs, by kind; a kind is what has one role and one shape."""
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._chosen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        """Of this step's gradients: flat positions in the turned basis, and values."""
        self._quotas: dict[str, int] = {}

    # --- declaration ---------------------------------------------------------------------

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.linears(["gate", "up", "down"])

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        return sum(row.size for row in cls.trainables(architecture, config))

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        return min(config.k, cls.peak(architecture, config))

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return cls.peak(architecture, config)

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """Exactly `target` entries per step, or all there are.

        Raises:
            BudgetError: for a target below 1.
        """
        if target < 1:
            raise BudgetError(f"A budget of {target:,} updates no entry.", "Ask for at least one.")
        return config.model_copy(update={"k": min(target, cls.peak(architecture, config))})

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        most = cls.peak(architecture, config)
        if config.k <= most:
            return []
        return [f"The feed-forward matrices have {most:,} entries: all are updated, not {config.k:,}."]

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Freeze all but the feed-forward matrices, and make room for their moments."""
        import torch

        from engine.sparse.selection import shares

        named = dict(model.named_parameters())
        self._tensors = {row.name: named[row.name] for row in self.rows}
        self.freeze(model, but=self._tensors)
        sizes = [row.size for row in self.rows]
        quotas = shares(sizes, self.size(self.context.architecture, self.config)) if sizes else []
        self._quotas = {row.name: quota for row, quota in zip(self.rows, quotas, strict=True)}
        for row in self.rows:
            self._moments[row.name] = (torch.zeros_like(named[row.name]), torch.zeros_like(named[row.name]))
            outputs, inputs = (torch.eye(length, device=named[row.name].device) for length in row.shape)
            self._bases[_kind(row)] = (outputs, inputs)
        self._steps = torch.zeros((), dtype=torch.float64, device=self.context.device)
        return model

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Find the turns: singular vectors of the gradients of all layers and examples, side by side.

        Raises:
            DataError: when there is no example.
        """
        import torch

        config: Any = self.config
        if config.basis == "plain":
            return
        products = {
            kind: [torch.zeros_like(side, dtype=torch.float64) for side in sides] for kind, sides in self._bases.items()
        }

        def add(batch: dict[str, torch.Tensor], totals: list[torch.Tensor]) -> None:
            found = torch.autograd.grad(model(**batch).loss, list(self._tensors.values()))
            for row, gradient in zip(self.rows, found, strict=True):
                first, second = products[_kind(row)]
                first.add_(gradient @ gradient.T)
                second.add_(gradient.T @ gradient)

        add_up(model, [], batches, config.samples, progress, add)
        for kind, sides in products.items():
            turns = [torch.linalg.eigh(side).eigenvectors.flip(1).float().contiguous() for side in sides]
            if config.basis == "code":
                turns[1] = turns[1].T.contiguous()
            self._bases[kind] = (turns[0], turns[1])

    def streamed(self) -> list[tuple[str, nn.Parameter]]:
        return list(self._tensors.items())

    def turned(self, row: Parameter, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix in the turned basis."""
        first, second = self._bases[_kind(row)]
        return first.T @ matrix @ second

    def turned_back(self, row: Parameter, matrix: torch.Tensor) -> torch.Tensor:
        """Inverse of `turned`."""
        first, second = self._bases[_kind(row)]
        return first @ matrix @ second.T

    def on_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Turn a gradient, and keep its largest entries alone."""
        if parameter.grad is None:
            return
        flat = self.turned(self._row(name), parameter.grad).flatten()
        places = flat.abs().topk(self._quotas[name]).indices
        self._chosen[name] = (places, flat.index_select(0, places))
        parameter.grad = None

    def gradient_square(self) -> torch.Tensor | None:
        """Of the entries that were kept."""
        import torch

        squares = [values.square().sum() for _, values in self._chosen.values()]
        return torch.stack(squares).sum() if squares else None

    def update(self, lr: float | torch.Tensor, scale: torch.Tensor) -> None:
        """Adam for the entries that were kept, turned back and added."""
        import torch

        from engine.sparse.optimizer import put

        with torch.no_grad():
            self._steps.add_(1)
            for name, (places, values) in self._chosen.items():
                row, tensor = self._row(name), self._tensors[name]
                direction = self._adam(name, places, values * scale)
                if self.context.weight_decay:
                    held = self.turned(row, tensor).flatten().index_select(0, places)
                    direction.add_(held, alpha=self.context.weight_decay)
                change = torch.zeros_like(tensor).flatten()
                put(change, places, direction.mul_(-lr))
                tensor.add_(self.turned_back(row, change.view(tensor.shape)))
        self._chosen = {}

    def _adam(self, name: str, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Direction of the step of some entries, whose moments are brought up to date."""
        from engine.sparse.optimizer import BETAS, EPS, put

        first, second = (moment.view(-1) for moment in self._moments[name])
        mean = first.index_select(0, places).lerp_(values, 1 - BETAS[0])
        square = second.index_select(0, places).mul_(BETAS[1]).addcmul_(values, values, value=1 - BETAS[1])
        put(first, places, mean)
        put(second, places, square)
        corrections = [(1 - beta**self._steps).float() for beta in BETAS]
        return (mean / corrections[0]) / (square.sqrt() / corrections[1].sqrt() + EPS)

    def _row(self, name: str) -> Parameter:
        return next(row for row in self.rows if row.name == name)

    def optimizer_scalars(self) -> int:
        """The moments are dense, as the authors' are."""
        return 2 * sum(row.size for row in self.rows)

    # --- observation and state ---------------------------------------------------------------

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        tensor = self._tensors.get(weight.name)
        return None if tensor is None else tensor.detach() - base

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"steps": self._steps}
        for kind, sides in self._bases.items():
            state |= {f"basis.{kind}.{number}": side for number, side in enumerate(sides)}
        for name, tensor in self._tensors.items():
            state[f"value.{name}"] = tensor.detach()
            state |= {f"moment.{name}.{number}": moment for number, moment in enumerate(self._moments[name])}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        own = self.state_dict()
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])

    def result(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._tensors.items()}

    def install(self, result: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(result[name])


def _kind(row: Parameter) -> str:
    """Matrices of one kind are turned alike."""
    return f"{row.role}.{row.shape[0]}x{row.shape[1]}"
