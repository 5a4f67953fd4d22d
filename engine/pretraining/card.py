"""The model card that lies beside the weights, filled in from what was measured."""

from __future__ import annotations

import math
from typing import Any

_COMMON = """# {name}

{what}

Made {date} by `python -m engine pretrain {name}`, on {hardware}, in {minutes} minutes of training,
seed {seed}. `made.json` beside this card holds every setting, package version and loss.

| | |
|---|---|
| parameters | {parameters:,} |
| steps | {steps:,}, of {tokens_per_step:,} tokens |
| tokens read | {tokens:,} (with repetition, padding left out) |
| optimizer | AdamW (0.9, 0.98), learning rate {lr:g}, warm-up {warmup}, half cosine, weight decay {weight_decay:g} |
{rows}

## Texts

The training splits of the embedded collections (IMDB reviews, Rotten Tomatoes sentences), as the lab
itself splits them, from {source}: {documents:,} documents, {sentences:,} sentences. Every sentence
whose normalised form equals a text of a validation or test split, or a sentence of one, was left out
({sentences_dropped:,} of them), and what was kept was checked again, by SHA-256, against the
{forbidden_hashes:,} forbidden ones: none of them is in it. No label was read.
{more}
## Licence

The weights may be used under Apache-2.0, the licence of MiniLM. The texts stay their authors'; they
were published for research.

## What it cannot do

{limits}
"""

_BERT = {
    "what": "A BERT of 4 layers, width 128, for the lab: small enough that fine-tuning takes seconds on a laptop's\n"
    "processor. Distilled from all-MiniLM-L6-v2, whose tokenizer it shares.",
    "more": "",
    "limits": "It has read nothing but film reviews in English. It is a teaching model: for work, use its teacher.\n"
    "Sentences longer than 254 tokens were never seen, and no sentence pairs.",
}
_LLAMA = {
    "what": "A Llama of 6 layers, width 192, for the lab: grouped-query attention, rotary positions, gated MLP, no\n"
    "biases, and a byte-level BPE tokenizer of 4,096 tokens for lower-case text. It shows in-context learning\n"
    "on small problems.",
    "more": "\nBeside the reviews it read generated problems, one a line, {problems:,} documents an epoch: sums,\n"
    "numbers under a hidden rule, and copied, reversed, rotated and shuffled words. One in five pairs of\n"
    "numbers and one in five words never occur in them. The generators are the lab's own: those of\n"
    "reasoning-gym would have brought eleven packages for a dozen lines.\n",
    "limits": "It writes film reviews that mean nothing, knows no facts, follows no instructions, and can only add\n"
    "numbers of one digit. Everything is lower case. Reviews used offensive words, and so may it.",
}


def card_of(facts: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: what `engine.pretraining.make.make` measured.
    """
    settings, texts, hardware = facts["settings"], facts["texts"], facts["provenance"]["hardware"]
    is_bert = settings["name"] == "nano-bert"
    words = _BERT if is_bert else _LLAMA
    device = hardware["device"]
    where = f"an {hardware['cpu']}, {facts['threads']} thread(s)" if device == "cpu" else f"one {device}"
    shown = {
        **settings,
        **facts,
        **{key: texts.get(key, 0) for key in _COUNTS},
        "source": texts.get("source", "a test"),
    }
    return _COMMON.format(
        **shown,
        what=words["what"],
        more=words["more"].format(problems=texts.get("problems", 0)),
        limits=words["limits"],
        hardware=where,
        minutes=round(facts["seconds"] / 60),
        rows="\n".join(_bert_rows(facts["held_out"]) if is_bert else _llama_rows(facts["held_out"])),
    )


_COUNTS = ("documents", "sentences", "sentences_dropped", "forbidden_hashes")


def _bert_rows(held: dict[str, float]) -> list[str]:
    return [
        f"| of the teacher's variance not predicted, sequences held out | layer 3: {held['layer 2']:.3f}, "
        f"layer 6: {held['layer 4']:.3f}, mean of layer 6: {held['sentence']:.3f} |",
        f"| masked words, among the words of the batch | {held['words']:.2f} nats |",
    ]


def _llama_rows(held: dict[str, float]) -> list[str]:
    return [
        f"| perplexity per token of reviews it never read | {math.exp(held['reviews']):.1f} |",
        f"| the same, by the frequencies of single tokens | {math.exp(held['unigram']):.0f} |",
    ]
