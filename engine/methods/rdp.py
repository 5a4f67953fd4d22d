"""RDP LoRA: adapters in the layers where the path of the hidden states through the model turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from engine.errors import BudgetError
from engine.methods._active import ActiveTensors, layers_field
from engine.methods._examples import kept
from engine.methods._peft import MAX_RANK
from engine.methods._polyline import Polyline, principal_plane, splits, tolerances
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper, largest
from engine.methods.lora import LoRA, LowRankConfig
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class RdpConfig(LowRankConfig):
    """Settings of RDP LoRA."""

    layers: int = layers_field(2, "How many layers get adapters.", "this lab; the paper has 13 of 36")
    samples: int = Field(
        64,
        ge=1,
        le=16_384,
        title="Examples of the path",
        description="Training examples whose hidden states are averaged, before the first step.",
        json_schema_extra={"source": "this lab"},
    )
    normalise: bool = Field(
        False,
        title="Directions only",
        description="Scale every point of the path to length one: in decoders hidden states grow with depth.",
        json_schema_extra={"source": "this lab"},
    )
    last: bool = Field(
        True,
        title="The end counts",
        description="Whether the last layer, as an end of the path, is always among the chosen ones.",
        json_schema_extra={"source": "this lab: the algorithm keeps both ends", "level": "advanced"},
    )


@register
class RdpLoRA(ActiveTensors, LoRA):
    r"""LoRA in a few layers: those where the path of the hidden states makes a turn.

    ### Why it exists

    From layer to layer the mean hidden state moves on: a path with as many corners as there are
    layers. Where it runs straight, a layer goes on with what the one before it did; where it turns,
    something new begins. The algorithm of Ramer, Douglas and Peucker, made for simplifying coast
    lines, finds the corners that matter. Only those layers get adapters. It needs a few forward
    passes, and no training and no labels.

    ### What to watch

    The path in its view: where it turns, and how far each corner lies from the straight line. Which
    layers were chosen, and does another data set choose the same? At an equal budget fewer layers
    mean more ranks in each. In the view of magnitude and direction the other layers stand still.

    ### When it fails

    The corners are the pretrained model's and know nothing of the task. One direction with a huge
    value can decide the whole path. And with half a dozen layers there is not much to simplify.
    """

    name = "rdp_lora"
    title = "RDP LoRA"
    family = "reparameterised"
    paper = Paper(
        title="RDP LoRA: Geometry-Driven Identification for Parameter-Efficient Adaptation in Large Language Models",
        authors="Celebi et al.",
        venue="arXiv",
        year=2026,
        url="https://arxiv.org/abs/2604.19321",
    )
    formula = (
        r"e(l) = \min\bigl(d(P_l, \overline{P_i P_j}),\, e_{\mathrm{parent}}\bigr), \qquad P_l = \mathrm{mean}\, h_l"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"P_l": "mean hidden state after l layers, over tokens and examples",
        r"\overline{P_i P_j}": "the straight line that the simplified path has instead, before it is split at l",
        r"d": "distance of a point from it",
        r"e(l)": "up to which tolerance the corner stays; the layers with the largest get adapters",
    }
    lr = LearningRate(1e-2, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    packs = ""
    notes = (
        "A reconstruction from the abstract, as no code was published: how points are averaged and how a number of "
        "layers is reached are this lab's. Instead of a tolerance the number of layers is given, and the corners that "
        "last longest are taken. A corner is credited to the layer that puts it out. Adapters that were not chosen "
        "are taken out of the model. A budget sets the rank, then one more for the kinds of matrices that still fit."
    )
    Config: ClassVar[type[MethodConfig]] = RdpConfig
    views: ClassVar[tuple[str, ...]] = ("path", "change")
    export_formats: ClassVar[tuple[str, ...]] = ("peft", "merged")
    scores_first = True

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.polyline: Polyline | None = None
        """The path and its kept corners; None before they are known."""
        self.averaged = (0, 0)
        """Examples and tokens that its points are means over; only known where it was measured."""

    # --- declaration ---------------------------------------------------------------------

    @classmethod
    def size(cls, architecture: Architecture, config: Any) -> int:
        """Adapters of as many layers as are chosen: the largest, where they differ."""
        by_layer: dict[int, int] = {}
        for row in cls.trainables(architecture, config):
            by_layer[row.layer] = by_layer.get(row.layer, 0) + row.size
        return sum(sorted(by_layer.values(), reverse=True)[: config.layers])

    @classmethod
    def peak(cls, architecture: Architecture, config: Any) -> int:
        """Until the choice is made there is an adapter everywhere."""
        return sum(row.size for row in cls.trainables(architecture, config))

    @classmethod
    def dense_gradients(cls, architecture: Architecture, config: Any) -> int:
        return 0

    @classmethod
    def fit(cls, architecture: Architecture, config: Any, target: int) -> MethodConfig:
        """The largest equal rank, then one more for the kinds of matrices that still fit.

        Raises:
            BudgetError: when rank 1 is above the target.
        """
        targets = cls.targets_of(architecture, config)

        def with_ranks(rank: int, more: frozenset[str] = frozenset()) -> MethodConfig:
            pattern = {row.module: rank + 1 for row in targets if row.role in more}
            return config.model_copy(update={"rank": rank, "rank_pattern": pattern})

        most = min(MAX_RANK, max(min(row.shape) for row in targets))
        rank = largest(lambda r: cls.size(architecture, with_ranks(r)), 1, most, target)
        if rank is None:
            least = cls.size(architecture, with_ranks(1))
            raise BudgetError(
                f"{cls.title} trains at least {least:,} parameters here: rank 1 in {config.layers} layers.",
                f"Ask for at least {least:,}, or choose fewer `layers`.",
            )
        more: frozenset[str] = frozenset()
        for row in sorted(targets, key=lambda row: sum(row.shape)) if rank < most else ():
            if cls.size(architecture, with_ranks(rank, more | {row.role})) <= target:
                more |= {row.role}
        return with_ranks(rank, more)

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if config.layers > architecture.layers:
            found.append(f"This model has {architecture.layers} layers: all of them get adapters.")
        return found

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """An adapter in every layer, until the choice is made."""
        self._model = LoRA.attach(self, model)
        return ActiveTensors.attach(self, self._model)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """None: the loop's optimizer is made before the choice is."""
        return []

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Follow the hidden states, and keep the adapters of the layers where their path turns.

        Raises:
            DataError: when there is no example.
        """
        import torch

        config: Any = self.config
        was_training = model.training
        model.eval()
        with torch.no_grad(), _states(model, self.context.architecture) as sums:
            examples = kept(batches, config.samples, progress)
            for example in examples:
                model(**example)
        model.train(was_training)
        self.averaged = (len(examples), sums.tokens)
        points = (torch.stack(sums.totals) / sums.tokens).cpu().numpy()
        if config.normalise:
            points = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
        tolerance = tolerances(points)
        corners = tolerance[1:] if config.last else np.append(tolerance[1:-1], -1.0)
        best = sorted(range(len(corners)), key=lambda layer: (-corners[layer], layer))[: config.layers]
        self._keep(Polyline(points, tolerance, tuple(sorted(best))))

    def _keep(self, polyline: Polyline) -> None:
        """Train the adapters of the chosen layers, and take the others out."""
        self.polyline = polyline
        self._take_out(polyline.layers)
        rows = self.trainables(self.context.architecture, self.config)
        self.activate({row.name for row in rows if row.layer in polyline.layers})

    def _take_out(self, layers: tuple[int, ...]) -> None:
        for row in self.targets_of(self.context.architecture, self.config):
            if row.layer not in layers and row.name in self._layers:
                parent, _, name = row.module.rpartition(".")
                setattr(self._model.get_submodule(parent), name, self._layers.pop(row.name).base_layer)

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor | None:
        return LoRA.delta(self, weight, base)

    def findings(self) -> dict[str, Any]:
        """The path in the plane of its principal components, and how the simplification divided it."""
        if self.polyline is None:
            return {}
        config: Any = self.config
        points = self.polyline.points
        places, shares = principal_plane(points)
        path = {
            "places": places.tolist(),
            "shares": shares,
            "splits": [asdict(each) for each in splits(points)],
            "layers": self.polyline.layers,
            "hidden": points.shape[1],
            "normalised": config.normalise,
            "examples": self.averaged[0],
            "tokens": self.averaged[1],
        }
        return {"path": path}

    # --- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        import torch

        state = super().state_dict()
        if self.polyline is not None:
            state["polyline.points"] = torch.from_numpy(self.polyline.points)
            state["polyline.tolerance"] = torch.from_numpy(self.polyline.tolerance)
            state["polyline.layers"] = torch.tensor(self.polyline.layers)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        points, tolerance, layers = (state[f"polyline.{key}"].cpu() for key in ("points", "tolerance", "layers"))
        self._keep(Polyline(points.numpy(), tolerance.numpy(), tuple(layers.tolist())))
        super().load_state_dict(state)

    def install(self, result: dict[str, torch.Tensor]) -> None:
        """Adapters that the result does not have are taken out."""
        rows = self.trainables(self.context.architecture, self.config)
        self._take_out(tuple({row.layer for row in rows if row.name in result}))
        super().install(result)


class _Sums:
    """Sums over tokens of what goes into the first layer and comes out of each."""

    def __init__(self, points: int) -> None:
        self.totals: list[Any] = [0.0] * points
        self.tokens = 0

    def add(self, place: int, states: torch.Tensor) -> None:
        """States (1, tokens, hidden) of one example, which has no padding."""
        self.totals[place] = self.totals[place] + states.double().sum((0, 1))
        if place == 0:
            self.tokens += states.shape[1]


@contextmanager
def _states(model: nn.Module, architecture: Architecture) -> Iterator[_Sums]:
    """Adds up the hidden states of whatever passes through the model meanwhile."""
    sums = _Sums(architecture.layers + 1)

    def entering(module: Any, args: Any, kwargs: Any) -> None:
        sums.add(0, args[0] if args else kwargs["hidden_states"])

    def leaving(place: int) -> Callable[[Any, Any, Any], None]:
        return lambda module, args, out: sums.add(place, out[0] if isinstance(out, tuple) else out)

    names = {row.layer: row.name for row in architecture.linears()}
    blocks = [model.get_submodule(_block_name(names[layer], layer)) for layer in range(architecture.layers)]
    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [module.register_forward_hook(leaving(layer + 1)) for layer, module in enumerate(blocks)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _block_name(tensor: str, layer: int) -> str:
    """The module of a layer, from the name of one of its tensors."""
    return f"{tensor.partition(f'.{layer}.')[0]}.{layer}"
