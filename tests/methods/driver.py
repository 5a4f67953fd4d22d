"""A small training loop for oracles: the contract's order of hooks and the lab's recipe, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from engine.methods.contract import Context, Method
from tests.tiny import architecture_of, context_for, tiny_batch

Batch = dict[str, torch.Tensor]


def make(
    cls: type[Method],
    model: nn.Module,
    settings: dict[str, Any] | None = None,
    *,
    steps: int = 10,
    seed: int = 0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    on: Method | None = None,
    context: Context | None = None,
) -> Method:
    """A method for a model that has not been attached yet; `on` is the method it stands on.

    An outer method sees the rows of the inner one and the head, as in the plan.
    """
    made = context or replace(context_for(model, steps, seed, weight_decay), clip=clip)
    if on is not None:
        rows = on.trainables(on.context.architecture, on.config)
        made = replace(made, architecture=replace(made.architecture, parameters=(*rows, *made.architecture.head)))
    return cls(cls.Config.model_validate(settings or {}), made, on)


def batches_of(count: int, size: int = 4, length: int = 8, labels: int = 2) -> list[Batch]:
    """Different tiny batches, the same at every call."""
    return [tiny_batch(size, length, labels, seed=number) for number in range(count)]


class Training:
    """Trains one method on one model, step by step.

    Args:
        method: not attached yet; in a composition the outer one, which attaches the inner one.
        model: the plain model; it is changed in place.
        lr: peak learning rate.
        score_batches: single examples for `score_pass`; only for methods that score first.
        schedule: linear warm-up (6 %) and decay to 0 if true, else constant.
        loss_scale: factor on the loss.
        fused: take torch's fused AdamW, as the lab does; its last bits are its own.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        score_batches: Iterable[Batch] = (),
        schedule: bool = True,
        loss_scale: float = 1.0,
        fused: bool = False,
    ) -> None:
        names = {row.name for row in architecture_of(model).head}
        self.head = [parameter for name, parameter in model.named_parameters() if name in names]
        self.method, self.lr, self.schedule, self.step = method, lr, schedule, 0
        self.loss_scale = loss_scale
        self.model = method.attach(model)
        for parameter in self.head:
            parameter.requires_grad_(True)
        if method.scores_first:
            method.score_pass(self.model, score_batches, lambda done, total: None)
        self.dense = [*self.head, *(parameter for _, parameter in method.parameters())]
        self.optimizer = torch.optim.AdamW(self.dense, lr=lr, weight_decay=method.context.weight_decay, fused=fused)
        for name, parameter in method.streamed():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: method.on_gradient(name, p))
        self.losses: list[float] = []
        self.norms: list[float] = []

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if not self.schedule:
            return self.lr
        total = self.method.context.steps
        warm = max(1, round(0.06 * total))
        return self.lr * min((step + 1) / warm, (total - step) / max(1, total - warm + 1))

    def run(self, batches: Iterable[Batch]) -> Training:
        """One step per batch, going on from where the last call stopped."""
        self.model.train()
        for batch in batches:
            self._one(batch)
        return self

    def _one(self, batch: Batch) -> None:
        method, step, lr = self.method, self.step, self.lr_at(self.step)
        loss = self._backward(step, batch)
        method.before_step(step)
        scale = self._clip()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        method.update(lr, scale)
        method.after_step(step)
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))
        self.step += 1

    def _backward(self, step: int, batch: Batch) -> torch.Tensor:
        """Gradients, or what a method without them does instead; returns the loss."""
        if not self.method.differentiates:
            return self._estimated(step, batch)
        loss: torch.Tensor = self.loss_scale * self.model(**batch).loss
        extra = self.method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        return loss

    @torch.no_grad()
    def _estimated(self, step: int, batch: Batch) -> torch.Tensor:
        losses: list[torch.Tensor] = []

        def loss_of() -> torch.Tensor:
            losses.append(self.loss_scale * self.model(**batch).loss)
            return losses[-1]

        self.method.estimate(step, loss_of)
        return torch.stack(losses).mean()

    def _clip(self) -> torch.Tensor:
        """Scale the dense gradients by the common clip factor, and return it for the method's own."""
        squares = [p.grad.square().sum() for p in self.dense if p.grad is not None]
        own = self.method.gradient_square()
        norm = torch.stack([*squares, *([] if own is None else [own])]).sum().sqrt()
        scale = torch.clamp(self.method.context.clip / (norm + 1e-6), max=1.0)
        for parameter in self.dense:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        self.norms.append(float(norm))
        return scale

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: copies, as if read back from disk."""
        return {
            "step": self.step,
            "dense": [parameter.detach().clone() for parameter in self.dense],
            "optimizer": _copy(self.optimizer.state_dict()),
            "method": _copy(self.method.state_dict()),
        }

    def load(self, state: dict[str, Any]) -> Training:
        """Go on from a checkpoint, on a fresh training of the same method and model."""
        self.step = state["step"]
        with torch.no_grad():
            for parameter, value in zip(self.dense, state["dense"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(_copy(state["optimizer"]))
        self.method.load_state_dict(_copy(state["method"]))
        return self


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
