"""The phases of a run, from its spec to its summary, whoever carries it out: worker, terminal or notebook."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import estimate
from engine.errors import Stopped
from engine.events import Control, Sink
from engine.plan import Params, workload
from engine.spec import RunSpec
from engine.store.paths import RunFolder
from engine.store.provenance import collect, write_provenance
from engine.tasks.encoding import Encoded
from engine.training import latency, result
from engine.training.build import Built, Caches, build, encoded_splits
from engine.training.costs import PeakMemory
from engine.training.courtesy import Courtesy
from engine.training.evaluation import to_device
from engine.training.loop import Loop
from engine.training.recipe import prepare_torch

FINISH_TRIES = 3
log = logging.getLogger(__name__)


@dataclass
class Carried:
    """A run between its preparation and its summary.

    Attributes:
        folder: the run's.
        sink: takes its events.
        params: counts of its plan.
        built, splits, loop: its objects.
        courtesy: looked at while it works.
        started, began: when it was taken up, and when training began; monotonic seconds.
        whole: whether it trains from its first step.
    """

    folder: RunFolder
    sink: Sink
    params: Params
    built: Built
    splits: dict[str, Encoded]
    loop: Loop
    courtesy: Courtesy
    started: float
    began: float
    whole: bool


def prepare(
    spec: RunSpec,
    params: Params,
    folder: RunFolder,
    sink: Sink,
    control: Control,
    caches: Caches,
    courtesy: Courtesy,
) -> Carried:
    """Everything before the first step, scoring included."""
    started = time.monotonic()
    memory = PeakMemory(spec.train.device)
    sink.phase("loading")
    prepare_torch(spec.train)
    built = build(spec, caches)
    memory.resident = built.resident
    memory.begin("preparing")
    sink.phase("preparing")
    splits = encoded_splits(spec, built.setting, caches)
    _describe(built, folder, sink)
    loop = Loop(built, splits, sink, control, courtesy, folder.root, memory)
    sink.meta("curve", {"items": len(loop.curve), "of": len(splits["validation"])})
    if built.method.scores_first and not loop.resumes:
        memory.begin("scoring")
        _score(built, splits, sink, control, courtesy)
    began = time.monotonic()
    return Carried(folder, sink, params, built, splits, loop, courtesy, started, began, whole=not loop.resumes)


def conclude(run: Carried, company: int = 1) -> dict[str, Any]:
    """Everything after the last step; returns the summary.

    Args:
        run: trained to its end.
        company: runs that were trained together.
    """
    built, loop, sink, spec = run.built, run.loop, run.sink, run.built.spec
    validation, test = _evaluate(run)
    sink.scalar("test/accuracy", spec.train.steps, test.accuracy)
    measured = time.monotonic() - run.began
    labels = run.splits["test"].labels
    on_disk = result.write(run.folder.root, built, test, labels, spec.hash())
    details = result.describe(test, labels, built.setting.dataset.labels, built.setting.dataset.splits["test"])
    loop.recorder.costs(spec.train.steps)
    memory = loop.recorder.memory.phases()  # before a merged copy is made
    work = workload(spec, built.setting, run.params)
    summary = {
        "run": run.folder.root.name,
        "status": "finished",
        "method": spec.method.name,
        "params": counts(built, run.params),
        "accuracy": {"validation": validation.accuracy, "test": test.accuracy, "ci95": details["ci95"]},
        "seconds": loop.earlier + time.monotonic() - run.started,
        "training_seconds": loop.seconds,
        "loop_seconds": loop.loop_seconds,
        "probe_seconds": loop.recorder.schedule.spent,
        "steps_per_second": spec.train.steps / loop.seconds if loop.seconds else None,
        "company": company,
        "peak_memory_bytes": max(memory.values()),
        "memory": {"phases": memory, "training": memory_parts(run, work, memory["training"])},
        "energy_joules": loop.recorder.energy.joules,
        "optimizer_state_scalars": optimizer_scalars(built),
        "head_optimizer_scalars": 2 * sum(p.numel() for _, p in built.head) if built.method.differentiates else 0,
        "bytes_on_disk": on_disk,
        "tokens": loop.recorder.tokens,
        "latency": latency.measure(built, run.splits["test"], company),
    }
    sink.meta("test", details)
    sink.meta("summary", summary)
    sink.phase("finished")
    if run.whole and company == 1:
        with contextlib.suppress(OSError):  # a full disk spoils an estimate, not a result
            home = run.folder.root.parent.parent
            estimate.record_speed(work, spec.train.device, int(spec.train.threads), measured, home)
    return summary


def _evaluate(run: Carried) -> tuple[result.Measured, result.Measured]:
    """The last weights on all of validation, then on test."""
    splits = run.splits
    total = len(splits["validation"]) + len(splits["test"])

    def measure(name: str, before: int) -> result.Measured:
        def progress(done: int, _: int) -> None:
            run.sink.phase("evaluating", before + done, total)
            run.courtesy.look()

        return result.measure(run.loop.steps, splits[name], progress)

    run.loop.recorder.memory.begin("evaluating")
    run.sink.phase("evaluating", 0, total)
    return measure("validation", 0), measure("test", len(splits["validation"]))


def memory_parts(run: Carried, work: estimate.Workload, peak: int) -> dict[str, int]:
    """What held the peak of training, in bytes; activations, with all that is temporary, are what the others leave."""
    built, before = run.built, run.loop.recorder.memory.before
    # On the CPU the base model was loaded by this process too; on a GPU it was there before the run.
    held, placed = _storages(built.model), _storages(built.placed)
    if built.spec.train.device == "cpu":
        held |= placed
    else:
        held = {place: count for place, count in held.items() if place not in placed}
    heads = sum(parameter.numel() for _, parameter in built.head) if built.method.differentiates else 0
    parts = {
        "process": before,
        "weights": sum(held.values()),
        "gradients": 4 * max(work.dense_gradients, work.trainable) if built.method.differentiates else 0,
        "optimizer": 4 * (optimizer_scalars(built) + 2 * heads),
    }
    return parts | {"activations": peak - sum(parts.values())}


def _storages(model: nn.Module) -> dict[int, int]:
    """Bytes of parameters and buffers by their place in memory."""
    tensors = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return {storage.data_ptr(): storage.nbytes() for storage in tensors}


def counts(built: Built, params: Params) -> dict[str, int | None]:
    """Parameters of the plan, with what the method really kept where only the run could tell."""
    kept = built.method.kept()
    method = params.method if kept is None else kept
    return {"requested": params.requested, "method": method, "head": params.head, "total": method + params.head}


def optimizer_scalars(built: Built) -> int:
    """Scalars of optimizer state of the method, head apart."""
    return built.method.optimizer_scalars() + 2 * sum(p.numel() for _, p in built.method.parameters())


def _describe(built: Built, folder: RunFolder, sink: Sink) -> None:
    """What the views and a reader of the run need to know about it."""
    source, dataset, architecture = built.setting.source, built.setting.dataset, built.setting.architecture
    device = torch.cuda.get_device_name(built.spec.train.device) if built.spec.train.device != "cpu" else ""
    provenance = collect(
        {"id": source.id, "title": source.title, "sha256": source.sha256, "licence": source.licence},
        {"id": dataset.id, "title": dataset.title, "sha256": dataset.sha256} | dict(dataset.provenance),
        device,
    )
    write_provenance(folder.provenance, provenance)
    sink.meta("provenance", provenance)
    sink.meta("baseline", {"majority": dataset.majority})
    sink.meta(
        "architecture",
        {
            "layers": architecture.layers,
            "kind": architecture.kind,
            "model_type": architecture.model_type,
            "key_bias_alive": architecture.key_bias_alive,
        },
    )


def _score(built: Built, splits: Mapping[str, Encoded], sink: Sink, control: Control, courtesy: Courtesy) -> None:
    """The scoring pass of a method, over single training examples drawn by the data seed."""

    def progress(done: int, total: int) -> None:
        sink.phase("scoring", done, total)
        courtesy.look()
        if wish := control.stop_requested():
            raise Stopped(keep=wish == "keep")

    train = built.spec.train
    order = np.random.Generator(np.random.PCG64([train.seed_of("data"), 2**20])).permutation(len(splits["train"]))
    batches = (to_device(splits["train"].batch(np.array([i])), train.device) for i in order)
    built.method.score_pass(built.model, batches, progress)
    if found := built.method.findings():
        sink.meta("findings", found)
