"""The first example: the spec behind the start page's one button."""

from __future__ import annotations

from engine import settings
from engine.devices import cuda_devices
from engine.jobs import client
from engine.plan import make_plan
from engine.spec import RunSpec, read_spec
from pages.parts import words
from pages.parts.tables import dataset_title, method_title

PRESETS = settings.ASSETS / "presets"


def spec() -> RunSpec:
    """What the first example runs: a nano model on the processor, MiniLM on a GPU."""
    return read_spec(PRESETS / ("first-gpu.yaml" if cuda_devices() else "first.yaml"))


def describe() -> str:
    """The example in one line."""
    asked = spec()
    budget = f" with {words.count(asked.budget.params)} parameters" if asked.budget and asked.budget.params else ""
    long = "" if cuda_devices() else ": about half a minute on two quiet cores, a minute on busy ones"
    return (
        f"{method_title(asked.method.name)}{budget} on {dataset_title(asked.dataset.source)}, "
        f"{asked.train.steps} steps with {asked.model}{long}."
    )


def launch(owner: str) -> str:
    """Queue it and return the run's id.

    Raises:
        EngineError: when it cannot be planned or queued.
    """
    plan = make_plan(spec())
    return client.submit(settings.home(), plan.spec, plan.to_json(), owner=owner)
