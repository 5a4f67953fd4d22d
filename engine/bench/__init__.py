"""Measurements that the README reports: `python -m engine bench NAME`. Reference programs are frozen."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from engine.errors import UnknownName

BENCHMARKS = (
    "accuracy",
    "calibration",
    "language",
    "many",
    "memory",
    "probes",
    "pretraining",
    "selective",
    "start",
    "steps",
    "tune",
    "tuned",
)


def main(argv: Sequence[str]) -> int:
    """Run one benchmark by name with the rest of the command line.

    Raises:
        UnknownName: when there is no such benchmark, or none was named.
    """
    name, *rest = argv or [""]
    if name not in BENCHMARKS:
        raise UnknownName("benchmark", name, BENCHMARKS)
    status: int = importlib.import_module(f"engine.bench.{name}").main(rest)
    return status
