"""LIFT: train the weights that are largest once a matrix is reduced to a low rank, and look again now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from engine.errors import Diverged, RunFailed
from engine.methods._matched import MatchesLora, rank_field
from engine.methods.contract import TUNED_BY, Context, LearningRate, Method, MethodConfig, Paper
from engine.methods.registry import register
from engine.models.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn


class LiftConfig(MethodConfig):
    """Settings of LIFT."""

    rank: int = rank_field("this lab; the authors' is 128")
    filter: int = Field(
        32,
        ge=1,
        le=4096,
        title="Rank to reduce to",
        description="How many singular directions of a matrix are kept before its entries are ranked.",
        json_schema_extra={"source": "the smallest in the authors' scripts"},
    )
    every: int = Field(
        200,
        ge=1,
        le=100_000,
        title="Steps between looks",
        description="After so many steps the matrices as they are then are reduced anew, and the mask is renewed.",
        json_schema_extra={"source": "authors' code"},
    )
    which: Literal["largest", "smallest"] = Field(
        "largest",
        title="Which weights",
        description="largest: the principal weights. smallest: what the released code selects in all its scripts.",
        json_schema_extra={"source": "paper", "level": "advanced"},
    )


@register
class LIFT(MatchesLora):
    r"""Trains the entries that carry a matrix's strongest directions, and renews the choice as training goes on.

    ### Why it exists

    The largest weights are a poor choice for fine-tuning, and the smallest are another. LIFT's authors
    found a third: reduce the matrix to its first few singular directions, and then take the largest
    entries of what is left. Noise has gone by then, and what is large belongs to something the model
    has learned. No data is needed for that. As the weights change the choice is made again.

    ### What to watch

    Put its mask beside those of largest and smallest magnitude: it shares entries with the first, but
    by far not all. Make the rank to reduce to as large as the matrix and it becomes the first. Rows and
    columns stand out in a matrix close up, because a few directions have few large coordinates.

    ### When it fails

    What leaves the mask keeps the value it was trained to. So each look adds to what differs from the
    base, and the file that a run leaves is larger than its budget. Decomposing every matrix takes long
    on a large model. And what is principal before training need not be what the task has to change.
    """

    name = "lift"
    title = "LIFT"
    paper = Paper(
        title="LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused "
        "Supervised Fine-Tuning",
        authors="Liu et al.",
        venue="ICML 2025",
        year=2025,
        url="https://arxiv.org/abs/2506.00772",
    )
    formula = (
        r"W_r = U_{:r}\, \Sigma_{:r}\, V_{:r}^{\top}, \qquad "
        r"S = \operatorname{top}_{R(m+n)} \bigl|(W_r)_{ij}\bigr|"
    )
    symbols: ClassVar[dict[str, str]] = {
        r"W_r": "the matrix with its r largest singular values alone",
        r"U, \Sigma, V": "singular value decomposition of the matrix as it is now",
        r"S": "the entries of the m by n matrix that train until the next look",
        r"R": "rank of the LoRA that has as many parameters",
    }
    lr = LearningRate(3e-3, f"best of 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 by {TUNED_BY}, own settings")
    notes = (
        "As in the paper the largest entries of the reduced matrix; every script of the released code asks for a mask "
        "type for which that code takes the smallest, which is a setting here. As in that code entries that stay keep "
        "their moments, newcomers start with none, and bias correction counts the run's steps. The budget counts what "
        "trains at a time; a finished run says how many weights differ in the end. AdamW's constants are the lab's."
    )
    Config: ClassVar[type[MethodConfig]] = LiftConfig
    grows = False
    packs = ""
    captured = "gradients"
    not_capturable = "Now and then it decomposes every matrix and changes what it trains."

    def __init__(self, config: MethodConfig, context: Context, inner: Method | None = None) -> None:
        super().__init__(config, context, inner)
        # Per matrix: entries that have left the mask and their steps of selection, int64 (n,) each.
        self._left: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def warnings(cls, architecture: Architecture, config: Any, steps: int) -> list[str]:
        found = super().warnings(architecture, config, steps)
        if all(min(row.shape) <= config.filter for row in architecture.linears()):
            found.append(
                f"No matrix here has a rank above {config.filter}: these are plainly the {config.which} weights."
            )
        if config.every >= steps:
            found.append(f"The mask is looked at again after {config.every:,} steps, and this run ends before that.")
        return found

    # --- the step ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> nn.Module:
        """Choose by the pretrained weights."""
        model = super().attach(model)
        self.choose(self.reduced, smallest=self.config.which == "smallest", quotas=self.quotas())  # type: ignore[attr-defined]
        return model

    def reduced(self, number: int) -> torch.Tensor:
        """Magnitudes of one matrix's entries after rank reduction, fp32 and flat.

        Raises:
            RunFailed: when its weights are not finite.
        """
        import torch

        config: Any = self.config
        matrix = self._tensors[number].detach().float()
        if config.filter >= min(matrix.shape):
            return matrix.abs().reshape(-1)
        if not bool(matrix.isfinite().all()):
            raise RunFailed(
                "A weight is not finite, so that its matrix cannot be decomposed.", "Lower the learning rate."
            )
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = slice(0, config.filter)
        return ((left[:, kept] * values[kept]) @ right[kept]).abs().reshape(-1)

    def after_step(self, step: int) -> None:
        """Look again, unless the run is over.

        Raises:
            Diverged: when a weight is not finite.
        """
        config: Any = self.config
        if (step + 1) % config.every == 0 and step + 1 < self.context.steps:
            try:
                self._renew(step + 1)
            except RunFailed as error:
                raise Diverged(error.what, error.todo) from None

    def _renew(self, step: int) -> None:
        """Give the places of what is no longer principal to what is now."""
        import torch

        from engine.sparse.selection import select_by_tensor

        config: Any = self.config
        sizes, smallest = [row.size for row in self.rows], config.which == "smallest"
        picks = select_by_tensor(self.reduced, sizes, self.quotas(), smallest=smallest)
        since = self.sparse.entries()["step"].long()
        free, coming = [], []
        for number in range(len(self.rows)):
            slots, index = self.sparse.slots(number), self.sparse.selected(number)
            assert slots is not None
            assert index is not None
            wanted = picks.index[picks.tensor == number]
            leaves = ~torch.isin(index, wanted)
            new = wanted[~torch.isin(wanted, index)]
            self._leave(number, index[leaves], since[slots[leaves]], new)
            free.append(slots[leaves])
            coming.append((torch.full_like(new, number), new))
        tensor, index = (torch.cat(column) for column in zip(*coming, strict=True))
        self.sparse.replace(torch.cat(free), tensor, index, step)

    def _leave(self, number: int, index: torch.Tensor, since: torch.Tensor, coming: torch.Tensor) -> None:
        """Remember what leaves the mask of a matrix, and forget what comes back."""
        import torch

        if number in self._left:
            old, when = self._left[number]
            stays = ~torch.isin(old, coming)
            index, since = torch.cat([old[stays], index]), torch.cat([when[stays], since])
        self._left[number] = index, since

    # --- observation and state -----------------------------------------------------------------

    def kept(self) -> int:
        """All that has ever been in the mask may differ from the base."""
        return self.sparse.count + sum(len(index) for index, _ in self._left.values())

    def result(self) -> dict[str, torch.Tensor]:
        """As of every sparse method, with what has left the mask among the rest."""
        import torch

        found = super().result()
        for number, (left, when) in self._left.items():
            name = self.rows[number].name
            index = torch.cat([found[f"{name}.index"], left.cpu().int()])
            order = index.argsort()
            values = self._tensors[number].detach().cpu().view(-1)
            steps = torch.cat([found[f"{name}.step"], when.cpu().int()])
            found[f"{name}.index"], found[f"{name}.step"] = index[order], steps[order]
            found[f"{name}.value"] = values[index[order].long()]
        return found

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = super().state_dict()
        for number, (index, since) in self._left.items():
            name, values = self.rows[number].name, self._tensors[number].detach().view(-1)
            state |= {f"left.{name}": index, f"since.{name}": since, f"value.{name}": values[index]}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        super().load_state_dict(state)
        self._left = {}
        for number, (row, tensor) in enumerate(zip(self.rows, self._tensors, strict=True)):
            if f"left.{row.name}" in state:
                index, since, value = (
                    state[f"{key}.{row.name}"].to(tensor.device) for key in ("left", "since", "value")
                )
                self._left[number] = index, since
                with torch.no_grad():
                    tensor.view(-1).index_copy_(0, index, value)
