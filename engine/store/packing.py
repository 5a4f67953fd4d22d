"""Frames as bytes and back: small named arrays in the safetensors format, which runs no code when read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import load, save


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as one blob. The format stores raw memory, so each array is made contiguous first."""
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of `pack`, sorted by name."""
    return dict(sorted(load(blob).items()))
