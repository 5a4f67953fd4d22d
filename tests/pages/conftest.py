"""A small store with real rows and files, written through the store itself, and pages that read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from engine.plan import Plan, make_plan
from engine.probes import describe
from engine.settings import PROJECT
from engine.spec import parse_spec
from engine.stats.intervals import wilson
from engine.store.run_file import RunWriter
from engine.store.runs import Runs

STEPS = 20
NASTY = "<script>alert('x')</script> **bold** $x$ :red[no] [link](http://example.com)"
LABELS = ["negative", "positive"]


@dataclass
class House:
    """A home with runs in it, and the way to its pages."""

    home: Path
    runs: Runs
    data: Path

    def plan(self, method: str = "id3", seed: int = 0, **changes: Any) -> Plan:
        spec = {
            "model": "nano-bert",
            "dataset": {"source": str(self.data), "text": "text", "label": "label"},
            "method": {"name": method},
            "budget": {"params": 5000} if method == "id3" else None,
            "train": {"steps": STEPS, "batch_size": 4, "seed": seed},
        }
        return make_plan(parse_spec(spec | changes))

    def add(self, method: str = "id3", seed: int = 0, owner: str = "machine", **changes: Any) -> str:
        """A queued run."""
        plan = self.plan(method, seed, **changes)
        return self.runs.submit(plan.spec, plan.to_json(), owner=owner)

    def begin(self, run_id: str) -> None:
        assert self.runs.claim(run_id, "cpu:0", {"name": "test", "pid": 1, "created": 0.0})
        self.runs.progress(run_id, "training", 8, STEPS)

    def record(self, run_id: str, until: int) -> None:
        """Curves and frames of the first steps, as a run would record them."""
        from engine.plan import read_setting

        architecture = read_setting(parse_spec(self.runs.get(run_id).spec)).architecture
        rows, linears = describe(architecture.backbone), describe(architecture.linears())
        rng = np.random.default_rng(0)
        with RunWriter(self.runs.folder(run_id).database) as sink:
            sink.phase("training", until, STEPS)
            sink.meta("layout", rows)
            sink.meta("matrices", linears)
            sink.meta("rank_matrices", linears[:4])
            sink.meta("baseline", {"majority": 0.55})
            described = {
                "layers": architecture.layers,
                "kind": "encoder",
                "model_type": "bert",
                "key_bias_alive": False,
            }
            sink.meta("architecture", described)
            sink.meta("biases", [row for row in rows if row["part"] == "bias"])
            sink.meta("provenance", {"data": {"sha256": "same"}, "weights": {"sha256": "w"}})
            for step in range(until + 1):
                self._step(sink, step, rng, rows, len(linears))
            if until == STEPS:
                sink.phase("finished")

    def _step(
        self, sink: RunWriter, step: int, rng: np.random.Generator, layout: list[dict[str, Any]], matrices: int
    ) -> None:
        if step:
            sink.scalar("train/loss", step, 0.7 / step)
            sink.scalar("train/accuracy", step, 0.5 + step / 100)
            sink.scalar("step/seconds", step, 0.05)
            sink.scalar("cost/memory_bytes", step, 2**29)
        if step % 5 == 0:
            sink.scalar("validation/accuracy", step, 0.5 + step / 100)
            sink.scalar("validation/loss", step, 0.7 - step / 100)
        counts = np.zeros(len(layout), np.int64)
        counts[[5, 6]] = [3 * step, step]
        sink.scalar("mask/selected", step, int(counts.sum()))
        sink.frame("mask", step, {"count": counts})
        if step:
            entries = {"tensor": [5, 5, 5, 6], "index": [step, 40 + step, 80 + step, step], "step": [step - 1] * 4}
            sink.frame("selected", step, {k: np.array(v, np.int32) for k, v in entries.items()}, keep=True)
        ranks = np.full(4, 6, np.int32) - np.minimum(step // 5, [0, 1, 2, 3]).astype(np.int32)
        budget = {"budget": np.array([24 - step]), "final_budget": np.array([4])}
        sink.frame("rank", step, {"allocated": ranks, "active": ranks, **budget})
        sink.scalar("rank/active", step, int(ranks.sum()))
        sink.scalar("rank/budget", step, 24 - step)
        moved = {
            name: (step * rng.random(matrices)).astype(np.float32) for name in ("magnitude", "direction", "relative")
        }
        sink.frame("change", step, moved)
        sink.frame(
            "bias",
            step,
            {
                "mean": np.linspace(0, 0.001 * step, sum(1 for row in layout if row["part"] == "bias")).astype(
                    np.float32
                )
            },
        )

    def finish(self, run_id: str, training_seconds: float = 60.0, **counted: Any) -> None:
        """The rest of a run: its record, test results and summary, of which `counted` replaces parts."""
        self.begin(run_id)
        self.record(run_id, STEPS)
        row = self.runs.get(run_id)
        labels = np.arange(40) % 2
        logits = np.random.default_rng(row.seed).normal(size=(40, 2)).astype(np.float32)
        logits[np.arange(40), labels] += 0.8
        right = int((logits.argmax(1) == labels).sum())
        interval = wilson(right, 40)
        folder = self.runs.folder(run_id)
        folder.result.mkdir()
        save_file({"logits": logits, "labels": labels.astype(np.int64)}, folder.result / "test.safetensors")
        details = {
            "accuracy": right / 40,
            "ci95": [interval.low, interval.high],
            "labels": LABELS,
            "confusion": [[15, 5], [4, 16]],
            "examples": [
                {"index": 1, "text": NASTY, "pair": None, "label": "positive", "predicted": "positive",
                 "probability": 0.99, "right": True},
                {"index": 2, "text": NASTY, "pair": None, "label": "negative", "predicted": "positive",
                 "probability": 0.97, "right": False},
            ],
        }  # fmt: skip
        params = row.plan["params"]
        summary = {
            "run": run_id,
            "params": {key: params[key] for key in ("requested", "method", "head", "total")},
            "accuracy": {"validation": 0.8, "test": right / 40, "ci95": details["ci95"]},
            "seconds": 80.0,
            "training_seconds": training_seconds,
            "steps_per_second": STEPS / training_seconds,
            "peak_memory_bytes": 2**29,
            "optimizer_state_scalars": 2 * params["method"],
            "bytes_on_disk": 4096,
        } | counted
        with RunWriter(folder.database) as sink:
            sink.meta("test", details)
            sink.meta("summary", summary)
        assert self.runs.finish(run_id, "finished", summary=summary)

    def open(self, page: str, **query: str) -> AppTest:
        """A page, run once as a browser on this machine would."""
        app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60)
        app.session_state["shell"] = True
        for key, value in query.items():
            app.query_params[key] = value
        return app.switch_page(f"pages/{page}.py").run()


@pytest.fixture(scope="session")
def sentences() -> list[tuple[str, str]]:
    good = [f"a warm and clever film, number {i}, that stays with you" for i in range(60)]
    bad = [f"a dull and clumsy film, number {i}, best forgotten" for i in range(60)]
    return [(text, "positive") for text in good] + [(text, "negative") for text in bad] + [(NASTY, "positive")]


@dataclass
class Connection:
    """What the server knows of a browser; stands in for the socket that a page test does not have."""

    remote_ip: str = "127.0.0.1"
    cookies: dict[str, str] = field(default_factory=dict)
    headers: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    """The browser of this test, on this machine unless it is changed."""
    found = Connection()
    monkeypatch.setattr("streamlit.runtime.context._get_client_context", lambda: found)
    return found


@pytest.fixture
def house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]], connection: Connection
) -> House:
    """An empty home, and a small file of sentences below a readable root."""
    home = tmp_path / "home"
    monkeypatch.setenv("PEFTSCOPE_HOME", str(home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(tmp_path))
    data = tmp_path / "films.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in sentences]
    data.write_text("\n".join(lines), encoding="utf-8")
    st.cache_resource.clear()
    return House(home, Runs(home), data)


@pytest.fixture
def words_of() -> Callable[[AppTest], str]:
    """Every text on a page, titles of figures included, as one string."""

    def read(app: AppTest) -> str:
        kinds = ("title", "header", "subheader", "markdown", "caption", "text", "code", "warning", "error", "latex")
        found = [str(element.value) for kind in kinds for element in app.get(kind)]
        found += [popover.proto.popover.label for popover in app.get("popover")]
        found += [f"{metric.label}: {metric.value}" for metric in app.metric]
        return "\n".join(found)

    return read
