"""One run from its row in the queue to its summary, whoever carries it out: worker, terminal or notebook."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import estimate
from engine.errors import Diverged, EngineError, Stopped, StoreError
from engine.events import Control, Sink
from engine.plan import Params, workload
from engine.spec import RunSpec, parse_spec
from engine.store.control import RowControl
from engine.store.paths import RunFolder
from engine.store.provenance import collect, write_provenance
from engine.store.run_file import RunWriter
from engine.store.runs import Runs
from engine.tasks.encoding import Encoded
from engine.training import checkpoint, latency, result
from engine.training.build import Built, Caches, build, encoded_splits
from engine.training.courtesy import Courtesy
from engine.training.evaluation import to_device
from engine.training.loop import Loop
from engine.training.recipe import prepare_torch

FINISH_TRIES = 3
log = logging.getLogger(__name__)


def run_job(home: Path, run_id: str, caches: Caches) -> str:
    """Carry out an active run and record how it ended; returns its last state.

    Whatever goes wrong ends in the run's row, in words for its owner; nothing is raised.
    """
    runs = Runs(home)
    row = runs.get(run_id)
    folder = runs.folder(run_id)
    ending: dict[str, Any]
    try:
        spec, params = parse_spec(row.spec), Params(**row.plan["params"])
        with RunWriter(folder.database, progress=lambda *where: runs.progress(run_id, *where)) as sink:
            try:
                summary = _carry_out(run_id, spec, params, folder, sink, RowControl(runs, run_id), caches)
                ending = {"state": "finished", "summary": summary}
            except Exception as error:
                ending = _ending(error, folder)
                _tell(sink, ending)
    except EngineError as error:  # the run's own file cannot be written
        ending = {"state": "failed", "error": error.what, "todo": error.todo}
    _finish(runs, run_id, ending)
    if ending["state"] == "finished":
        checkpoint.drop(folder.checkpoint)
    runs.close()
    return str(ending["state"])


def _finish(runs: Runs, run_id: str, ending: Mapping[str, Any]) -> None:
    """Record how a run ended; a file that is busy or full for a moment must not make a finished run a failed one.

    Raises:
        StoreError: when it cannot be recorded after several tries.
    """
    for _ in range(FINISH_TRIES - 1):
        try:
            runs.finish(run_id, **ending)
            return
        except StoreError:
            time.sleep(1.0)
    runs.finish(run_id, **ending)


def _carry_out(
    run_id: str, spec: RunSpec, params: Params, folder: RunFolder, sink: Sink, control: Control, caches: Caches
) -> dict[str, Any]:
    """The phases of a run, in order."""
    started = time.monotonic()
    sink.phase("loading")
    prepare_torch(spec.train)
    built = build(spec, caches)
    sink.phase("preparing")
    splits = encoded_splits(spec, built.setting, caches)
    _describe(built, folder, sink)
    with Courtesy() as courtesy:
        loop = Loop(built, splits, sink, control, courtesy, folder.root)
        if built.method.scores_first and not loop.resumes:
            _score(built, splits, sink, control, courtesy)
        began, whole = time.monotonic(), not loop.resumes
        loop.run()
        validation, test = _evaluate(built, splits, sink, courtesy)
    sink.scalar("test/accuracy", spec.train.steps, test.accuracy)
    measured = time.monotonic() - began
    labels = splits["test"].labels
    on_disk = result.write(folder.root, built, test, labels, spec.hash())
    details = result.describe(test, labels, built.setting.dataset.labels, built.setting.dataset.splits["test"])
    loop.recorder.costs(spec.train.steps)
    peak = loop.recorder.memory.bytes()  # before a merged copy is made
    summary = {
        "run": run_id,
        "status": "finished",
        "method": spec.method.name,
        "params": counts(built, params),
        "accuracy": {"validation": validation.accuracy, "test": test.accuracy, "ci95": details["ci95"]},
        "seconds": loop.earlier + time.monotonic() - started,
        "training_seconds": loop.seconds,
        "loop_seconds": loop.loop_seconds,
        "steps_per_second": spec.train.steps / loop.seconds if loop.seconds else None,
        "peak_memory_bytes": peak,
        "energy_joules": loop.recorder.energy.joules,
        "optimizer_state_scalars": optimizer_scalars(built),
        "head_optimizer_scalars": 2 * sum(p.numel() for _, p in built.head) if built.method.differentiates else 0,
        "bytes_on_disk": on_disk,
        "tokens": loop.recorder.tokens,
        "latency": latency.measure(built, splits["test"]),
    }
    sink.meta("test", details)
    sink.meta("summary", summary)
    sink.phase("finished")
    if whole:
        work = workload(spec, built.setting, params)
        with contextlib.suppress(OSError):  # a full disk spoils an estimate, not a result
            estimate.record_speed(work, spec.train.device, int(spec.train.threads), measured, folder.root.parent.parent)
    return summary


def _evaluate(
    built: Built, splits: Mapping[str, Encoded], sink: Sink, courtesy: Courtesy
) -> tuple[result.Measured, result.Measured]:
    """The last weights on all of validation, then on test."""
    total = len(splits["validation"]) + len(splits["test"])

    def measure(name: str, before: int) -> result.Measured:
        def progress(done: int, _: int) -> None:
            sink.phase("evaluating", before + done, total)
            courtesy.look()

        return result.measure(built, splits[name], progress)

    sink.phase("evaluating", 0, total)
    return measure("validation", 0), measure("test", len(splits["validation"]))


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


def _ending(error: BaseException, folder: RunFolder) -> dict[str, Any]:
    """State, cause and advice for a run that did not finish."""
    if isinstance(error, Stopped):
        if not error.keep:
            checkpoint.drop(folder.checkpoint)
        return {"state": "stopped", "error": None, "todo": error.todo or None}
    if isinstance(error, EngineError):
        return {
            "state": "diverged" if isinstance(error, Diverged) else "failed",
            "error": error.what,
            "todo": error.todo,
        }
    log.error("the run failed\n%s", "".join(traceback.format_exception(error)))
    return {"state": "failed", **_plain_cause(error)}


def _plain_cause(error: BaseException) -> dict[str, str]:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return {"error": "The device ran out of memory.", "todo": "Use a smaller batch or fewer tokens per example."}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return {"error": "The disk is full.", "todo": "Free some space, then resume the run."}
    return {"error": f"The run failed unexpectedly: {text[:500]}", "todo": "Its log has the details."}


def _tell(sink: Sink, ending: dict[str, Any]) -> None:
    """Note the ending in the run's own file, if that can still be written."""
    if ending.get("error"):
        try:
            sink.note("error", f"{ending['error']} {ending['todo'] or ''}".strip())
        except EngineError as error:
            log.error("the ending could not be noted: %s", error)
