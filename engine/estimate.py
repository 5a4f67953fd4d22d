"""Estimates shown before launch, always marked as such: memory and time.

Time comes from the arithmetic of a step and the rate that runs of a model of the same size reached
on this machine, kept in ``speed.json``; before the first, from a cautious rate per core.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.models.architecture import Architecture

CPU_FLOPS_PER_THREAD = 25e9
GPU_FLOPS = 8e12
STEP_SECONDS = 0.01
"""What a step costs whatever the size of its arithmetic, before any run was measured."""
KEPT_LENGTH = 128
"""On the CPU, attention's shares of up to so many tokens are kept for the backward pass; else computed again."""
GPU_EVAL_BATCH = 512
"""Examples that a GPU evaluates at once: it waits for launches rather than for arithmetic."""
GPU_WORKSPACE_BYTES = 132 * 2**20
"""What the matrix library keeps beside all tensors: 32 MiB for each stream of a run, measured on Hopper cards."""
PROCESS_BYTES = 550 * 2**20
"""A process with torch, transformers and peft imported, before any model."""


@dataclass(frozen=True)
class Workload:
    """What one run computes.

    Attributes:
        architecture: the model.
        trainable: scalars with a gradient and two moments, unless nothing is differentiated.
        dense_gradients: scalars whose gradient is formed at once in the backward pass.
        differentiates: whether there is a backward pass; otherwise every step is two forward passes.
        tokens_per_step: padded tokens of a batch.
        longest: padded length of the longest batch.
        batch_size, steps: of the training.
        evaluated_tokens: tokens of all evaluations together.
        evaluated_at_once: padded tokens of the largest batch that a GPU evaluates.
    """

    architecture: Architecture
    trainable: int
    dense_gradients: int
    differentiates: bool
    tokens_per_step: float
    longest: int
    batch_size: int
    steps: int
    evaluated_tokens: float
    evaluated_at_once: int

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run, attention's products left out."""
        weights = sum(p.size for p in self.architecture.linears())
        # Forward and input gradients cost two operations a weight and token each; weight
        # gradients as much again for the weights that have one. Two forward passes cost the same four.
        per_token = 4 * weights + 2 * min(self.dense_gradients, weights)
        return per_token * self.tokens_per_step * self.steps + 2 * weights * self.evaluated_tokens


def padded_lengths(lengths: Sequence[int] | np.ndarray, batch_size: int) -> np.ndarray:
    """Longest of each batch when examples are taken in order; what padding makes of them."""
    lengths = np.asarray(lengths)
    starts = range(0, len(lengths), batch_size)
    return np.array([lengths[start : start + batch_size].max() for start in starts])


def largest_batch(lengths: Sequence[int] | np.ndarray, count: int) -> int:
    """Padded tokens of the largest batch, when a GPU evaluates `count` examples of such lengths, shortest first."""
    spread = np.linspace(0, len(lengths) - 1, count).round().astype(int)
    padded = padded_lengths(np.sort(lengths)[spread], GPU_EVAL_BATCH)
    sizes = [min(GPU_EVAL_BATCH, count - start) for start in range(0, count, GPU_EVAL_BATCH)]
    return int((padded * sizes).max())


def memory_parts(work: Workload, device: str) -> dict[str, int]:
    """Peak memory in bytes by what holds it: process, weights, gradients, optimizer, activations."""
    total = sum(p.size for p in work.architecture.parameters)
    kept, passing = _states(work.architecture)
    activations = 4 * work.architecture.layers * kept * work.longest * work.batch_size
    shares = 4 * work.architecture.heads * work.longest**2 * work.batch_size
    if not work.differentiates:  # one layer at a time, and none of it is kept
        activations //= max(1, work.architecture.layers)
    gradients = 4 * work.dense_gradients if work.differentiates else 0
    if device == "cpu":
        layers = work.architecture.layers if work.longest <= KEPT_LENGTH and work.differentiates else 2
        activations += layers * shares
    else:  # gradients are gone when an evaluation keeps one layer's states of many examples
        evaluating = 4 * work.evaluated_at_once * passing
        activations = max(activations, evaluating - gradients) + GPU_WORKSPACE_BYTES
    return {
        "process": PROCESS_BYTES if device == "cpu" else 0,
        "weights": 4 * total * (2 if device == "cpu" else 1),  # on the CPU the base model is kept beside it
        "gradients": gradients,
        "optimizer": 8 * work.trainable if work.differentiates else 0,
        "activations": activations,
    }


def _states(architecture: Architecture) -> tuple[int, int]:
    """Numbers that a layer holds for each token: for the backward pass, and at once where there is none.

    A gated layer holds the gate before and after its activation, what it opens, and the product; its norms keep
    their inputs and what they made of them.
    """
    linears = architecture.linears()
    hidden, widest = architecture.hidden, max((p.shape[0] for p in linears), default=architecture.hidden)
    if any(p.role == "gate" for p in linears):
        return 10 * hidden + 4 * widest, 5 * hidden + 4 * widest
    return 8 * hidden + 2 * widest, 3 * hidden + 2 * widest


def seconds(work: Workload, device: str, threads: int, home: Path) -> float:
    """Wall time of training and evaluation, loading apart."""
    rate = _measured_rates(home).get(_place(work, device, threads))
    if rate is not None:
        return work.flops / rate
    rate = CPU_FLOPS_PER_THREAD * threads if device == "cpu" else GPU_FLOPS
    return work.flops / rate + work.steps * STEP_SECONDS


def record_speed(work: Workload, device: str, threads: int, measured_seconds: float, home: Path) -> None:
    """Remember the rate a finished run reached, averaged with earlier ones."""
    rates = _measured_rates(home)
    place = _place(work, device, threads)
    rate = work.flops / max(measured_seconds, 1e-3)
    rates[place] = rate if place not in rates else 0.5 * (rate + rates[place])
    path = home / "speed.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(rates), encoding="utf-8")
    temporary.replace(path)


def _place(work: Workload, device: str, threads: int) -> str:
    """What a rate holds for: small models spend most of a step outside arithmetic, large ones do not."""
    where = f"cpu x{threads}" if device == "cpu" else "cuda"
    return f"{where}, {work.architecture.layers} layers of {work.architecture.hidden}"


def _measured_rates(home: Path) -> dict[str, float]:
    try:
        data = json.loads((home / "speed.json").read_text(encoding="utf-8"))
        return {key: float(value) for key, value in data.items() if value > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # there is none, or it is damaged: the next run writes it anew
