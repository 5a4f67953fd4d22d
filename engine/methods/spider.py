"""SPIDER: full fine-tuning that gives back what matters more to pretraining than to the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


@register
class Spider(WholeTensors):
    r"""Trains every weight, then pulls each back by as much as it matters more to the old than to the new.

    ### Why it exists

    Fine-tuning for one task makes a model worse at what it could do before. SPIDER asks of every weight
    which of the two needs it more. For pretraining its size speaks: large weights carry much. For the
    task the sum of its gradients speaks: where all batches pull the same way, the task wants something.
    Both are compared within their tensor. Where the task matters more, the weight may move, the freer
    the more; everywhere else it is set back to its pretrained value after every step.

    ### What to watch

    The finished run says how many weights differ from the base. Compare the change of its matrices
    with that of full fine-tuning: smaller, and gone from large weights. ID3 looks at the same two
    things, magnitude and gradient, and selects k weights for good; here every weight is judged anew in
    every step, and may have to go back.

    ### When it fails

    When the task does need large weights to move. Its criterion knows no budget: about half of all
    weights may move, whatever you ask for. And remembering costs more than forgetting: it holds the
    pretrained weights, their importance and the sums of all gradients, beside what full fine-tuning
    holds.
    """

    name = "spider"
    title = "SPIDER"
    family = "selective"
    paper = Paper(
        title="Learn from Downstream and Be Yourself in Multimodal Large Language Models Fine-Tuning",
        authors="Huang, Liang, Shi, Zhu, Wan, Li, Du, Tao, Ye",
        venue="ICML 2025",
        year=2025,
        url="https://arxiv.org/abs/2411.10928",
    )
    formula = (
        r"I = \sigma\bigl(\mathrm{z}(|\theta_0|)\bigr), \quad "
        r"G_t = \sigma\Bigl(\mathrm{z}\bigl(\bigl|\textstyle\sum_{s \le t} g_s\bigr|\bigr)\Bigr), \quad "
        r"C_t = \Bigl[\tfrac{G_t}{I + G_t}\Bigr]_{I < G_t}, \quad "
        r"\theta \leftarrow \theta_0 + \min\bigl(1, C_t / \bar{C}_t\bigr)\,(\theta - \theta_0)"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"\theta_0": "pretrained weights",
        r"g_s": "gradient of step s, after clipping",
        r"\mathrm{z}": "minus the mean of the tensor, over its standard deviation",
        r"\sigma": "logistic function",
        r"I, G_t": "importance for pretraining, and for the task so far",
        r"C_t": "how much more the task needs a weight; 0 where it does not",
        r"\bar{C}_t": "mean of the entries of C that are not 0, tensor by tensor",
    }
    lr = LearningRate(1e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "As in the authors' code, where gradients are added up with their signs and the weights are pulled back after "
        "the optimizer's step, whose moments know nothing of it. There it is for language models that see; here it "
        "trains the backbone of a classifier, and the fresh head is left out, as it has no pretraining. A tensor "
        "whose entries are all alike, which would divide by zero, counts as equally important everywhere; one that is "
        "all zero as not at all. Everything may move, so the budget counts everything; a finished run says how many "
        "weights differ in the end."
    )
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    views: ClassVar[tuple[str, ...]] = ("change", "bias")
    steady = False

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._base: dict[str, torch.Tensor] = {}
        self._importance: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone

    def attach(self, model: nn.Module) -> nn.Module:
        """Remember the pretrained weights, and how important each is."""
        import torch

        model = super().attach(model)
        for name, tensor in self.parameters():
            self._base[name] = tensor.detach().clone()
            self._importance[name] = importance(self._base[name])
            self._sums[name] = torch.zeros_like(self._base[name])
        return model

    def after_step(self, step: int) -> None:
        """Add the gradients up, and pull the weights back by what that says."""
        import torch

        with torch.no_grad():
            for name, tensor in self.parameters():
                if tensor.grad is not None:
                    self._sums[name].add_(tensor.grad)
                tensor.copy_(torch.lerp(self._base[name], tensor, self.freedom(name)))

    def freedom(self, name: str) -> torch.Tensor:
        """How far each weight of a tensor may go from its pretrained value, from 0 to 1."""
        import torch

        old, new = self._importance[name], importance(self._sums[name])
        ahead = torch.where(old < new, new / (old + new).clamp(min=1e-30), 0.0)
        mean = ahead.sum() / (ahead != 0).sum().clamp(min=1)
        return (ahead / mean.clamp(min=1e-30)).clamp(max=1.0)

    def optimizer_scalars(self) -> int:
        """What it remembers: base, importance and sums."""
        return 3 * sum(tensor.numel() for tensor in self._base.values())

    def kept(self) -> int | None:
        """Weights that differ from the base."""
        return sum(int((tensor != self._base[name]).sum()) for name, tensor in self.parameters()) or None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The sums; the pretrained weights are there when it is attached."""
        return {f"sum.{name}": total for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, total in self._sums.items():
            total.copy_(state[f"sum.{name}"])


def importance(values: torch.Tensor) -> torch.Tensor:
    """Size of each entry of a tensor beside that of the others, from 0 to 1; 0 everywhere if all are 0."""
    import torch

    size = values.abs()
    spread = ((size - size.mean()).square().sum() / max(1, size.numel() - 1)).sqrt()
    ranked = torch.sigmoid((size - size.mean()) / spread.clamp(min=1e-30))
    return torch.where(size.max() > 0, ranked, torch.zeros_like(ranked))
