"""IST: train the adapters of a few layers at a time, drawn by an importance that is learnt on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from engine.errors import Diverged
from engine.methods._examples import from_state, kept_groups, to_state
from engine.methods._peft import ADAPTER
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.lora import LoRA, LowRankConfig
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

GROUPS = 8
"""Judgements are passed on so many groups of examples in turn."""
_SURE = 30.0
"""Importance stays within plus and minus this, so that every layer can still be drawn."""


class IstConfig(LowRankConfig):
    """Settings of IST."""

    share: float = Field(
        0.25,
        gt=0,
        le=1,
        title="Layers trained per step",
        description="Share of the layers whose adapters a step updates, at least one.",
        json_schema_extra={"source": "authors' code"},
    )
    interval: int = Field(
        10,
        ge=1,
        le=100_000,
        title="Steps between judgements",
        description="After so many steps the layers' importance is judged again.",
        json_schema_extra={"source": "authors' code"},
    )
    suppression: float = Field(
        0.25,
        ge=0,
        le=1,
        title="Response that is left",
        description="While a layer is judged, the output of its adapters is multiplied by this.",
        json_schema_extra={"source": "authors' code"},
    )
    candidates: int = Field(
        3,
        ge=2,
        le=100,
        title="Sets compared",
        description="How many different sets of layers are suppressed and compared in one judgement.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )
    suppressed: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Layers suppressed at once",
        description="Share of the layers in each of these sets, at least one.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )
    rate: float = Field(
        10.0,
        ge=0,
        le=10_000,
        title="Step size of importance",
        description="How far one judgement moves the importance of the layers it was about.",
        json_schema_extra={"source": "authors' code", "level": "advanced"},
    )
    samples: int = Field(
        16,
        ge=1,
        le=1_024,
        title="Examples per judgement",
        description="Training examples whose loss compares the sets; eight groups of so many take turns.",
        json_schema_extra={"source": "authors' code; there each judgement has new ones", "level": "advanced"},
    )


@register
class IST(LoRA):
    r"""Gives every layer an adapter, and trains at each step only those of the layers that seem to matter.

    ### Why it exists

    LoRA treats all layers alike, though some matter more for a task than others. IST finds out which
    while it trains. Now and then it turns down the adapters of half the layers and looks at the loss:
    if the model hardly misses them, they were not important. Layers are then drawn by lot, the
    important ones more often, and only their adapters are updated.

    ### What to watch

    The importance of each layer over the steps: does it settle, or wander? In the view of magnitude
    and direction some layers move far more than others. Set the response that is left to 1 and
    nothing can be learnt about importance: the draw stays uniform. Train all layers, and it is LoRA
    to the last bit.

    ### When it fails

    At the start all adapters are zero, so turning them down changes nothing and the first judgements
    say nothing. With few layers a quarter of them is one, and each adapter gets a fraction of the
    steps. A judgement on a few examples is noisy, and what it finds is what mattered so far, not what
    could.
    """

    name = "ist"
    title = "IST"
    paper = Paper(
        title="Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-efficient Fine-tuning of "
        "Large Language Models",
        authors="Yao, Gao, Li, Zhao, Wang, Wang, Zhu",
        venue="Findings of EMNLP 2024",
        year=2024,
        url="https://arxiv.org/abs/2410.11772",
    )
    formula = r"I_l \leftarrow I_l - \mu\, p_l (1 - p_l)\, (r_c - \bar r) \;\; (l \in S_c), \qquad r_c = e^{-L_c}"
    symbols: ClassVar[dict[str, str]] = {
        r"I_l": "importance of layer l, 0 at the start; a layer trains with probability growing with it",
        r"p_l": "sigmoid of the negative importance: how likely the layer is suppressed",
        r"S_c": "one of the sets of layers whose adapters are turned down to see what happens",
        r"L_c": "loss while they are",
        r"r_c, \bar r": "reward of that set, and the mean over the sets",
        r"\mu": "step size",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "The authors' code. It keeps a score that is the negative of the importance here. Two things differ: a "
        "judgement is made after a step and not before the next, on examples kept from the start of the run; and the "
        "gradients of layers that were not drawn are computed and dropped, which updates the same entries but does "
        "not save the authors' memory. Their search for different sets never ends when there are fewer than asked "
        "for; here as many are compared as there are. The budget counts all adapters."
    )
    Config: ClassVar[type[MethodConfig]] = IstConfig
    packs = ""
    steady = False
    views: ClassVar[tuple[str, ...]] = ("importance", *LoRA.views)
    scores_first = True
    captured = "gradients"
    not_capturable = "Which layers are updated is drawn anew at every step."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        targets = self.targets_of(context.architecture, config)
        self.layers: tuple[int, ...] = tuple(sorted({row.layer for row in targets}))
        """The layers that have adapters."""
        self.importance = np.zeros(len(self.layers))
        """One number for each of them."""
        self._groups: list[dict[str, torch.Tensor]] = []

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if steps <= config.interval:
            found.append(f"Importance is first judged after {config.interval} steps: this run only draws at random.")
        return found

    # --- work ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        self._model = super().attach(model)
        rows = self.trainables(self.context.architecture, self.config)
        self._by_layer: dict[int, list[nn.Parameter]] = {layer: [] for layer in self.layers}
        for row, (_, parameter) in zip(rows, self.parameters(), strict=True):
            self._by_layer[row.layer].append(parameter)
        return self._model

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Keep the examples that judgements are made on.

        Raises:
            DataError: when there is none.
        """
        config: Any = self.config
        pad = self.context.architecture.pad_token or 0
        self._groups = kept_groups(batches, GROUPS, config.samples, pad, progress)

    def drawn(self, step: int) -> list[int]:
        """The layers that step `step` updates, by the importance there is now."""
        config: Any = self.config
        return self._draw(self.importance, config.share, [step, 0])[0]

    def _draw(self, importance: np.ndarray, share: float, key: Sequence[int], sets: int = 1) -> list[list[int]]:
        """Different sets of layers, drawn without replacement and by importance."""
        rng = np.random.Generator(np.random.PCG64([self.context.method_seed, *key]))
        weights = 1 / (1 + np.exp(-importance))
        found: list[list[int]] = []
        while len(found) < self._different(share, sets):
            places = rng.choice(len(self.layers), self._count(share), replace=False, p=weights / weights.sum())
            layers = sorted(self.layers[place] for place in places)
            if layers not in found:
                found.append(layers)
        return found

    def _count(self, share: float) -> int:
        """Layers in a set."""
        return max(1, int(share * len(self.layers)))

    def _different(self, share: float, sets: int) -> int:
        """As many sets as asked for, or as there are different ones."""
        return min(sets, math.comb(len(self.layers), self._count(share)))

    def before_step(self, step: int) -> None:
        """Drop the gradients of the layers that were not drawn; AdamW leaves what has none alone."""
        drawn = self.drawn(step)
        for layer, parameters in self._by_layer.items():
            if layer not in drawn:
                for parameter in parameters:
                    parameter.grad = None

    def after_step(self, step: int) -> None:
        """Judge the layers' importance when it is time."""
        config: Any = self.config
        done = step + 1
        if done % config.interval == 0 and done < self.context.steps:
            self._judge(done)

    def _judge(self, done: int) -> None:
        """Compare sets of suppressed layers by the loss without them.

        Raises:
            Diverged: when a loss is not finite.
        """
        config: Any = self.config
        sets = self._draw(-self.importance, config.suppressed, [done, 1], config.candidates)
        batch = self._groups[done // config.interval % len(self._groups)]
        losses = np.array([self._loss_without(layers, batch) for layers in sets])
        if not np.isfinite(losses).all():
            raise Diverged(f"The loss of a judgement after step {done} is not finite.", "Lower the learning rate.")
        rewards = np.exp(-losses)
        likely = 1 / (1 + np.exp(self.importance))
        for layers, reward in zip(sets, rewards - rewards.mean(), strict=True):
            chosen = np.isin(self.layers, layers)
            self.importance -= chosen * config.rate * reward * likely * (1 - likely)
        self.importance = self.importance.clip(-_SURE, _SURE)

    def _loss_without(self, layers: Sequence[int], batch: dict[str, torch.Tensor]) -> float:
        """The loss of a batch while the adapters of some layers are turned down."""
        import torch

        was_training = self._model.training
        self._model.eval()
        with torch.no_grad(), self._suppressed(layers):
            loss = float(self._model(**batch).loss)
        self._model.train(was_training)
        return loss

    @contextmanager
    def _suppressed(self, layers: Sequence[int]) -> Iterator[None]:
        config: Any = self.config
        rows = self.targets_of(self.context.architecture, config)
        modules = [self._layers[row.name] for row in rows if row.layer in layers]
        scales = [module.scaling[ADAPTER] for module in modules]
        try:
            for module, scale in zip(modules, scales, strict=True):
                module.scaling[ADAPTER] = scale * config.suppression
            yield
        finally:
            for module, scale in zip(modules, scales, strict=True):
                module.scaling[ADAPTER] = scale

    # --- observation -----------------------------------------------------------------------

    def findings(self) -> dict[str, Any]:
        """What importance is about, and what each judgement rests on."""
        config: Any = self.config
        judged = {
            "layers": self.layers,
            "interval": config.interval,
            "drawn": self._count(config.share),
            "suppressed": self._count(config.suppressed),
            "sets": self._different(config.suppressed, config.candidates),
            "examples": [len(group["labels"]) for group in self._groups],
        }
        return {"importance": judged}

    def importance_now(self) -> np.ndarray | None:
        return self.importance

    # --- state ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The importance, and the examples it is judged on."""
        import torch

        return {"importance": torch.from_numpy(self.importance.copy()), **to_state(self._groups)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.importance = state["importance"].cpu().numpy().copy()
        self._groups = from_state(state, self.context.device)
