"""What nano-llama has learned: perplexity of reviews it never read, real words in its samples, tasks in context.

python -m engine bench language --out results

The file in-context.json among the results is the one that the page shows: `assets/reference/in-context.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench import options
from engine.errors import SpecError
from engine.prompting.measure import Speaker, by_shots, load_speaker
from engine.prompting.tasks import TASKS
from engine.stats.intervals import wilson
from engine.tasks.reviews import load_reviews

SAMPLES, TOKENS = 50, 100
ROW = 512
SHOTS = (0, 1, 2, 4, 8)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_QUESTION = re.compile(r"[a-z']+(?= =)")
"""A word to be changed, in a problem of the model's own: scrambled on purpose."""


def main(argv: Sequence[str]) -> int:
    """Measure, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m engine bench language", description=__doc__)
    parser.add_argument("--model", default="nano-llama")
    parser.add_argument("--reviews", type=options.count, default=500, help="held-out reviews that are read")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--out")
    given = parser.parse_args(argv)
    folder = Path(given.out or tempfile.mkdtemp(prefix="peftscope-language-"))
    speaker = load_speaker(given.model)
    report: dict[str, Any] = {"perplexity": perplexity(speaker, given.reviews)}
    report["samples"] = texts = samples(speaker, given.seed)
    report["words"] = words(texts)
    report["in_context"] = {task: by_shots(speaker, task, SHOTS) for task in TASKS}
    print("\n".join(_lines(report)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "language.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    answered = json.dumps({given.model: report["in_context"]}, indent=1)
    (folder / "in-context.json").write_text(answered, encoding="utf-8")
    print(f"written to {folder}")
    return 0


def perplexity(speaker: Speaker, count: int) -> dict[str, float]:
    """Per token of IMDB reviews of the test split: the model's, and that of the frequencies of single tokens.

    The frequencies are those of the training split, every token once more than it occurs.
    """
    import torch
    from torch.nn import functional

    splits = load_reviews("imdb").splits
    read, held = ([e.ids for e in speaker.tokenizer.encode_batch_fast(splits[n].texts)] for n in ("train", "test"))
    stream = np.concatenate([np.array(ids) for ids in held[:count]])
    rows = torch.from_numpy(stream[: len(stream) // ROW * ROW].reshape(-1, ROW))
    total = 0.0
    with torch.inference_mode():
        for row in rows:
            logits = speaker.model(input_ids=row[None]).logits[0, :-1]
            total += float(functional.cross_entropy(logits, row[1:]))
    size = int(speaker.source.config["vocab_size"])
    counts = np.bincount(np.concatenate([np.array(ids) for ids in read]), minlength=size) + 1
    surprise = -np.log(counts / counts.sum())
    return {
        "model": math.exp(total / len(rows)),
        "unigram": math.exp(float(surprise[rows[:, 1:].numpy()].mean())),
        "tokens": int(rows.numel()),
    }


def samples(speaker: Speaker, seed: int) -> list[str]:
    """Texts that the model writes from nothing but its start token, at temperature 1 from its 50 likeliest words."""
    import torch

    start = speaker.source.config.get("bos_token_id", 0)
    model: Any = speaker.model
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        rows = model.generate(
            input_ids=torch.full((SAMPLES, 1), start),
            attention_mask=torch.ones(SAMPLES, 1, dtype=torch.int64),
            do_sample=True,
            top_k=50,
            min_new_tokens=TOKENS // 2,
            max_new_tokens=TOKENS,
            pad_token_id=0,
        )
    return [speaker.tokenizer.decode(row.tolist()).strip() for row in rows]


def words(texts: Sequence[str]) -> dict[str, Any]:
    """Share of words that stand in an English dictionary, and the same with the questions of problems counted.

    The last word of a text may be cut off and is left out.

    Raises:
        SpecError: when the dictionary is not installed.
    """
    try:
        from spellchecker import SpellChecker
    except ModuleNotFoundError:
        raise SpecError("The dictionary is missing.", "Run: pip install -r requirements-dev.txt") from None
    known = SpellChecker()

    def strange(text: str) -> list[str]:
        return [word for word in _words(text) if not known.known([word, word.split("'")[0]])]

    every = [word for text in texts for word in _words(text)]
    prose = [_QUESTION.sub("", text.lower()) for text in texts]
    counted, unknown = sum(len(_words(text)) for text in prose), [word for text in prose for word in strange(text)]
    share = wilson(counted - len(unknown), counted)
    return {
        "known": counted - len(unknown),
        "all": counted,
        "share": share.estimate,
        "ci95": [share.low, share.high],
        "share_with_questions": 1 - sum(len(strange(text)) for text in texts) / len(every),
        "not": sorted(set(unknown)),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())[:-1]


def _lines(report: dict[str, Any]) -> list[str]:
    read, spelt = report["perplexity"], report["words"]
    lines = [
        f"perplexity per token of {read['tokens']:,} held-out tokens: {read['model']:.1f}, "
        f"unigram {read['unigram']:.0f}, ratio {read['unigram'] / read['model']:.1f}",
        f"dictionary words in {len(report['samples'])} samples: {spelt['known']:,} of {spelt['all']:,}, "
        f"{100 * spelt['share']:.1f} %; {100 * spelt['share_with_questions']:.1f} % with the words it scrambles",
    ]
    for task, found in report["in_context"].items():
        shown = ", ".join(
            f"{row['shots']} shots {row['correct']} ({row['fresh_correct']} of {row['fresh_total']} new)"
            for row in found["rows"]
        )
        lines.append(f"{task}, right of {found['questions']}: {shown}; {found['naive_way']} {found['naive']:.2f}")
    return lines
