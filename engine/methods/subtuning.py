"""SubTuning: add layers to train one by one, always the one that a short trial says helps most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import DataError
from engine.methods._active import ActiveBlocks, BlockConfig, block, layers_field, outside
from engine.methods._examples import kept, together
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


class SubTuningConfig(BlockConfig):
    """Settings of SubTuning."""

    layers: int = layers_field(2, "How many layers are chosen.", "this lab; the authors stop when gains get small")
    samples: int = Field(
        128,
        ge=2,
        le=16_384,
        title="Examples of the trials",
        description="Training examples for the trials: one half trains, the loss on the other half decides.",
        json_schema_extra={"source": "this lab"},
    )
    trial_steps: int = Field(
        8,
        ge=1,
        le=1_000,
        title="Steps of a trial",
        description="How long each candidate is trained before it is judged.",
        json_schema_extra={"source": "this lab: the authors train to the end"},
    )
    trial_batch: int = Field(
        16,
        ge=1,
        le=1_024,
        title="Batch of a trial",
        description="Examples per step of a trial.",
        json_schema_extra={"source": "this lab", "level": "advanced"},
    )
    trial_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate of a trial",
        description="Of AdamW, constant, for the candidate layers and the head.",
        json_schema_extra={"source": "this lab", "level": "advanced"},
    )


@register
class SubTuning(ActiveBlocks):
    r"""Chooses layers greedily: try each one, keep the best, try each of the others beside it.

    ### Why it exists

    Which layers should train depends on the task, and no rule about depth is right for all. SubTuning
    asks the data. It trains every layer alone and looks at the result; the best one stays, and the
    search goes on with pairs, until there are enough. With few examples, a well-chosen layer or two
    did better than the whole model in its authors' tests.

    ### What to watch

    The trials: in each round, how far is the best layer from the next, and is that more than chance?
    Compare the chosen layers with what surgical fine-tuning takes at the same size: a large gradient
    and a large gain are not the same.

    ### When it fails

    The trials cost time: as many as there are layers, for each layer chosen. They are short here, so
    they favour layers that learn fast, and half a hundred examples cannot tell close candidates apart.
    A greedy search never takes back what it chose.
    """

    name = "subtuning"
    title = "SubTuning"
    paper = Paper(
        title="Less is More: Selective Layer Finetuning with SubTuning",
        authors="Kaplun, Gurevich, Swisa, David, Shalev-Shwartz, Malach",
        venue="arXiv",
        year=2023,
        url="https://arxiv.org/abs/2302.06354",
    )
    formula = r"S \leftarrow S \cup \{\arg\min_{l \notin S} L_{\mathrm{held}}(\theta^{S \cup \{l\}})\}"
    symbols: ClassVar[dict[str, str]] = {
        r"S": "layers chosen so far, none at the start",
        r"l": "a candidate layer",
        r"\theta^{S \cup \{l\}}": "weights after a short trial in which these layers and the head train",
        r"L_{\mathrm{held}}": "loss on examples that the trial did not train on",
    }
    lr = LearningRate(3e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "A reconstruction in small. The authors train each candidate to the end, compare accuracies by "
        "cross-validation, and stop when a layer adds too little; here a trial is a few steps on training examples set "
        "apart, the loss decides, which is finer than accuracy on so few, and the number of layers is given. All "
        "weights, the head included, are put back after each trial. The validation set takes no part."
    )
    Config: ClassVar[type[MethodConfig]] = SubTuningConfig
    views: ClassVar[tuple[str, ...]] = ("trials", *ActiveBlocks.views)
    scores_first = True

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self.profile: list[dict[int, float]] = []
        """Of each round the held-out loss by candidate layer."""
        self._each: dict[tuple[int, ...], np.ndarray] = {}
        """Losses of the single held-out examples, by the layers that trained."""
        self._halves = (0, 0)

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Search, and make the chosen layers trainable.

        Raises:
            DataError: when there are not two examples.
        """
        config: Any = self.config
        examples = kept(batches, config.samples, lambda done, total: None)
        if len(examples) < 2:
            raise DataError("One training example cannot be divided for trials.", "Use a larger dataset.")
        pad = self.context.architecture.pad_token or 0
        half, size = len(examples) // 2, config.trial_batch
        fit = [together(examples[start : min(start + size, half)], pad) for start in range(0, half, size)]
        held = together(examples[half:], pad)
        self._halves = (half, len(examples) - half)
        was_training = model.training
        model.eval()
        chosen = self._search(lambda layers: self._trial(model, layers, fit, held), progress)
        model.train(was_training)
        architecture = self.context.architecture
        rows = [row for layer in chosen for row in block(architecture, layer)]
        self.activate({row.name for row in (*rows, *(outside(architecture) if config.outside else ()))})

    def _search(self, trial: Callable[[Sequence[int]], float], progress: Callable[[int, int], None]) -> list[int]:
        """The greedy choice of layers by what `trial` gives for a set of them; the lower the better."""
        config: Any = self.config
        layers = self.context.architecture.layers
        rounds = min(config.layers, layers)
        done, total = 0, sum(layers - number for number in range(rounds))
        chosen: list[int] = []
        for _ in range(rounds):
            losses = {}
            for layer in range(layers):
                if layer not in chosen:
                    losses[layer] = trial([*chosen, layer])
                    done += 1
                    progress(done, total)
            self.profile.append(losses)
            chosen.append(_best(losses))
        return chosen

    def _trial(
        self, model: nn.Module, layers: Sequence[int], fit: list[dict[str, torch.Tensor]], held: dict[str, torch.Tensor]
    ) -> float:
        """Held-out loss after a few steps of these layers and the head; leaves all weights as they were."""
        import torch

        config: Any = self.config
        named = dict(model.named_parameters())
        architecture = self.context.architecture
        rows = [row for layer in layers for row in block(architecture, layer)]
        trained = [named[row.name] for row in (*rows, *architecture.head)]
        before = [tensor.detach().clone() for tensor in trained]
        optimizer = torch.optim.AdamW(trained, lr=config.trial_rate, weight_decay=0.0)
        for step in range(config.trial_steps):
            loss = model(**fit[step % len(fit)]).loss
            for tensor, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
                tensor.grad = gradient
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            out = model(**held)
            found = float(out.loss)
            each = torch.nn.functional.cross_entropy(out.logits.float(), held["labels"], reduction="none")
            self._each[tuple(layers)] = each.double().cpu().numpy()
            for tensor, value in zip(trained, before, strict=True):
                tensor.copy_(value)
        return found if math.isfinite(found) else math.inf

    # --- observation ---------------------------------------------------------------------

    def findings(self) -> dict[str, Any]:
        """Every trial's loss, and how far the chosen layer's lies below it on the same examples."""
        config: Any = self.config
        rounds: list[dict[str, Any]] = []
        for losses in self.profile:
            before = [done["chosen"] for done in rounds]
            best = _best(losses)
            trials = [
                {"layer": layer, "loss": loss, **self._behind((*before, layer), (*before, best))}
                for layer, loss in losses.items()
                if math.isfinite(loss)
            ]
            rounds.append({"chosen": best, "trials": trials, "failed": len(losses) - len(trials)})
        settings = {"steps": config.trial_steps, "batch": config.trial_batch, "rate": config.trial_rate}
        return {"trials": {**settings, "fit": self._halves[0], "held": self._halves[1], "rounds": rounds}}

    def _behind(self, layers: tuple[int, ...], best: tuple[int, ...]) -> dict[str, Any]:
        """Interval of the mean difference of two trials' losses; none of a trial and itself."""
        from engine.stats.intervals import mean_difference

        if layers == best:
            return {"behind": 0.0, "ci": None}
        found = mean_difference(self._each[layers], self._each[best])
        return {"behind": found.estimate, "ci": [found.low, found.high] if found.known else None}


def _best(losses: dict[int, float]) -> int:
    """The layer of the lowest loss, the lower one of several."""
    return min(losses, key=lambda layer: (losses[layer], layer))
