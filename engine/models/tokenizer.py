"""A model's tokenizer, by the tokenizers library alone: no torch, no transformers."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelError
from engine.models.source import ModelSource


def tokenizer_of(source: ModelSource) -> Tokenizer:
    """The tokenizer of a model: a new object each time, truncation off, padding on the right with its padding token.

    A model without token types (segments) gets type id 0 everywhere, whatever its file says.

    Raises:
        ModelError: when tokenizer.json is missing, damaged, or knows more tokens than the model.
    """
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{source.folder} has no tokenizer.json.",
            "Save it with AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not has_token_types(source):
            plan["post_processor"] = _untyped(plan.get("post_processor"))
        tokenizer = Tokenizer.from_str(json.dumps(plan))
    except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
        raise ModelError(f"{path} cannot be read: {error}.", "Save or download the tokenizer again.") from None
    _check_size(source, tokenizer)
    tokenizer.no_truncation()
    pad = source.config["pad_token_id"] or 0
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "")
    return tokenizer


def has_token_types(source: ModelSource) -> bool:
    """Whether the model tells the two sentences of a pair apart by token types."""
    typed = any(role == "type" for _, role in source.family.before)
    return typed and int(source.config.get("type_vocab_size", 2)) > 1


def _check_size(source: ModelSource, tokenizer: Tokenizer) -> None:
    rows = source.config.get("vocab_size")
    highest = max(tokenizer.get_vocab().values(), default=0)
    if isinstance(rows, int) and highest >= rows:
        raise ModelError(
            f"The tokenizer in {source.folder} has a token {highest:,}, but the model only {rows:,} embeddings.",
            "Use the tokenizer that belongs to the model.",
        )


def _untyped(processor: dict[str, Any] | None) -> dict[str, Any]:
    """A post-processor like this one that gives both sentences of a pair the type 0."""
    steps = processor["processors"] if processor and processor["type"] == "Sequence" else [processor]
    changed = [_untyped_step(step) for step in steps if step]
    if not any(step["type"] in ("TemplateProcessing", "RobertaProcessing") for step in changed):
        changed.append(
            _template([{"Sequence": {"id": "A"}}], [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}], {})
        )
    return changed[0] if len(changed) == 1 else {"type": "Sequence", "processors": changed}


def _untyped_step(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "TemplateProcessing":
        return _template(step["single"], step["pair"], step["special_tokens"])
    if step["type"] == "BertProcessing":
        start, end = ({"SpecialToken": {"id": step[key][0]}} for key in ("cls", "sep"))
        first, second = ({"Sequence": {"id": key}} for key in "AB")
        tokens = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (step["cls"], step["sep"])}
        return _template([start, first, end], [start, first, end, second, end], tokens)
    return step


def _template(single: list[Any], pair: list[Any], tokens: dict[str, Any]) -> dict[str, Any]:
    def zero(pieces: list[Any]) -> list[Any]:
        return [{kind: {**piece, "type_id": 0} for kind, piece in item.items()} for item in pieces]

    return {"type": "TemplateProcessing", "single": zero(single), "pair": zero(pair), "special_tokens": tokens}
