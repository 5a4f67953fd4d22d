"""Training examples that a method keeps from its scoring phase, to judge by or to probe with later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from engine.errors import DataError
from engine.methods.contract import Batches

if TYPE_CHECKING:
    import torch

PREFIX = "examples."


def kept(batches: Batches, count: int, progress: Callable[[int, int], None]) -> list[dict[str, torch.Tensor]]:
    """The first `count` single examples, or as many as there are.

    Raises:
        DataError: when there is none.
    """
    found = []
    for batch in islice(batches, count):
        found.append(dict(batch))
        progress(len(found), count)
    if not found:
        raise DataError("There is no training example to look at.", "Use a larger dataset.")
    return found


def kept_groups(
    batches: Batches, groups: int, each: int, pad: int, progress: Callable[[int, int], None]
) -> list[dict[str, torch.Tensor]]:
    """So many batches of `each` examples, kept like those of `kept`; the last may be smaller, or missing.

    Raises:
        DataError: when there is no example.
    """
    examples = kept(batches, groups * each, progress)
    return [together(examples[start : start + each], pad) for start in range(0, len(examples), each)]


def together(examples: Sequence[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """Single examples as one batch, padded on the right to the longest.

    Args:
        examples: each with tensors (1, length), and labels (1,).
        pad: the padding token.
    """
    import torch
    from torch.nn import functional

    longest = max(example["input_ids"].shape[1] for example in examples)

    def column(key: str) -> torch.Tensor:
        fill = pad if key == "input_ids" else 0
        parts = [example[key] for example in examples]
        if key != "labels":
            parts = [functional.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts]
        return torch.cat(parts)

    return {key: column(key) for key in examples[0]}


def to_state(batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Examples or batches as a method's state holds them."""
    return {f"{PREFIX}{number}.{key}": tensor for number, batch in enumerate(batches) for key, tensor in batch.items()}


def from_state(state: Mapping[str, torch.Tensor], device: str) -> list[dict[str, torch.Tensor]]:
    """Inverse of `to_state`, on a device; whatever else the state holds is passed over."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        number, _, key = name.removeprefix(PREFIX).partition(".")
        if name.startswith(PREFIX):
            found.setdefault(int(number), {})[key] = tensor.to(device)
    return [found[number] for number in sorted(found)]
