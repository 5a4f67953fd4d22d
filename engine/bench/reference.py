"""Frozen reference: the nine methods with plain PyTorch and peft, as their documentation shows them.

It shares no code with the project, so that agreement means something. Given the same split, the
same batches and the same initial head it trains one model per job file and writes its answers on
the test set::

    python engine/bench/reference.py JOB.json [JOB.json ...]

A job holds: ``method``, ``model`` (folder), ``data`` (folder with train.jsonl and test.jsonl),
``batches`` (npy, int64 (steps, batch)), ``head`` (safetensors), ``labels``, ``lr``, ``warmup``,
``clip``, ``max_length``, ``device``, ``precision`` (fp32 or tf32), ``seed``, ``threads``,
``settings`` (for peft's config, or the sparse method's own), ``order`` (npy, examples that FISH
scores) and ``out`` (path without suffix).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Job = dict[str, Any]
Model = Any
"""A classifier of transformers, or peft's wrapper of one."""


def main(paths: list[str]) -> None:
    """Train every job, one after another."""
    for path in paths:
        job = json.loads(Path(path).read_text(encoding="utf-8"))
        train(job)


def train(job: Job) -> None:
    """Train one job and write its answers."""
    started = time.perf_counter()
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high" if job["precision"] == "tf32" else "highest")
    device = torch.device(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    examples = {name: read(Path(job["data"]) / f"{name}.jsonl") for name in ("train", "test")}
    model = load_model(job).to(device)
    collate = make_collate(tokenizer, job, device)
    facts: dict[str, Any] = {"method": job["method"], "seed": job["seed"]}
    if job["method"] == "linear_probe":
        facts["sklearn_accuracy"] = logistic_regression(model, examples, collate)
    trainer = make_trainer(model, job, [examples["train"][i] for i in np.load(job["order"])], collate)
    batches = np.load(job["batches"])
    trainer.model.train()
    trained = time.perf_counter()
    losses = []
    for step, indices in enumerate(batches):
        loss = trainer.step(step, collate([examples["train"][i] for i in indices]))
        losses.append(loss)
    facts["losses"] = [round(float(loss), 6) for loss in torch.stack(losses)]
    facts["training_seconds"] = time.perf_counter() - trained
    logits = predict(trainer.model, examples["test"], collate)
    labels = torch.tensor([example["label"] for example in examples["test"]])
    facts["accuracy"] = float((logits.argmax(1) == labels).float().mean())
    facts["trainable"] = trainer.trainable()
    facts["seconds"] = time.perf_counter() - started
    save_file({"logits": logits, "labels": labels, **trainer.result()}, job["out"] + ".safetensors")
    Path(job["out"] + ".json").write_text(json.dumps(facts), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The examples of a JSON Lines file: text, pair or null, label."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load_model(job: Job) -> Model:
    """The pretrained model without dropout, with the given head."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=job["labels"], dtype=torch.float32, **dropout
    )
    with torch.no_grad():
        for name, tensor in load_file(job["head"]).items():
            model.get_parameter(name).copy_(tensor)
    return model


def make_collate(tokenizer: Any, job: Job, device: torch.device) -> Any:
    """A function from examples to a batch padded to its longest."""

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [example["pair"] for example in batch] if batch[0].get("pair") is not None else None
        encoded = tokenizer(
            [example["text"] for example in batch],
            pairs,
            truncation=True,
            max_length=job["max_length"],
            padding="longest",
            return_tensors="pt",
        )
        tensors = {key: value.to(device) for key, value in encoded.items()}
        tensors["labels"] = torch.tensor([example["label"] for example in batch], device=device)
        return tensors

    return collate


@torch.no_grad()
def predict(model: Model, examples: list[dict[str, Any]], collate: Any) -> torch.Tensor:
    """Logits of all examples, in order."""
    model.eval()
    parts = []
    for start in range(0, len(examples), 64):
        batch = collate(examples[start : start + 64])
        batch.pop("labels")
        parts.append(model(**batch).logits.float().cpu())
    return torch.cat(parts)


def schedule(steps: int, warmup: float) -> Any:
    """Share of the peak learning rate at step t from 0: linear up, then linear down; never 0."""
    rising = math.ceil(warmup * steps)
    return lambda t: (t + 1) / rising if t < rising else (steps - t) / (steps - rising + 1)


class Trainer:
    """Dense training of whatever requires a gradient: full, linear_probe, bitfit."""

    def __init__(self, model: Model, job: Job) -> None:
        self.model = model
        self.job = job
        self.choose()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=job["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
        )
        steps = len(np.load(job["batches"], mmap_mode="r"))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(steps, job["warmup"]))

    def choose(self) -> None:
        """Mark what is trained."""
        for name, parameter in self.model.named_parameters():
            head = name.startswith("classifier")
            bias = self.job["method"] == "bitfit" and name.endswith(".bias")
            parameter.requires_grad_(head or bias or self.job["method"] == "full")

    def step(self, step: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One optimizer step; returns the loss of the task, detached."""
        labels = batch.pop("labels")
        loss = nn.functional.cross_entropy(self.model(**batch).logits, labels)
        loss.backward()
        self.clip()
        self.optimizer.step()
        self.scheduler.step()
        self.after(step)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def clip(self) -> None:
        """Scale the gradients so that their norm is at most the bound."""
        nn.utils.clip_grad_norm_(self.parameters, self.job["clip"])

    def after(self, step: int) -> None:
        """Whatever follows the optimizer."""

    def trainable(self) -> int:
        """Trained scalars, head included."""
        return sum(p.numel() for p in self.parameters)

    def result(self) -> dict[str, torch.Tensor]:
        """More tensors for the output file."""
        return {}


class PeftTrainer(Trainer):
    """LoRA and DoRA by peft."""

    def __init__(self, model: Model, job: Job) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(job["seed"])
        model = model.cpu()
        config = LoraConfig(task_type="SEQ_CLS", use_dora=job["method"] == "dora", **job["settings"])
        super().__init__(get_peft_model(model, config).to(job["device"]), job)

    def choose(self) -> None:
        """peft has marked what is trained."""


class AdaLoraTrainer(Trainer):
    """AdaLoRA by peft: the penalty is in the model's own loss, ranks are allocated after each step."""

    def __init__(self, model: Model, job: Job) -> None:
        from peft import AdaLoraConfig, get_peft_model

        torch.manual_seed(job["seed"])
        settings = dict(job["settings"])
        total = settings.pop("total_rank", None)
        config = AdaLoraConfig(task_type="SEQ_CLS", **settings)
        super().__init__(get_peft_model(model.cpu(), config).to(job["device"]), job)
        if total is not None:  # peft itself only takes multiples of the number of matrices
            self.model.base_model.rankallocator.target_bgt = total

    def choose(self) -> None:
        """peft has marked what is trained."""

    def step(self, step: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One optimizer step on the loss with its penalty; returns the loss without it."""
        output = self.model(**batch)
        output.loss.backward()
        self.clip()
        self.optimizer.step()
        self.scheduler.step()
        self.model.base_model.update_and_allocate(step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return nn.functional.cross_entropy(output.logits, batch["labels"]).detach()


class MaskTrainer(Trainer):
    """FISH Mask and PaFi: a dense mask on the gradient of a dense AdamW, then clipping."""

    def __init__(self, model: Model, job: Job, examples: list[dict[str, Any]], collate: Any) -> None:
        super().__init__(model, job)
        self.backbone = [(n, p) for n, p in model.named_parameters() if not n.startswith("classifier")]
        self.sizes = [p.numel() for _, p in self.backbone]
        self.dead = self.flat([dead_rows(model, n, p, job) for n, p in self.backbone])
        self.mask = torch.zeros_like(self.dead)
        self.choose_mask(examples, collate)

    def choose(self) -> None:
        """Everything gets a gradient; the mask decides."""
        self.model.requires_grad_(True)

    def choose_mask(self, examples: list[dict[str, Any]], collate: Any) -> None:
        """The fixed mask, before training."""
        count = self.job["settings"]["count"]
        if self.job["method"] == "pafi":
            scores = -self.flat([p.detach().abs() for _, p in self.backbone])
        else:
            scores = self.fisher(examples, collate)
        self.select(scores, count)

    def fisher(self, examples: list[dict[str, Any]], collate: Any) -> torch.Tensor:
        """Sum over single examples of the squared gradient of the log-likelihood of their labels."""
        self.model.eval()
        total = [torch.zeros_like(p) for _, p in self.backbone]
        for example in examples[: self.job["settings"]["samples"]]:
            batch = collate([example])
            labels = batch.pop("labels")
            self.model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.model(**batch).logits, labels).backward()
            for sum_of_squares, (_, parameter) in zip(total, self.backbone, strict=True):
                if parameter.grad is not None:
                    sum_of_squares += parameter.grad**2
        self.model.zero_grad(set_to_none=True)
        return self.flat(total)

    def select(self, scores: torch.Tensor, count: int) -> None:
        """Add the `count` entries with the highest scores, the lowest index first among equals."""
        scores = scores.masked_fill(self.mask | self.dead, -math.inf)
        threshold = scores.topk(count).values[-1]
        self.mask |= scores > threshold
        missing = count - int((scores > threshold).sum())
        self.mask[(scores == threshold).nonzero().flatten()[:missing]] = True

    def clip(self) -> None:
        """Mask, then clip: the norm is that of what is trained."""
        self.mask_gradients()
        super().clip()

    def mask_gradients(self) -> None:
        """Zero the gradients outside the mask."""
        for (_, parameter), chosen in zip(self.backbone, self.mask.split(self.sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(chosen.view_as(parameter))

    def trainable(self) -> int:
        """Entries of the mask, and the head."""
        return int(self.mask.sum()) + sum(p.numel() for p in self.model.classifier.parameters())

    def result(self) -> dict[str, torch.Tensor]:
        """Flat index and trained value of every entry in the mask, by tensor; and the head."""
        tensors = {
            f"head.{n}": p.detach().cpu() for n, p in self.model.named_parameters() if n.startswith("classifier")
        }
        for (name, parameter), chosen in zip(self.backbone, self.mask.split(self.sizes), strict=True):
            index = chosen.nonzero().flatten()
            if len(index):
                tensors[f"{name}.index"] = index.int().cpu()
                tensors[f"{name}.value"] = parameter.detach().flatten()[index].cpu()
        return tensors

    @staticmethod
    def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
        """All entries of all tensors in one row."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Id3Trainer(MaskTrainer):
    """ID3: the mask grows by K/T entries a step; the norm that clips is that of the dense gradient."""

    def choose_mask(self, examples: list[dict[str, Any]], collate: Any) -> None:
        """Nothing is selected before the first step."""
        steps = len(np.load(self.job["batches"], mmap_mode="r"))
        share, rest = divmod(self.job["settings"]["count"], steps)
        self.growth = [share + (step < rest) for step in range(steps)]
        self.done = 0

    def clip(self) -> None:
        """Score and unmask, clip by the dense norm, then mask."""
        settings = self.job["settings"]
        # The ranking is made before clipping, which scales all gradients alike.
        gradient = self.flat([torch.zeros_like(p) if p.grad is None else p.grad for _, p in self.backbone])
        weight = self.flat([p.detach() for _, p in self.backbone])
        if self.growth[self.done]:
            scores = gradient.abs() ** settings["power"] / (weight.abs() + settings["eps"]) ** settings["exp"]
            self.select(scores, self.growth[self.done])
        self.done += 1
        nn.utils.clip_grad_norm_(self.parameters, self.job["clip"])
        self.mask_gradients()


def dead_rows(model: Model, name: str, parameter: nn.Parameter, job: Job) -> torch.Tensor:
    """Entries that no input of this task can reach: padding row, later positions, other token types."""
    dead = torch.zeros_like(parameter, dtype=torch.bool)
    if name.endswith("word_embeddings.weight"):
        dead[model.config.pad_token_id] = True
    elif name.endswith("position_embeddings.weight"):
        dead[job["max_length"] :] = True
    elif name.endswith("token_type_embeddings.weight"):
        dead[2 if job["pairs"] else 1 :] = True
    return dead


def make_trainer(model: Model, job: Job, examples: list[dict[str, Any]], collate: Any) -> Trainer:
    """The trainer of a job's method."""
    if job["method"] in ("lora", "dora"):
        return PeftTrainer(model, job)
    if job["method"] == "adalora":
        return AdaLoraTrainer(model, job)
    if job["method"] == "id3":
        return Id3Trainer(model, job, examples, collate)
    if job["method"] in ("fish", "pafi"):
        return MaskTrainer(model, job, examples, collate)
    if job["method"] in ("full", "linear_probe", "bitfit"):
        return Trainer(model, job)
    raise ValueError(f"no reference for method {job['method']!r}")


@torch.no_grad()
def logistic_regression(model: Model, examples: dict[str, list[dict[str, Any]]], collate: Any) -> float:
    """Test accuracy of scikit-learn's logistic regression on the features that the head sees."""
    from sklearn.linear_model import LogisticRegression

    model.eval()
    seen: list[torch.Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
    features = {}
    for name, split in examples.items():
        seen.clear()
        predict(model, split, collate)
        features[name] = torch.cat(seen).numpy()
    hook.remove()
    labels = {name: [example["label"] for example in split] for name, split in examples.items()}
    fitted = LogisticRegression(max_iter=10_000).fit(features["train"], labels["train"])
    return float(fitted.score(features["test"], labels["test"]))


if __name__ == "__main__":
    main(sys.argv[1:])
