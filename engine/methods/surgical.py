"""Surgical fine-tuning: train the layers with the largest Fisher information, and leave the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.methods._active import ActiveBlocks, BlockConfig, block, layers_field, outside, outside_field
from engine.methods._scored import ScoringConfig, add_up, scored
from engine.methods.contract import TUNED_BY, Batches, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn


class SurgicalConfig(ScoringConfig, BlockConfig):
    """Settings of surgical fine-tuning."""

    samples: int = Field(
        100,
        ge=1,
        le=16_384,
        title="Scored examples",
        description="Training examples whose gradients are measured, one by one, before the first step.",
        json_schema_extra={"source": "authors' code"},
    )
    layers: int = layers_field(
        1, "How many layers are trained: those with the highest scores.", "this lab; the authors freeze 7 to 12 of 12"
    )
    outside: bool = outside_field(False, "this lab: embeddings are half of a small model")


@register
class Surgical(ActiveBlocks):
    r"""Trains whole layers: those in which the task's gradients are largest, and no others.

    ### Why it exists

    Not every layer has to change for every task. The diagonal of the Fisher information says how
    much the answer reacts to each weight; added up over a layer it gives one number per layer. The
    layers with the highest numbers train, the others stay. A hundred examples are enough to rank a
    dozen layers, and the ranking hardly changes while the model trains.

    ### What to watch

    The view of scores has one number per layer, and those that train. Ask how far the chosen layers
    stand out, whether another seed's head chooses the same ones, and how well a single layer does
    against all of them. In the view of magnitude and direction their rows move and no others.

    ### When it fails

    A layer is a coarse unit: within a chosen one everything trains, needed or not. The scores depend
    on a head that is still random. And a layer's score says how much the answer reacts to it, not
    how much there is to gain.
    """

    name = "surgical"
    title = "Surgical fine-tuning"
    paper = Paper(
        title="On Surgical Fine-tuning for Language Encoders",
        authors="Lodha et al.",
        venue="Findings of EMNLP 2023",
        year=2023,
        url="https://arxiv.org/abs/2310.17041",
    )
    formula = r"s_l = \sum_{W \in l} \Big\| \sum_{i=1}^{n} \big( \nabla_W \log p(y_i \mid x_i) \big)^{2} \Big\|_F"
    symbols: ClassVar[dict[str, str]] = {
        r"s_l": "score of layer l; the layers with the highest train",
        r"W": "a tensor of the layer",
        r"(x_i, y_i)": "a training example and its label",
        r"n": "scored examples",
        r"\|\cdot\|_F": "root of the sum of squares",
    }
    lr = LearningRate(1e-3, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "The paper's intention. The released code scores the same first example in every round, takes the gradient of "
        "a logit where the paper has the log-likelihood, and passes no attention mask; here each example counts once "
        "and properly. There embeddings and pooler always train; here they do so only when asked, since in a small "
        "model they outweigh the layers."
    )
    Config: ClassVar[type[MethodConfig]] = SurgicalConfig
    views: ClassVar[tuple[str, ...]] = ("scores", *ActiveBlocks.views)
    scores_first = True

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._findings: dict[str, Any] = {}

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Measure every layer's Fisher information, and make the best layers trainable.

        Raises:
            DataError: when there is no example to score.
        """
        import torch

        from engine.sparse.scores import add_squares

        config: Any = self.config
        tensors = list(self._tensors.values())
        examples = 0

        def add(batch: dict[str, torch.Tensor], totals: list[torch.Tensor]) -> None:
            nonlocal examples
            examples += 1
            add_squares(totals, torch.autograd.grad(model(**batch).loss, tensors, allow_unused=True))

        fisher = add_up(model, tensors, batches, config.samples, progress, add)
        norms = {name: float(total.norm()) for name, total in zip(self._tensors, fisher, strict=True)}
        scores = self._scores(norms)
        best = sorted(scores, key=lambda layer: (-scores[layer], layer))[: config.layers]
        places = {(layer, 0): score for layer, score in scores.items()}
        what = "score: Fisher information of the layer"
        self._findings = scored("layer", what, places, [(layer, 0) for layer in best], examples, 0)
        self.activate(self._names(best))

    def findings(self) -> dict[str, Any]:
        """The score of every layer."""
        return self._findings

    def _scores(self, norms: dict[str, float]) -> dict[int, float]:
        """Score of each layer, by the norms of its tensors' Fisher information."""
        architecture = self.context.architecture
        return {
            layer: sum(norms[row.name] for row in block(architecture, layer)) for layer in range(architecture.layers)
        }

    def _names(self, layers: list[int]) -> set[str]:
        """Names of the tensors to train when these layers do."""
        config: Any = self.config
        architecture = self.context.architecture
        rows = [row for layer in layers for row in block(architecture, layer)]
        return {row.name for row in (*rows, *(outside(architecture) if config.outside else ()))}
