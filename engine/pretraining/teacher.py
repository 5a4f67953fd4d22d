"""Hidden states of MiniLM over the texts, computed once and kept in a file, since they never change.

Products are computed in bfloat16, as those of the student: twice as fast on a CPU that can.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from engine.models.catalogue import MINILM, resolve_model
from engine.pretraining.sequences import batches
from engine.tasks.encoding import Encoded

LAYERS = (3, 6)
"""The teacher's layers that are learned from; 6 is its last."""
SAY_SECONDS = 10.0
TOKENS = 2048
"""Padded tokens per batch: what a processor's cache holds."""


def teacher() -> Any:
    """MiniLM, frozen."""
    model = AutoModel.from_pretrained(
        resolve_model(MINILM).folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class States:
    """Hidden states of many sequences.

    Attributes:
        values: float16 (tokens, len(LAYERS), width), mapped from a file, sequences in the order of their computation.
        starts: int64 (n,), where each sequence begins.
        lengths: int64 (n,), tokens of each.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """The states of some sequences end to end, (tokens, len(LAYERS), width)."""
        return np.concatenate([self.values[self.starts[i] : self.starts[i] + self.lengths[i]] for i in chosen])


def states_of(encoded: Encoded, folder: Path, device: str, say: Callable[[str], None]) -> States:
    """The teacher's hidden states at every token, from the file when it was finished.

    Args:
        encoded: the texts.
        folder: where the file is kept.
        device: where the teacher runs.
        say: takes a line about progress.
    """
    model = teacher().to(device)
    shape = (len(encoded.input_ids), len(LAYERS), int(model.config.hidden_size))
    texts = hashlib.sha256(encoded.input_ids.tobytes()).hexdigest()[:12]
    values, starts = folder / f"teacher-{texts}.f16", folder / f"teacher-{texts}.npy"
    if not starts.exists():
        say(
            f"the teacher's states will take {2 * math.prod(shape) / 1e9:.1f} GB below {folder} until the model is made"
        )
        np.save(starts, _compute(model, encoded, values, device, say))
    return States(np.memmap(values, np.float16, "r", shape=shape), np.load(starts), encoded.lengths)


@torch.inference_mode()
def _compute(model: Any, encoded: Encoded, path: Path, device: str, say: Callable[[str], None]) -> np.ndarray:
    """Write all states, batch after batch, since scattered writes take as long as the teacher; returns the starts."""
    starts = np.zeros(len(encoded), dtype=np.int64)
    written = done = 0
    said = time.monotonic()
    order = batches(encoded.lengths, TOKENS, seed=0)
    with path.open("wb") as file:
        while done < len(encoded):
            chosen = next(order)
            batch = {key: torch.from_numpy(array).to(device) for key, array in encoded.batch(chosen).items()}
            batch.pop("labels")
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                hidden = model(**batch, output_hidden_states=True).hidden_states
            states = torch.stack([hidden[layer] for layer in LAYERS], 2)[batch["attention_mask"].bool()]
            file.write(states.half().cpu().numpy().tobytes())
            lengths = encoded.lengths[chosen]
            starts[chosen] = written + np.cumsum(lengths) - lengths
            written += int(lengths.sum())
            done += len(chosen)
            if time.monotonic() - said > SAY_SECONDS or done == len(encoded):
                said = time.monotonic()
                say(f"teacher: {done:,} of {len(encoded):,} sequences")
    return starts


def remove_states(folder: Path) -> None:
    """Delete what `states_of` keeps."""
    for path in [*folder.glob("teacher-*.f16"), *folder.glob("teacher-*.npy")]:
        path.unlink()
