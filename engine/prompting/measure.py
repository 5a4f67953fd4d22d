"""Accuracy against the number of shots: builds prompts, lets the model continue them, counts. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from engine.errors import SpecError
from engine.models.catalogue import resolve_model
from engine.models.loading import load_language_model
from engine.models.source import ModelSource
from engine.models.tokenizer import tokenizer_of
from engine.prompting.tasks import Episode, PromptTask, check_shots, task_named
from engine.stats.intervals import wilson
from engine.store.provenance import collect

BATCH = 50
ANSWER_TOKENS = 16
"""Tokens an answer may have; a longer one is wrong."""
SHOWN = 6
"""Questions whose prompts and answers are shown."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speaker:
    """A language model and what it reads with."""

    source: ModelSource
    model: nn.Module
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """Tokens it can read and write."""
        return int(self.source.config.get("max_position_embeddings") or self.source.config.get("n_positions") or 512)


def load_speaker(ref: str) -> Speaker:
    """A decoder by its id, folder or hub id.

    Raises:
        ModelError: for an encoder, or files that cannot be loaded.
    """
    source = resolve_model(ref)
    model = load_language_model(source)
    tokenizer = tokenizer_of(source)
    tokenizer.no_padding()
    return Speaker(source, model, tokenizer)


def by_shots(
    speaker: Speaker,
    task: str,
    shots: Sequence[int],
    questions: int = 200,
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Ask the same questions with growing numbers of solved ones in front.

    Args:
        speaker: who answers.
        task: of `engine.prompting.tasks.TASKS`.
        shots: how many solved ones, each number measured apart.
        questions: how many, where the task leaves it open.
        progress: takes (answers done, all answers).
        seconds: how long it may take.

    Returns:
        ``model``, ``task``, ``naive`` (share right without looking at the shots) and ``naive_way`` (what
        that is in words), ``questions``, ``rows`` (one per number of shots: ``shots``,
        ``correct``, ``total``, ``accuracy``, ``ci95`` by Wilson, ``fresh_correct`` and ``fresh_total``
        for the questions kept out of nano-llama's pretraining, ``cut`` for prompts too long to be
        asked, which count as wrong), ``examples`` and ``provenance``.

    Raises:
        UnknownName: for an unknown task.
        SpecError: for numbers out of bounds, or a model that would take too long.
    """
    chosen, counts = task_named(task), check_shots(shots)
    if not 10 <= questions <= 1000:
        raise SpecError(f"{questions} questions were asked for.", "Ask for 10 to 1,000.")
    episodes = chosen.episodes(questions)
    watched = _within(seconds, progress)
    rows, answers = [], {}
    for place, count in enumerate(counts):
        answers[count] = _answers(speaker, chosen, episodes, count, watched, place * len(episodes), len(counts))
        rows.append(_row(count, episodes, answers[count]))
    provenance = collect(
        {"id": speaker.source.id, "sha256": speaker.source.sha256}, {"id": f"in-context {task}", "questions": questions}
    )
    naive, way = chosen.naive(episodes)
    return {
        "model": speaker.source.title,
        "task": task,
        "naive": naive,
        "naive_way": way,
        "questions": len(episodes),
        "rows": rows,
        "examples": [_example(episode, place, answers) for place, episode in enumerate(episodes[:SHOWN])],
        "provenance": provenance,
    }


def _within(seconds: float, progress: Progress | None) -> Progress:
    """Progress that ends the measurement when it takes too long."""
    end = time.monotonic() + seconds

    def watched(done: int, total: int) -> None:
        if progress:
            progress(done, total)
        if done < total and time.monotonic() > end:
            raise SpecError(
                f"The model gave {done:,} of {total:,} answers in {seconds:.0f} s.",
                "Ask fewer questions, from a terminal: python -m engine prompt --questions 20 --task ... --model ...",
            )

    return watched


def _row(shots: int, episodes: Sequence[Episode], answers: Sequence[str | None]) -> dict[str, Any]:
    right = [episode.question.answer == answer for episode, answer in zip(episodes, answers, strict=True)]
    found = wilson(sum(right), len(right))
    return {
        "shots": shots,
        "correct": sum(right),
        "total": len(right),
        "accuracy": found.estimate,
        "ci95": [found.low, found.high],
        "fresh_correct": sum(r for r, episode in zip(right, episodes, strict=True) if episode.fresh),
        "fresh_total": sum(episode.fresh for episode in episodes),
        "cut": sum(answer is None for answer in answers),
    }


def _example(episode: Episode, place: int, answers: dict[int, list[str | None]]) -> dict[str, Any]:
    given = {str(count): answered[place] for count, answered in answers.items()}
    return {"prompt": episode.prompt(max(answers)), **asdict(episode.question), "answers": given}


def _answers(
    speaker: Speaker,
    task: PromptTask,
    episodes: Sequence[Episode],
    shots: int,
    progress: Progress,
    before: int,
    times: int,
) -> list[str | None]:
    """One answer per episode; None where the prompt leaves no room for one."""
    prompts = [encode_prompt(speaker, episode.prompt(shots)) for episode in episodes]
    answers: list[str | None] = [None] * len(episodes)
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + ANSWER_TOKENS <= speaker.context]
    for start in range(0, len(fitting), BATCH):
        own = fitting[start : start + BATCH]
        batch = [prompts[i] for i in own]
        given = _chosen(speaker, batch, task.choices) if task.choices else _written(speaker, batch)
        for i, answer in zip(own, given, strict=True):
            answers[i] = answer
        progress(before + start + len(own), times * len(episodes))
    return answers


def encode_prompt(speaker: Speaker, text: str) -> list[int]:
    """Token ids of a text to be continued: with the model's start token, if it has one, and without an end."""
    start = speaker.source.config.get("bos_token_id")
    plain: list[int] = speaker.tokenizer.encode(text, add_special_tokens=False).ids
    begins = isinstance(start, int) and speaker.tokenizer.encode(text).ids[:1] == [start]
    return [start, *plain] if begins and isinstance(start, int) else plain


@torch.inference_mode()
def _written(speaker: Speaker, prompts: Sequence[list[int]]) -> list[str]:
    """What the model writes most probably, word by word, up to a line break."""
    ids, mask = _padded(prompts)
    given = speaker.source.config.get("eos_token_id")
    candidates = [*(given if isinstance(given, list) else [given]), _line_break(speaker)]
    ends = [end for end in candidates if isinstance(end, int)]
    model: Any = speaker.model
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=0,
    )
    written = [_until(row[ids.shape[1] :].tolist(), ends) for row in output]
    return [speaker.tokenizer.decode(tokens).lstrip(" ").partition("\n")[0].strip() for tokens in written]


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer; what follows it is only filling."""
    place = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:place]


def _line_break(speaker: Speaker) -> int | None:
    tokens = speaker.tokenizer.encode("\n", add_special_tokens=False).ids
    return int(tokens[0]) if len(tokens) == 1 else None


def _chosen(speaker: Speaker, prompts: Sequence[list[int]], choices: Sequence[str]) -> list[str]:
    """The choice that the model finds most likely, by the sum of its tokens' log-probabilities."""
    scores = torch.stack([_log_likelihood(speaker, prompts, choice) for choice in choices], 1)
    return [choices[place] for place in scores.argmax(1).tolist()]


@torch.inference_mode()
def _log_likelihood(speaker: Speaker, prompts: Sequence[list[int]], choice: str) -> torch.Tensor:
    own = speaker.tokenizer.encode(f" {choice}", add_special_tokens=False).ids
    ids, mask = _padded([[*prompt, *own] for prompt in prompts])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    # A large vocabulary at every place would not fit into memory.
    kept = len(own) + 1
    logits = speaker.model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=kept).logits
    logged = functional.log_softmax(logits[:, :-1].float(), -1)
    return logged.gather(2, ids[:, -len(own) :, None])[..., 0].sum(1)


def _padded(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 (n, longest), padded on the left."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids, mask
