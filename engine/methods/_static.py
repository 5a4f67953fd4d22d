"""What methods share that choose all the single weights they train before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engine.methods._selective import Selective
from engine.methods.contract import Stacked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


class StaticMask(Selective):
    """Base of the methods that choose all their entries before the first step."""

    packs: ClassVar[Stacked] = "entries"

    def choose(
        self,
        scores: Callable[[int], torch.Tensor],
        *,
        smallest: bool = False,
        seed: int | None = None,
        quotas: Sequence[int] | None = None,
    ) -> None:
        """Select the k entries with the highest (or lowest) scores, rows that no example reaches left out.

        Args:
            scores: gives one tensor's scores by its number, fp32 and flat, not negative; may be overwritten.
            smallest: take the lowest instead.
            seed: breaks ties at random; None breaks them by the lowest tensor and index.
            quotas: how many in each tensor; None for one ranking over all of them.
        """
        from engine.sparse.selection import exclude, select, select_by_tensor

        def allowed(number: int) -> torch.Tensor:
            row = self.rows[number]
            return exclude(scores(number), row.frozen_rows, row.size // max(1, row.shape[0]))

        sizes = [row.size for row in self.rows]
        if quotas is None:
            picks = select(allowed, sizes, self.k, smallest=smallest, seed=seed)
        else:
            picks = select_by_tensor(allowed, sizes, quotas, smallest=smallest, seed=seed)
        self.fix(picks.tensor, picks.index)

    def choose_by_lot(self, quotas: Sequence[int] | None = None) -> None:
        """Select at random, by the seed of the method."""
        import torch

        def equal(number: int) -> torch.Tensor:
            return torch.zeros(self.rows[number].size, device=self._tensors[number].device)

        self.choose(equal, seed=self.context.method_seed, quotas=quotas)

    def equal_shares(self) -> list[int]:
        """k divided among the tensors in proportion to what may be selected in each."""
        from engine.sparse.selection import shares

        return shares([row.eligible for row in self.rows], self.k)

    def magnitudes(self, number: int) -> torch.Tensor:
        """Magnitudes of one tensor's weights, fp32 and flat."""
        from engine.sparse.scores import magnitude

        return magnitude(self._tensors[number])

    def fix(self, tensor: torch.Tensor, index: torch.Tensor) -> None:
        """Select these entries, int64 (k,) each, and freeze the tensors that hold none of them."""
        self.sparse.add(tensor, index, step=0)
        self._freeze_unused()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(state)
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        for number, tensor in enumerate(self._tensors):
            tensor.requires_grad_(self.sparse.selected(number) is not None)
