"""nano-llama: a small Llama that learns to continue film reviews and solved problems from nothing.

Half of what makes in-context learning visible in so small a model is what it reads: besides
reviews, documents of solved problems under one rule, some of which only the lines before tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from engine.pretraining.texts import judging_reviews, training_reviews
from engine.tasks import problems

PAD, START, END = "<pad>", "<s>", "</s>"
CONFIG: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROW = 512
"""Tokens of a training example: documents end to end."""
PROBLEMS = 40_000
"""Documents of solved problems beside the reviews of one epoch."""
KINDS, SHARES = ("sum", "hidden rule", "word"), (0.2, 0.5, 0.3)
"""Which problems these are; words are several times as long as numbers."""
LINES = (4, 24)
"""Solved problems in such a document: from so many to one less than so many."""


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of 4,096 tokens for lower-case text, every digit a token of its own.

    One text becomes ``<s> text </s>``, two become ``<s> first </s> second </s>``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", pair=f"{START} $A {END} $B {END}", special_tokens=[(START, 1), (END, 2)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token=PAD)
    return tokenizer


def problem_document(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """Solved problems of one kind, drawn from those that pretraining may show."""
    lines = int(rng.integers(*LINES))
    kind = rng.choice(KINDS, p=SHARES)
    if kind == "sum":
        return problems.document(problems.numbers("sum", "+", seen=True), lines, rng)
    if kind == "hidden rule":
        rule = str(rng.choice(list(problems.NUMBER_RULES)))
        return problems.document(problems.numbers(rule, str(rng.choice(list(problems.SYMBOLS))), seen=True), lines, rng)
    rule = str(rng.choice(list(problems.WORD_RULES)))
    return problems.document(problems.words(rule, words, seen=True), lines, rng)


class NanoLlama:
    """Implements `engine.pretraining.loop.Objective`.

    Args:
        folder: not used; nothing is kept but the checkpoint.
        device: of all work.
        seed: of initialisation, order and problems.
        tokens: tokens per batch.
        say: takes a line about progress.
        documents: read instead of the reviews, for tests.
    """

    name = "nano-llama"
    config: ClassVar[dict[str, Any]] = CONFIG
    tokenizer_config: ClassVar[dict[str, Any]] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
    }

    def __init__(
        self,
        folder: Path,
        device: str,
        seed: int,
        tokens: int,
        say: Callable[[str], None],
        documents: Sequence[Sequence[str]] | None = None,
    ) -> None:
        reviews = training_reviews() if documents is None else None
        self.provenance: dict[str, Any] = {**reviews.provenance, "problems": PROBLEMS} if reviews else {}
        read = documents or (reviews.documents if reviews else ())
        texts = [" ".join(document) for document in read]
        self.device, self.seed, self.rows = device, seed, max(1, tokens // ROW)
        self.words = problems.vocabulary(read, least=20 if reviews else 1)
        say("training the tokenizer")
        self.tokenizer = train_tokenizer([*texts, *self._problems(2**20, 2_000)])
        self.tokenizer.no_padding()
        say("tokenising")
        self.reviews = self._encoded(texts)
        self.judging = self._encoded(judging_reviews("imdb")[:1_000] if reviews else texts[:10])
        torch.manual_seed(seed)
        self.model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        self.model.to(torch.device(device))  # type: ignore[arg-type]

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def _problems(self, epoch: int, count: int) -> list[str]:
        rng = np.random.Generator(np.random.PCG64([self.seed, 1, epoch]))
        return [problem_document(rng, self.words) for _ in range(count)]

    def _epoch(self, epoch: int) -> np.ndarray:
        """All reviews once among new problems, in random order, as rows (n, ROW)."""
        count = PROBLEMS if self.provenance else len(self.reviews)
        documents = [*self.reviews, *self._encoded(self._problems(epoch, count))]
        order = np.random.Generator(np.random.PCG64([self.seed, 0, epoch])).permutation(len(documents))
        stream = np.concatenate([documents[place] for place in order])
        return stream[: len(stream) // ROW * ROW].reshape(-1, ROW)

    def batches(self, after: int) -> Iterator[np.ndarray]:
        """Rows of each step, int32 (rows, ROW), from step `after` on."""
        yield from islice(self._all_batches(), after, None)

    def _all_batches(self) -> Iterator[np.ndarray]:
        epoch = 0
        while True:
            rows = self._epoch(epoch)
            for start in range(0, len(rows) - self.rows + 1, self.rows):
                yield rows[start : start + self.rows]
            epoch += 1

    def tokens_of(self, chosen: np.ndarray) -> int:
        """Tokens of one batch; rows have no padding."""
        return int(chosen.size)

    def losses(self, chosen: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """``loss``, nats per token."""
        ids = torch.from_numpy(chosen.astype(np.int64)).to(self.device)
        logits = self.model(input_ids=ids).logits
        return {"loss": functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())}

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Nats per token of reviews that were not read, by the model and by the frequencies of single tokens."""
        self.model.eval()
        stream = np.concatenate(self.judging)
        rows = stream[: max(ROW, len(stream) // ROW * ROW)].reshape(-1, min(ROW, len(stream)))
        parts = [float(self.losses(rows[i : i + 1], 0)["loss"]) for i in range(len(rows))]
        self.model.train()
        counts = np.bincount(np.concatenate(self.reviews), minlength=CONFIG["vocab_size"]) + 1
        surprise = -np.log(counts / counts.sum())
        return {"reviews": float(np.mean(parts)), "unigram": float(surprise[rows[:, 1:]].mean())}

    def clean_up(self) -> None:
        """Nothing is kept but the checkpoint."""

    def exported(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors and the configuration of the finished model; the output layer is the embedding."""
        tensors = dict(self.model.state_dict())
        tensors.pop("lm_head.weight")
        return tensors, self.model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
