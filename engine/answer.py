"""Lets the base model and finished runs answer one text, side by side. Imports torch when called."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SpecError
from engine.export.finished import Finished, opened

if TYPE_CHECKING:
    from torch import nn

    from engine.training.build import Built

KINDS = ("try", "export", "prompt", "budgets", "ages", "divergence")
KEPT = 4
"""Finished runs kept in memory."""
MAX_CHARACTERS = 20_000
PROMPT_SECONDS = 120.0
"""In-context questions may keep others waiting for so long."""


@dataclass
class Caches:
    """What a warm process keeps between questions: base models and datasets, and rebuilt runs."""

    parts: Any = None
    runs: OrderedDict[str, Built] = field(default_factory=OrderedDict)


@dataclass(frozen=True)
class Speaker:
    """One model that answers: a finished run, or a base model with its untrained head.

    Attributes:
        run: the run's id; None for a base model.
        title: for people.
        built: what the run is made of.
        model: what answers.
        accuracy: on the run's test set; None for a base model.
    """

    run: str | None
    title: str
    built: Built
    model: nn.Module
    accuracy: float | None


def answer_request(home: Path, kind: str, payload: Mapping[str, Any], caches: Caches) -> dict[str, Any]:
    """Entry point of the process that answers.

    Args:
        home: the store.
        kind: ``try`` with ``runs``, ``text`` and ``pair``; ``export`` for download, with ``run`` and
            ``format``; ``prompt`` with ``model``, ``task`` and ``shots``; ``budgets`` or ``ages`` with ``run``; or
            ``divergence`` with ``model`` and ``dataset``.
        payload: the named values.
        caches: kept between questions.

    Returns:
        What `answer` returns, the ``path`` of the written file, or what `by_shots`, `budgets`, `ages` or
        `from_kl_to_fisher` returns.

    Raises:
        SpecError: for another kind.
    """
    if kind == "try":
        return answer(home, payload["runs"], payload["text"], payload.get("pair"), caches)
    if kind == "export":
        from engine.export import default_name, export_run

        target = Path(home) / "exports" / default_name(payload["run"], payload["format"])
        return {"path": str(export_run(home, payload["run"], payload["format"], target))}
    if kind == "prompt":
        from engine.prompting.measure import by_shots, load_speaker

        speaker = load_speaker(payload["model"])
        return by_shots(speaker, payload["task"], payload["shots"], seconds=PROMPT_SECONDS)
    if kind == "budgets":
        from engine.export.budgets import budgets

        return budgets(home, payload["run"])
    if kind == "ages":
        from engine.export.ages import ages

        return ages(home, payload["run"])
    if kind == "divergence":
        from engine.training.divergence import from_kl_to_fisher

        return from_kl_to_fisher(payload["model"], payload["dataset"])
    raise SpecError(f"Questions of kind {kind!r} are not answered.", f"Known: {', '.join(KINDS)}.")


def answer(
    home: Path, run_ids: Sequence[str], text: str, pair: str | None = None, caches: Caches | None = None
) -> dict[str, Any]:
    """Answer one text, or one pair, with finished runs and the base models they started from.

    Args:
        home: the store.
        run_ids: finished runs; they may have other models, datasets and labels.
        text: the (first) sentence.
        pair: the second one, where the runs were trained on pairs.
        caches: kept between questions; none by default.

    Returns:
        ``text``, ``pair`` and ``answers``, base models first: each with ``run`` (None for a base
        model), ``title``, ``labels``, ``probabilities``, ``predicted``, ``accuracy`` (of the test
        set), ``truncated`` (whether the text was too long) and ``milliseconds`` of the forward pass.

    Raises:
        SpecError: for no run, an empty text, or a pair where single sentences are wanted, and the reverse.
        EngineError: for a run that has no result.
    """
    if not run_ids:
        raise SpecError("There is no run to ask.", "Name at least one finished run.")
    if not text.strip():
        raise SpecError("There is no text to answer.", "Give a sentence.")
    if len(text) + len(pair or "") > MAX_CHARACTERS:
        raise SpecError(f"The text has over {MAX_CHARACTERS:,} characters.", "Give a shorter one.")
    kept = caches or Caches()
    trained = [_speaker(home, run_id, kept) for run_id in dict.fromkeys(run_ids)]
    for speaker in trained:
        _check_kind(speaker, pair)
    speakers = [*_bases(trained), *trained]
    return {"text": text, "pair": pair, "answers": [_answer(speaker, text, pair) for speaker in speakers]}


def _speaker(home: Path, run_id: str, caches: Caches) -> Speaker:
    """A finished run, rebuilt or from the cache."""
    with opened(home, run_id) as finished:
        finished.check_finished()
        if run_id not in caches.runs:
            caches.runs[run_id] = _rebuilt(finished, caches)
            while len(caches.runs) > KEPT:
                caches.runs.popitem(last=False)
        caches.runs.move_to_end(run_id)
        title = f"{' on '.join(method.title for method in finished.methods)}, seed {finished.row.seed}"
        accuracy = finished.summary.get("accuracy", {}).get("test")
    built = caches.runs[run_id]
    return Speaker(run_id, title, built, built.model, accuracy)


def _rebuilt(finished: Finished, caches: Caches) -> Built:
    from engine.export.rebuild import rebuild
    from engine.training import build

    if caches.parts is None:
        caches.parts = build.Caches()
    return rebuild(finished, caches.parts)


def _bases(trained: Sequence[Speaker]) -> list[Speaker]:
    """The base models that the runs started from, each once: same weights, labels and head."""
    found: dict[Any, Speaker] = {}
    for speaker in trained:
        built = speaker.built
        head_seed = built.spec.train.seed_of("head")
        key = (built.setting.source.sha256, built.setting.dataset.labels, head_seed, built.spec.train.max_length)
        title = f"{built.setting.source.title}, before training"
        found.setdefault(key, Speaker(None, title, built, built.base, None))
    return list(found.values())


def _check_kind(speaker: Speaker, pair: str | None) -> None:
    wants_pair = speaker.built.setting.dataset.is_pair
    if wants_pair and not (pair or "").strip():
        raise SpecError(f"Run {speaker.run} was trained on sentence pairs.", "Give a second sentence.")
    if pair is not None and not wants_pair:
        raise SpecError(f"Run {speaker.run} was trained on single sentences.", "Leave out the second one.")


def _answer(speaker: Speaker, text: str, pair: str | None) -> dict[str, Any]:
    import numpy as np
    import torch

    from engine.models.tokenizer import tokenizer_of
    from engine.tasks.dataset import Split
    from engine.tasks.encoding import encode

    built, length = speaker.built, int(speaker.built.spec.train.max_length)
    tokenizer = tokenizer_of(built.setting.source)
    split = Split([text], None if pair is None else [pair], np.zeros(1, np.int64))
    tokens = len(tokenizer.encode(text, pair).ids)
    batch = {name: torch.from_numpy(array) for name, array in encode(split, tokenizer, length).batch([0]).items()}
    batch.pop("labels")
    with torch.inference_mode():
        started = time.perf_counter()
        probabilities = speaker.model(**batch).logits[0].double().softmax(-1).tolist()
        elapsed = time.perf_counter() - started
    labels = list(built.setting.dataset.labels)
    return {
        "run": speaker.run,
        "title": speaker.title,
        "labels": labels,
        "probabilities": probabilities,
        "predicted": labels[int(np.argmax(probabilities))],
        "accuracy": speaker.accuracy,
        "truncated": tokens > length,
        "milliseconds": 1000 * elapsed,
    }
