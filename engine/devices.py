"""What this machine can compute on, found without importing torch."""

from __future__ import annotations

import ctypes
import functools
import os
from importlib import metadata

import psutil

from engine.errors import SpecError


@functools.cache
def cuda_devices() -> int:
    """Number of CUDA devices that the installed torch could use; 0 with a CPU build."""
    try:
        if "+cpu" in metadata.version("torch"):
            return 0
        driver = ctypes.CDLL("libcuda.so.1")
    except (metadata.PackageNotFoundError, OSError):
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def cpu_threads() -> int:
    """Threads for arithmetic: the physical cores this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical = psutil.cpu_count() or usable
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, usable * physical // logical)


def resolve_device(wanted: str) -> str:
    """``cpu`` or ``cuda:N`` for a spec's device.

    Raises:
        SpecError: for a CUDA device that is not there.
    """
    count = cuda_devices()
    if wanted == "auto":
        return "cuda:0" if count else "cpu"
    if wanted == "cpu":
        return "cpu"
    number = int(wanted.partition(":")[2] or 0)
    if number >= count:
        found = f"{count} CUDA device(s)" if count else "no CUDA device that the installed torch can use"
        raise SpecError(f"Device {wanted!r} was asked for, but there is {found}.", "Use `device: auto` or `cpu`.")
    return f"cuda:{number}"
