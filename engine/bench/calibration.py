"""A short fixed CPU workload, timed beside every design target: how fast is this machine, here and now?

A target met or missed says little without it: the same machine has been seen at a fifth of its
speed. Compare only figures printed with about the same calibration.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

PRODUCTS = 12
STEPS = 6


@dataclass(frozen=True)
class Calibration:
    """Medians, in seconds.

    Attributes:
        product_seconds: one fp32 product of two 1024 x 1024 matrices (2.1 Gflop).
        step_seconds: one AdamW step of a 2-layer encoder of width 384 on 16 x 32 tokens.
        threads: that torch used.
    """

    product_seconds: float
    step_seconds: float
    threads: int

    @property
    def sentence(self) -> str:
        """The figures in plain words."""
        speed = 2 * 1024**3 / self.product_seconds / 1e9
        return (
            f"calibration: {1000 * self.product_seconds:.1f} ms per product ({speed:.0f} Gflop/s), "
            f"{1000 * self.step_seconds:.1f} ms per step, {self.threads} threads"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def calibrate() -> Calibration:
    """Time the workload with the threads that torch is set to; takes about two seconds."""
    import torch

    return Calibration(_products(), _steps(), torch.get_num_threads())


def _products() -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1024, 1024, generator=generator) for _ in range(2))
    return _median_seconds(lambda: torch.mm(first, second), PRODUCTS)


def _steps() -> float:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        batch = torch.randn(16, 32, 384)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return _median_seconds(step, STEPS)


def _median_seconds(work: Any, times: int) -> float:
    work()  # the first call allocates and chooses kernels
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return median(taken)


def main(argv: list[str]) -> int:
    """Print the calibration."""
    print(calibrate().sentence)
    return 0
