"""Full fine-tuning: every weight of the backbone is trained."""

from __future__ import annotations

from typing import Any, ClassVar

from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, TUNED_ON_NANO, LearningRate, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter


@register
class FullFineTuning(WholeTensors):
    r"""Trains every weight of the pretrained model on the new task.

    ### Why it exists

    It is the plain way to adapt a pretrained model and the yardstick for all others: nothing is
    held back, so a method that trains less can at best save memory, storage or overfitting. Its
    price is what the others try to avoid: a gradient and two optimizer moments for every weight,
    and a whole new model to store for every task.

    ### What to watch

    The weights move very little. In the view of magnitude and direction, most matrices turn by a
    small angle and hardly change their length; layers near the output usually move most. Compare
    where it moves most with what a mask or a rank allocation chooses elsewhere.

    ### When it fails

    With few examples it can memorise them while validation accuracy falls. With a learning rate
    that suits a small adapter it forgets what pretraining taught: its rate has to be ten to a
    hundred times lower. And it needs about four times the model's own size in memory.
    """

    name = "full"
    title = "Full fine-tuning"
    family = "baseline"
    paper = Paper(
        title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        authors="Devlin, Chang, Lee, Toutanova",
        venue="NAACL 2019",
        year=2019,
        url="https://arxiv.org/abs/1810.04805",
    )
    formula = r"\theta_{t+1} = \theta_t - \eta_t \, \mathrm{AdamW}\!\left(\nabla_\theta L(\theta_t)\right)"
    symbols: ClassVar[dict[str, str]] = {
        r"\theta": "all weights of the backbone, embeddings and pooler included",
        r"L": "cross-entropy of the batch",
        r"\eta_t": "learning rate at step t: warm-up, then linear decay",
        r"\mathrm{AdamW}": "the gradient divided by its running size, with momentum",
    }
    lr = LearningRate(
        5e-5,
        f"best of 2e-5, 5e-5, 1e-4 and 2e-4 by {TUNED_BY}",
        {"nano-bert": LearningRate(1e-4, TUNED_ON_NANO)},
    )
    notes = (
        "The pooler is trained, as part of the backbone; the task head is counted apart. Rows of the embeddings that "
        "no example reaches get no gradient and stay as they are unless weight decay is on."
    )

    views: ClassVar[tuple[str, ...]] = ("change", "bias")

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone
