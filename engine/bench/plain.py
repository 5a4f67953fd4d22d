"""Frozen opponent in speed: an eager training loop with plain PyTorch and peft, as their documentation shows it.

It shares no code with the project. Given the same model, batches and settings as a job of
`reference.py` it times the steps alone: the sentences are tokenised, and every batch padded to its
longest, before the clock starts::

    python engine/bench/plain.py JOB.json

The optimizer is torch's AdamW by its defaults, or fused with ``"fused": true``. ``loop`` in the job
is ``bare`` (batches lie on the device, losses are read at the end) or ``logged`` (batches come from a
DataLoader, and every loss is read as it is made).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import reference

Batch = dict[str, torch.Tensor]


def main(path: str) -> None:
    """Train the job and write seconds and losses."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high" if job["precision"] == "tf32" else "highest")
    device = torch.device(job["device"])
    tokenizer = reference.AutoTokenizer.from_pretrained(job["model"])
    examples = reference.read(Path(job["data"]) / "train.jsonl")
    model = reference.load_model(job).to(device)
    on_device = reference.make_collate(tokenizer, job, device)
    scored = [examples[i] for i in np.load(job["order"])]
    trainer = reference.make_trainer(model, job, scored, on_device)
    if job["fused"]:
        trainer.optimizer.param_groups[0]["fused"] = True
        trainer.optimizer.param_groups[0]["foreach"] = False
    trainer.model.train()
    chosen = [[examples[i] for i in indices] for indices in np.load(job["batches"])]
    if job["loop"] == "bare":
        batches = [on_device(part) for part in chosen]
    else:
        batches = [reference.make_collate(tokenizer, job, torch.device("cpu"))(part) for part in chosen]
    losses: list[Any] = []
    with torch.no_grad():  # neither side pays for its first forward pass
        trainer.model(**{key: value.to(device) for key, value in batches[0].items()})
    synchronize(device)
    started = time.perf_counter()
    for step, batch in enumerate(batches if job["loop"] == "bare" else loaded(batches, device)):
        loss = trainer.step(step, batch)
        losses.append(loss if job["loop"] == "bare" else loss.item())
    synchronize(device)
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "steps": len(batches), "losses": [float(loss) for loss in losses]}
    Path(job["out"] + ".json").write_text(json.dumps(found), encoding="utf-8")


def loaded(batches: list[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches through a DataLoader."""
    loader: Any = torch.utils.data.DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(sys.argv[1])
