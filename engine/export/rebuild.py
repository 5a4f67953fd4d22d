"""A finished run as a model again: the base, the method attached, the trained tensors put in. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.errors import EngineError, ModelError
from engine.export.finished import Finished
from engine.methods.contract import chain
from engine.training.build import Built, Caches, build
from engine.training.result_file import Result, read_result


def rebuild(finished: Finished, caches: Caches | None = None) -> Built:
    """The trained model of a finished run, on the CPU and in eval mode.

    Args:
        finished: the run.
        caches: base models to copy from, and to keep; none by default.

    Raises:
        EngineError: when it has no result, or the result does not fit its method any more.
        ModelError: when the base weights are not those it was trained from.
        DataError: when its dataset, which gives the labels, is gone.
    """
    finished.check_finished()
    result = read_result(finished.folder.result)
    spec = finished.spec.model_copy(update={"train": finished.spec.train.model_copy(update={"device": "cpu"})})
    built = build(spec, caches or Caches())
    _check_base(finished, built)
    try:
        _install(built, result)
    except (KeyError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"The result of run {finished.row.id} does not fit its method: {error}.",
            "It was written by another version; train it again.",
        ) from None
    built.model.eval()
    return built


def merged(built: Built) -> nn.Module:
    """The trained model as a plain one, without anything that a method added to it."""
    return built.method.merged(built.model).eval()


def own_tensors(result: Result, level: int) -> dict[str, torch.Tensor]:
    """The tensors of one method of a chain, by its own names; level 0 is the outermost."""
    prefix = f"{level}/"
    return {name.removeprefix(prefix): t for name, t in result.tensors.items() if name.startswith(prefix)}


def _check_base(finished: Finished, built: Built) -> None:
    trained_on, now = finished.base_sha256, built.setting.source.sha256
    if trained_on and trained_on != now:
        raise ModelError(
            f"Run {finished.row.id} was trained from weights {trained_on[:12]}, but {finished.spec.model} now has "
            f"{now[:12]}.",
            "Restore the base model that it was trained from.",
        )


def _install(built: Built, result: Result) -> None:
    parts = list(enumerate(chain(built.method)))
    for level, part in reversed(parts):  # an outer method overwrites some of what an inner one holds
        part.install(own_tensors(result, level))
    with torch.no_grad():
        for name, parameter in built.head:
            parameter.copy_(result.head[name])


def label_names(model: Any) -> list[str]:
    """The names of a classifier's classes, in order."""
    return [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
