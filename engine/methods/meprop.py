"""meProp: full fine-tuning whose backward pass follows only the strongest outputs of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.methods._tensors import WholeTensors
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture, Parameter

if TYPE_CHECKING:
    import torch
    from torch import nn


class MePropConfig(MethodConfig):
    """Settings of meProp."""

    share: float = Field(
        0.05,
        gt=0,
        le=1,
        title="Share of outputs",
        description="Which share of a layer's outputs keeps its gradient: the largest; at least one.",
        json_schema_extra={"source": "authors' code: fewer than 5 % suffice on their tasks"},
    )
    scope: Literal["token", "batch"] = Field(
        "token",
        title="Chosen for",
        description=(
            "token: each token's own largest. batch: the same outputs for all tokens of the batch, by the sum of their "
            "gradients' sizes, so that whole rows of a matrix get no gradient."
        ),
        json_schema_extra={"source": "authors' code, which has both"},
    )


@register
class MeProp(WholeTensors):
    r"""Goes forward as always, and backward only through the outputs that matter most.

    ### Why it exists

    Of the gradient that reaches the outputs of a layer, a few entries are large and most are next to
    nothing. meProp keeps the largest and drops the rest before it goes on: to the layer's weights, and
    to the layer below. Its authors cut the cost of a backward pass in this way, and found that the
    models became no worse, some of them better: small gradients are mostly noise.

    ### What to watch

    It is full fine-tuning but for the cut. Compare its curves with those of full fine-tuning while you
    lower the share. GMT cuts the gradients of the weights once they are complete; here the cut is on
    the way, so that lower layers hear only what the layers above let through.

    ### When it fails

    With a very small share in a deep model: every layer cuts again, and little arrives at the bottom.
    It saves no memory and no parameters, and with plain matrix products no time either. AdamW keeps
    moving a weight that had a gradient before, also in steps in which it has none.
    """

    name = "meprop"
    title = "meProp"
    family = "selective"
    paper = Paper(
        title="meProp: Sparsified Back Propagation for Accelerated Deep Learning with Reduced Overfitting",
        authors="Sun, Ren, Ma, Wang",
        venue="ICML 2017",
        year=2017,
        url="https://arxiv.org/abs/1706.06197",
    )
    formula = (
        r"\hat{g} = \mathrm{top}_k(g), \qquad \nabla_W L = \hat{g}\, x^{\top}, \qquad \nabla_x L = W^{\top} \hat{g}"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"g": "gradient of the outputs of a linear layer",
        r"\mathrm{top}_k": "keeps the k largest by size and sets the others to 0",
        r"W, x": "weights and inputs of the layer",
    }
    lr = LearningRate(1e-4, f"best of 3e-5, 1e-4, 3e-4, 1e-3 and 3e-3 by {TUNED_BY}, own settings")
    notes = (
        "Cut are the linear layers of the blocks; the authors' models were small and trained from scratch. In their "
        "code biases get the whole gradient, here the cut one, as if a bias were one more input. They name a number of "
        "outputs, here a share does, as layers differ in width. Everything can move, so the budget counts everything. "
        "The arithmetic is that of dense products: what is cut is multiplied as zeros."
    )
    Config: ClassVar[type[MethodConfig]] = MePropConfig
    views: ClassVar[tuple[str, ...]] = ("change", "bias")

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        self._hooks: list[Any] = []

    @classmethod
    def trainables(cls, architecture: Architecture, config: Any) -> tuple[Parameter, ...]:
        return architecture.backbone

    def attach(self, model: nn.Module) -> nn.Module:
        """Have the outputs of the linear layers cut their gradients."""
        model = super().attach(model)
        for row in self.context.architecture.linears():
            self._hooks.append(model.get_submodule(row.module).register_forward_hook(self._watch))
        return model

    def _watch(self, module: nn.Module, given: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._cut)

    def _cut(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a layer's outputs (..., outputs) with all but the largest set to 0."""
        import torch

        config: Any = self.config
        strength = gradient.abs()
        if config.scope == "batch":
            strength = strength.flatten(0, -2).sum(0, keepdim=True)
        chosen = strength.topk(max(1, round(config.share * gradient.shape[-1])), dim=-1).indices
        kept = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, chosen, True)
        return gradient.masked_fill(~kept, 0.0)

    def merged(self, model: nn.Module) -> nn.Module:
        """The model without the hooks."""
        for hook in self._hooks:
            hook.remove()
        return model
