"""Selective fine-tuning written plainly: dense gradients, boolean masks, torch's AdamW. No project code in it.

The lab's compact engine must select the same entries and reach the same weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Batch = dict[str, torch.Tensor]
Masks = list[torch.Tensor]


class Reference:
    """Trains masked weights and a dense head on a copy of the lab's recipe.

    Args:
        model: the plain model, changed in place.
        names: tensors that compete, in the order of ties.
        eligible: boolean mask per tensor.
        head: names of the dense tensors.
        choose: (step, flat gradients, flat weights, masks so far) to masks.
        clip_first: clip by the norm of all gradients, before masking.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        head: list[str],
        choose: Callable[[int, list[torch.Tensor], list[torch.Tensor], Masks], Masks],
        *,
        clip_first: bool,
        weight_decay: float,
        clip: float,
    ) -> None:
        named = dict(model.named_parameters())
        self.model = model
        self.tensors, self.head = [named[name] for name in names], [named[name] for name in head]
        for parameter in named.values():
            parameter.requires_grad_(False)
        for parameter in (*self.tensors, *self.head):
            parameter.requires_grad_(True)
        self.choose, self.clip_first, self.clip = choose, clip_first, clip
        self.masks: Masks = [torch.zeros(tensor.numel(), dtype=torch.bool) for tensor in self.tensors]
        self.optimizer = torch.optim.AdamW([*self.tensors, *self.head], lr=1.0, weight_decay=weight_decay)

    def step(self, number: int, batch: Batch, lr: float) -> None:
        """One step: choose, mask and clip in the order of the method, update, undo what is masked."""
        self.model(**batch).loss.backward()
        gradients = [tensor.grad.flatten().clone() for tensor in self.tensors]
        weights = [tensor.detach().flatten().clone() for tensor in self.tensors]
        if self.clip_first:
            nn.utils.clip_grad_norm_([*self.tensors, *self.head], self.clip)
        self.masks = self.choose(number, gradients, weights, self.masks)
        for tensor, mask in zip(self.tensors, self.masks, strict=True):
            tensor.grad.mul_(mask.view_as(tensor))
        if not self.clip_first:
            nn.utils.clip_grad_norm_([*self.tensors, *self.head], self.clip)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():  # dense weight decay has moved frozen weights too
            for tensor, mask, before in zip(self.tensors, self.masks, weights, strict=True):
                tensor.copy_(torch.where(mask, tensor.flatten(), before).view_as(tensor))


def top(scores: list[torch.Tensor], allowed: Masks, k: int, largest: bool = True) -> Masks:
    """The k best allowed entries over all tensors by sorting everything; ties go to the lowest index."""
    flat, free = torch.cat(scores).double(), torch.cat(allowed)
    flat = torch.where(free, flat if largest else -flat, float("-inf"))
    chosen = torch.zeros_like(free)
    chosen[flat.sort(descending=True, stable=True).indices[:k]] = True
    return list(chosen.split([len(scores_) for scores_ in scores]))


def static(masks: Masks) -> Callable[..., Masks]:
    """A mask fixed before training."""
    return lambda step, gradients, weights, now: masks


def smallest(weights: list[torch.Tensor], eligible: Masks, k: int) -> Masks:
    """PaFi: smallest magnitudes."""
    return top([weight.abs() for weight in weights], eligible, k, largest=False)


def fisher(model: nn.Module, tensors: list[nn.Parameter], examples: list[Batch]) -> list[torch.Tensor]:
    """FISH: squared gradients of single examples' losses, added up."""
    total = [torch.zeros(tensor.numel()) for tensor in tensors]
    for example in examples:
        model.zero_grad()
        model(**example).loss.backward()
        total = [sum_ + tensor.grad.flatten() ** 2 for sum_, tensor in zip(total, tensors, strict=True)]
    model.zero_grad()
    return total


def gradients(model: nn.Module, tensors: list[nn.Parameter], examples: list[Batch]) -> list[torch.Tensor]:
    """Gradients of single examples' losses, added up with their signs."""
    model.zero_grad()
    for example in examples:
        model(**example).loss.backward()
    total = [tensor.grad.flatten().clone() for tensor in tensors]
    model.zero_grad()
    return total


def increment(k: int, steps: int, eligible: Masks, p: float, exp: float, eps: float) -> Callable[..., Masks]:
    """ID3: at every step the best masked entries are added, the remainder of k / T in the first steps."""

    def choose(step: int, gradients: list[torch.Tensor], weights: list[torch.Tensor], now: Masks) -> Masks:
        count = k // steps + (step < k % steps) if step < steps else 0
        scores = [g.abs() ** p / (w.abs() + eps) ** exp for g, w in zip(gradients, weights, strict=True)]
        free = [may & ~already for may, already in zip(eligible, now, strict=True)]
        new = top(scores, free, count)
        return [old | add for old, add in zip(now, new, strict=True)]

    return choose
