"""Frozen opponent in speed: an eager training loop with plain PyTorch and peft, as their documentation shows it.

It shares no code with the project. Given the same model, batches and settings as a job of
`reference.py` it times the steps alone: the sentences are tokenised, and every batch padded to its
longest, before the clock starts::

    python engine/bench/plain.py JOB.json

The optimizer is torch's AdamW by its defaults, or fused with ``"fused": true``. ``loop`` in the job
is ``bare`` (batches lie on the device, losses are read at the end), ``logged`` (batches come from a
DataLoader, and every loss is read as it is made) or ``trainer`` (transformers' `Trainer` does it all).
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
    if job["loop"] == "trainer":
        write(job, *by_transformers(trainer, tokenizer, chosen, job))
        return
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
    write(job, seconds, losses)


def write(job: dict[str, Any], seconds: float, losses: list[Any]) -> None:
    """The answers of the job."""
    found = {"seconds": seconds, "steps": len(losses), "losses": [float(loss) for loss in losses]}
    Path(job["out"] + ".json").write_text(json.dumps(found), encoding="utf-8")


def by_transformers(
    reference_trainer: Any, tokenizer: Any, chosen: list[list[dict[str, Any]]], job: dict[str, Any]
) -> tuple[float, list[torch.Tensor]]:
    """Seconds from the first step to the last, and losses, of transformers' `Trainer` on the same batches.

    Optimizer and schedule are the same; everything else is its default, but for saving and reporting, which are off.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    device = torch.device(job["device"])
    flat = [example for batch in chosen for example in batch]
    tokens = tokenizer([example["text"] for example in flat], truncation=True, max_length=job["max_length"])
    rows = [
        {key: values[place] for key, values in tokens.items()} | {"label": example["label"]}
        for place, example in enumerate(flat)
    ]
    losses: list[torch.Tensor] = []
    clock: dict[str, float] = {}

    class InOrder(Trainer):
        """Reads the examples as they stand, and keeps each loss without waiting for it."""

        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            labels = inputs.pop("labels")
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
            losses.append(loss.detach())
            return loss

    class Clock(TrainerCallback):
        """Starts with the first step and stops with the last."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if "start" not in clock:
                synchronize(device)
                clock["start"] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if state.global_step == len(chosen):
                synchronize(device)
                clock["end"] = time.perf_counter()

    arguments = TrainingArguments(
        output_dir=job["out"] + ".trainer",
        per_device_train_batch_size=len(chosen[0]),
        max_steps=len(chosen),
        max_grad_norm=job["clip"],
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({"tf32": job["precision"] == "tf32"} if device.type == "cuda" else {}),
    )
    InOrder(
        model=reference_trainer.model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock()],
        optimizers=(reference_trainer.optimizer, reference_trainer.scheduler),
    ).train()
    return clock["end"] - clock["start"], losses


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
