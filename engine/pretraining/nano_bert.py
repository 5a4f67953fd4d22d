"""nano-bert: a small BERT distilled from MiniLM on film reviews.

From masked sentences the student predicts three things of the unmasked ones: the teacher's
hidden states half-way and at the end, its mean state from the student's pooler, and the masked
words. Its embeddings start as the principal components of the teacher's. Hidden states as
targets follow TinyBERT (Jiao et al., 2020, section 3.1), masking follows BERT (Devlin et al.,
2019, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel

from engine.models.catalogue import MINILM, resolve_model
from engine.models.tokenizer import tokenizer_of
from engine.pretraining.sequences import batches, encode_documents
from engine.pretraining.teacher import States, remove_states, states_of, teacher
from engine.pretraining.texts import training_reviews

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "vocab_size": 30_522,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
STUDENT_LAYERS = (2, 4)
"""Layers that predict the teacher's `LAYERS`."""
MASKED = 0.15
WORD_WEIGHT = 0.1
ATTENTION = "eager"
"""On sentences of some thirty tokens 1.6 times as many steps/s on a CPU as fused attention."""
HELD_OUT = 200
"""One of so many sequences is never trained on and measures the losses; others of its review may be."""


class Student(nn.Module):
    """The model and what it predicts with while it is pretrained."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.words = BertForMaskedLM(config).cls
        self.words.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.states = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in STUDENT_LAYERS)
        self.sentence = nn.Linear(config.hidden_size, width)

    def forward(
        self, batch: dict[str, torch.Tensor], targets: torch.Tensor, originals: torch.Tensor, chosen: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The losses of one batch.

        Args:
            batch: masked ``input_ids`` and ``attention_mask``, (n, longest).
            targets: the teacher's states at the unpadded tokens, (tokens, layers, width), scaled.
            originals: unmasked ids, (n, longest).
            chosen: which of them are to be predicted, bool (n, longest).

        Returns:
            0-d tensors: per layer and for the sentence the share of the teacher's variance that is
            not predicted; ``words``, nats per masked word among the words of the batch.
        """
        real = batch["attention_mask"].bool()
        table = _Table.of(self.bert.embeddings.word_embeddings.weight, batch["input_ids"], originals)
        embedded = table(batch["input_ids"])
        output = self.bert(inputs_embeds=embedded, attention_mask=batch["attention_mask"], output_hidden_states=True)
        losses = {}
        for place, (predict, layer) in enumerate(zip(self.states, STUDENT_LAYERS, strict=True)):
            losses[f"layer {layer}"] = functional.mse_loss(
                predict(output.hidden_states[layer][real]), targets[:, place]
            )
        means = _means(targets[:, -1], batch["attention_mask"])
        losses["sentence"] = functional.mse_loss(self.sentence(output.pooler_output), means)
        losses["words"] = self._word_loss(output.last_hidden_state[chosen], originals[chosen], table)
        return losses

    def _word_loss(self, states: torch.Tensor, truth: torch.Tensor, table: _Table) -> torch.Tensor:
        """Cross entropy over the words of the batch: the whole vocabulary would cost more than the model."""
        if not len(truth):  # a small batch in which no word was masked
            return states.sum() * 0
        head = self.words.predictions
        scores = functional.linear(head.transform(states), table.rows, head.decoder.bias[table.ids])
        return functional.cross_entropy(scores, table.places(truth))


@dataclass(frozen=True)
class _Table:
    """The embeddings of one batch's words, read once: a second reading would fill a second gradient of all words.

    Attributes:
        ids: int64 (words,), ascending.
        rows: (words, hidden).
    """

    ids: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, *batches: torch.Tensor) -> _Table:
        ids = torch.cat([batch.flatten() for batch in batches]).unique()
        return cls(ids, functional.embedding(ids, weight))

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Where the words stand in the table."""
        return torch.searchsorted(self.ids, ids)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Their embeddings, (*ids, hidden)."""
        return functional.embedding(self.places(ids), self.rows)


def _means(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of each sequence's states, (n, width)."""
    number = torch.arange(len(mask), device=mask.device).repeat_interleave(mask.sum(1))
    sums = torch.zeros(len(mask), states.shape[1], device=states.device).index_add_(0, number, states)
    return sums / mask.sum(1, keepdim=True)


class NanoBert:
    """Implements `engine.pretraining.loop.Objective`.

    Args:
        folder: where the teacher's states are kept.
        device: of all work.
        seed: of initialisation, order and masks.
        tokens: padded tokens per batch.
        say: takes a line about progress.
        documents: read instead of the reviews, for tests.
    """

    name = "nano-bert"
    config: ClassVar[dict[str, Any]] = CONFIG
    tokenizer_config: ClassVar[dict[str, Any]] = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": CONFIG["max_position_embeddings"],
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }

    def __init__(self, folder: Path, device: str, seed: int, tokens: int, say: Any, documents: Any = None) -> None:
        reviews = training_reviews() if documents is None else None
        self.provenance: dict[str, Any] = reviews.provenance if reviews else {}
        self.tokenizer = tokenizer_of(resolve_model(MINILM))
        self.encoded = encode_documents(documents or (reviews.documents if reviews else ()), self.tokenizer, seed)
        self.folder, self.device, self.seed, self.tokens = folder, device, seed, tokens
        self.targets = states_of(self.encoded, folder, device, say)
        self.shift, self.scale = (part.to(device) for part in _spread(self.targets))
        torch.manual_seed(seed)
        config = BertConfig(**CONFIG | {"attn_implementation": ATTENTION})
        self.model = Student(config, self.targets.values.shape[2]).to(device)
        _start_from_teacher(self.model)
        places = np.arange(len(self.encoded))
        self.held = places[places % HELD_OUT == 0]
        self.train = places[places % HELD_OUT != 0]

    def batches(self, after: int) -> Iterator[np.ndarray]:
        """Sequences of each step, from step `after` on."""
        order = batches(self.encoded.lengths[self.train], self.tokens, self.seed)
        yield from (self.train[part] for part in islice(order, after, None))

    def tokens_of(self, chosen: np.ndarray) -> int:
        """Tokens of one batch, padding left out."""
        return int(self.encoded.lengths[chosen].sum())

    def losses(self, chosen: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """All losses of one batch, ``loss`` being what is minimised."""
        batch = {key: torch.from_numpy(array) for key, array in self.encoded.batch(chosen).items()}
        originals, mask = batch["input_ids"], batch["attention_mask"]
        masked, picked = self._masked(originals, mask, step)
        targets = torch.from_numpy(self.targets.of(chosen)).to(self.device).float()
        inputs = {"input_ids": masked.to(self.device), "attention_mask": mask.to(self.device)}
        losses: dict[str, torch.Tensor] = self.model(
            inputs, (targets - self.shift) / self.scale, originals.to(self.device), picked.to(self.device)
        )
        losses["loss"] = sum(losses.values()) + (WORD_WEIGHT - 1) * losses["words"]
        return losses

    def _masked(self, ids: torch.Tensor, mask: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the words 15 % are picked; of these 80 % become [MASK], 10 % a random word, 10 % stay."""
        rng = np.random.Generator(np.random.PCG64([self.seed, 1, step]))
        *markers, mask_token = (self.tokenizer.token_to_id(f"[{name}]") or 0 for name in ("CLS", "SEP", "PAD", "MASK"))
        special = torch.isin(ids, torch.tensor(markers))
        picked = (torch.from_numpy(rng.random(ids.shape)) < MASKED) & mask.bool() & ~special
        fate = torch.from_numpy(rng.random(ids.shape))
        changed = torch.where(picked & (fate < 0.8), mask_token, ids)
        random = torch.from_numpy(rng.integers(1000, CONFIG["vocab_size"], ids.shape))
        return torch.where(picked & (fate >= 0.9), random, changed), picked

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Mean losses over the sequences that are not trained on."""
        self.model.eval()
        order = batches(self.encoded.lengths[self.held], self.tokens, 0)
        totals: dict[str, float] = {}
        done = 0
        while done < len(self.held):
            chosen = self.held[next(order)]
            done += len(chosen)
            for name, loss in self.losses(chosen, 0).items():
                totals[name] = totals.get(name, 0.0) + float(loss) * len(chosen)
        self.model.train()
        return {name: total / done for name, total in totals.items()}

    def clean_up(self) -> None:
        """Remove the teacher's states: gigabytes that only more training would need."""
        remove_states(self.folder)

    def exported(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors and the configuration of the finished model, with its head for masked words."""
        tensors = {f"bert.{name}": tensor for name, tensor in self.model.bert.state_dict().items()}
        head = {f"cls.{name}": tensor for name, tensor in self.model.words.state_dict().items()}
        head.pop("cls.predictions.decoder.weight")
        head.pop("cls.predictions.decoder.bias")  # the same tensor as cls.predictions.bias
        return {**tensors, **head}, self.model.bert.config.to_dict() | {"architectures": ["BertForMaskedLM"]}


def _spread(targets: States) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean per dimension (layers, width) and one standard deviation per layer (layers, 1), from the first batches."""
    sample = torch.from_numpy(np.array(targets.values[:100_000])).float()
    return sample.mean(0), sample.var(0).mean(1, keepdim=True).sqrt()


@torch.no_grad()
def _start_from_teacher(student: Student) -> None:
    """The embeddings of words, positions and types: the teacher's, projected on their first principal components."""
    own, other = student.bert.embeddings, teacher().embeddings
    words = other.word_embeddings.weight
    _, _, axes = torch.linalg.svd(words - words.mean(0), full_matrices=False)
    basis = axes[: own.word_embeddings.embedding_dim].T
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        weight = getattr(own, name).weight
        weight.copy_(getattr(other, name).weight @ basis)
