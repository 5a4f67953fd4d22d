"""The same training written with peft alone, as its documentation shows: what ours must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from tests.methods.driver import Batch


def train_plainly(
    base: nn.Module,
    config: Any,
    batches: list[Batch],
    *,
    lr: float,
    seed: int,
    after_step: Callable[[PeftModel, int], None] = lambda model, step: None,
) -> tuple[PeftModel, list[float]]:
    """Train at a constant rate without clipping; `after_step` gets the step, counted from 1."""
    torch.manual_seed(seed)
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches, start=1):
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        after_step(model, step)
        optimizer.zero_grad()
        losses.append(float(nn.functional.cross_entropy(outputs.logits.detach(), batch["labels"])))
    return model, losses
