"""How a training step's logits are computed, as the plan chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.training.build import Built
from engine.training.ragged import RaggedForward

Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def forward_of(built: Built) -> Forward:
    """From a padded batch without labels to logits (n, classes)."""
    if built.spec.train.execution == "ragged":
        return RaggedForward(built.model, built.setting.source.family)

    def padded(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = built.model(**batch).logits
        return logits

    return padded
