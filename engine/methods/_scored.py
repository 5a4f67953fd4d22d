"""What methods share that rank weights by gradients of single examples, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import DataError
from engine.methods._static import StaticMask
from engine.methods.contract import Batches, MethodConfig
from engine.methods.observed import Choice

if TYPE_CHECKING:
    import torch
    from torch import nn


class ScoringConfig(MethodConfig):
    """Settings of the scoring phase."""

    samples: int = Field(
        256,
        ge=1,
        le=16_384,
        title="Scored examples",
        description="Training examples whose gradients are measured, one by one, before the first step.",
        json_schema_extra={"source": "this lab; the authors of FISH use 1,024 on GLUE, 256 elsewhere"},
    )


class GradientScored(StaticMask):
    """Adds something up per weight over single examples, in evaluation mode, and chooses by the sums.

    A subclass says what is added (`add_example`) and what follows (`choose_by`). Its settings have
    ``samples``.
    """

    scores_first: ClassVar[bool] = True
    _choice: Choice | None = None

    @classmethod
    def warnings(cls, architecture: Any, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        zeros = cls.zeros_at_start(architecture, config)
        if zeros and cls.on_lora_alone(architecture, config):
            found.append(
                f"While LoRA's B is zero, A has no gradient: of the mask, up to {zeros:,} entries lie in B and the "
                "rest means nothing."
            )
        return found

    def score_pass(self, model: nn.Module, batches: Batches, progress: Callable[[int, int], None]) -> None:
        """Look at the examples one by one, and select.

        Raises:
            DataError: when there is no example to score.
        """
        import torch

        config: Any = self.config
        draws = torch.Generator().manual_seed(self.context.method_seed)
        examples = 0

        def add(batch: dict[str, torch.Tensor], totals: list[torch.Tensor]) -> None:
            nonlocal examples
            examples += 1
            self.add_example(model, batch, totals, draws)

        totals = add_up(model, self._tensors, batches, config.samples, progress, add)
        self.choose_by(totals)
        self._choice = self._seen(totals, examples)

    def squares(self) -> bool:
        """Whether what is added up are squares of gradients, and not the gradients with their signs."""
        return False

    def choice(self) -> Choice | None:
        return self._choice

    def _seen(self, totals: list[torch.Tensor], examples: int) -> Choice:
        """All eligible and all chosen weights by value and gradient, before anything is trained."""
        import torch

        from engine.sparse.plane import PlaneCounts, lowest_score

        device = totals[0].device if totals else torch.device("cpu")
        every, chosen, lowest, line = PlaneCounts(device), PlaneCounts(device), [], self.boundary()
        for number, total in enumerate(totals):
            mean = total.clamp(min=0).div_(examples).sqrt_() if self.squares() else total.abs().div_(examples)
            weight = self._tensors[number].detach().reshape(-1).float()
            every.add(weight, mean)
            if (index := self.sparse.selected(number)) is not None:
                chosen.add(weight[index], mean[index])
                if line is not None:
                    lowest.append(lowest_score(weight[index], mean[index], line.power, line.exp, line.eps))
        table = chosen.table()
        threshold = min(lowest) if lowest else None
        return Choice(every.table() - table, table, threshold, examples, self.squares())

    def add_example(
        self, model: nn.Module, batch: dict[str, torch.Tensor], totals: list[torch.Tensor], draws: torch.Generator
    ) -> None:
        """Add the gradient of one example's loss, sign and all, to `totals`, fp32 and flat per tensor."""
        import torch

        from engine.sparse.scores import add_gradients

        gradients = torch.autograd.grad(model(**batch).loss, self._tensors, allow_unused=True)
        add_gradients(totals, gradients)

    def choose_by(self, totals: list[torch.Tensor]) -> None:
        """Select by what was added up."""
        raise NotImplementedError(type(self).__name__)


def add_up(
    model: nn.Module,
    tensors: Sequence[nn.Parameter],
    batches: Batches,
    samples: int,
    progress: Callable[[int, int], None],
    add: Callable[[dict[str, torch.Tensor], list[torch.Tensor]], None],
) -> list[torch.Tensor]:
    """What `add` has added over single examples, in evaluation mode: fp32, flat, one sum per tensor.

    Raises:
        DataError: when there is no example.
    """
    import torch

    totals = [torch.zeros(tensor.numel(), device=tensor.device) for tensor in tensors]
    was_training = model.training
    model.eval()
    done = 0
    for batch in islice(batches, samples):
        add(dict(batch), totals)
        done += 1
        progress(done, samples)
    model.train(was_training)
    if not done:
        raise DataError("There is no training example to score.", "Use a larger dataset.")
    return totals


Place = tuple[int, int]
"""Layer and, within it, which part."""


def scored(
    unit: str, what: str, scores: Mapping[Place, float], chosen: Collection[Place], examples: int, step: int
) -> dict[str, Any]:
    """The finding that the view of scores shows: plain JSON data.

    Args:
        unit: of which one is chosen or not: ``head`` or ``layer``.
        what: was measured, in words.
        scores: of each place; a layer as a whole is its part 0.
        chosen: places that train.
        examples: that a score rests on.
        step: steps done when it was measured.
    """
    rows = [[layer, part, score, (layer, part) in chosen] for (layer, part), score in sorted(scores.items())]
    return {"scores": {"unit": unit, "what": what, "rows": rows, "examples": examples, "step": step}}
