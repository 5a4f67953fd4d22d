"""From KL to Fisher: how far a model's answers move when some of its weights do, against the quadratic prediction.

For a small displacement d of the weights the divergence of the new answers from the old ones is half of d' F d, with F
the Fisher information (Sung et al., 2021, section 3.1). Here both sides are measured, in double precision: the
divergence of the smallest steps is far below what single precision can tell from its own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.errors import SpecError
from engine.models.architecture import Parameter
from engine.plan import make_plan, read_setting
from engine.spec import parse_spec
from engine.tasks.encoding import Encoded
from engine.training.build import Caches, base_model, encoded_splits
from engine.training.evaluation import to_device

STEPS = tuple(float(step) for step in np.logspace(-4, 0, 9))
"""Lengths of the displacement: the root of the sum of squares of all changes."""
GROUPS = ("top", "random", "bottom")
PROBE = 1e-5
"""Length of the displacement that slopes are measured over, in both directions."""
Entries = list[tuple[torch.Tensor, torch.Tensor]]
"""Flat views of tensors, and positions in each."""


def from_kl_to_fisher(
    model_id: str, dataset: str, *, k: int = 1_000, examples: int = 32, draws: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Measure a base model with a fresh head on validation examples.

    Args:
        model_id, dataset: as in a spec.
        k: weights of each group.
        examples: how many, the first of the validation split.
        draws: random signs of the displacement, each with all steps.
        seed: of head, signs and the random group.

    Returns:
        ``model``, ``dataset``, ``k``, ``examples`` and ``rows``, by group and step: ``group``
        (of `GROUPS`, by the size of their Fisher information), ``step``, ``kl`` (nats, one per draw),
        ``quadratic`` (its prediction, one per draw), ``diagonal`` (the prediction without interactions).

    Raises:
        SpecError: for more weights than the model has.
    """
    spec = make_plan(
        parse_spec({"model": model_id, "dataset": dataset, "method": "full", "train": {"seed": seed}})
    ).spec
    setting, caches = read_setting(spec), Caches()
    model = base_model(spec, setting, caches).double().eval()
    encoded = encoded_splits(spec, setting, caches)["validation"]
    found = measure(model, setting.architecture.backbone, encoded, k=k, examples=examples, draws=draws, seed=seed)
    return {"model": setting.source.id, "dataset": setting.dataset.id, "k": k, "examples": examples, "rows": found}


def measure(
    model: nn.Module, rows: Sequence[Parameter], encoded: Encoded, *, k: int, examples: int, draws: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of `from_kl_to_fisher` for a model in double precision; its weights end as they were."""
    named = dict(model.named_parameters())
    rows = [row for row in rows if row.eligible]
    tensors = [named[row.name] for row in rows]
    if k > sum(row.eligible for row in rows):
        raise SpecError(f"{k:,} weights are more than may be selected here.", "Ask for fewer.")
    batch = to_device(encoded.batch(np.arange(min(examples, len(encoded)))), "cpu")
    batch.pop("labels")
    with torch.no_grad():
        old = _log_probabilities(model, batch)
    fisher = fisher_diagonal(model, tensors, encoded, len(batch["input_ids"]))
    rng = torch.Generator().manual_seed(seed)
    found = []
    for group in GROUPS:
        entries, information = _chosen(group, fisher, rows, tensors, k, rng)
        signs = [torch.randint(0, 2, (k,), generator=rng).double() * 2 - 1 for _ in range(draws)]
        directions = [sign / k**0.5 for sign in signs]
        slopes = [_curvature(model, batch, old, entries, direction) for direction in directions]
        for step in STEPS:
            kl = [_divergence(model, batch, old, entries, step * direction) for direction in directions]
            found.append(
                {
                    "group": group,
                    "step": step,
                    "kl": kl,
                    "quadratic": [step**2 * slope / 2 for slope in slopes],
                    "diagonal": step**2 * float(information.sum()) / k / 2,
                }
            )
    return found


def fisher_diagonal(
    model: nn.Module, tensors: Sequence[nn.Parameter], encoded: Encoded, examples: int
) -> list[torch.Tensor]:
    """Expected Fisher information of every weight, per example and over the model's own labels; flat, by tensor."""
    totals = [torch.zeros(tensor.numel(), dtype=torch.float64) for tensor in tensors]
    for number in range(examples):
        batch = to_device(encoded.batch(np.array([number])), "cpu")
        batch.pop("labels")
        likelihood = _log_probabilities(model, batch)[0]
        for place, share in enumerate(likelihood.detach().exp().tolist()):
            gradients = torch.autograd.grad(likelihood[place], tensors, retain_graph=True, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient.reshape(-1), gradient.reshape(-1), value=share / examples)
    return totals


def _log_probabilities(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    likelihood: torch.Tensor = model(**batch).logits.log_softmax(-1)
    return likelihood


def _chosen(
    group: str,
    fisher: Sequence[torch.Tensor],
    rows: Sequence[Parameter],
    tensors: Sequence[nn.Parameter],
    k: int,
    rng: torch.Generator,
) -> tuple[Entries, torch.Tensor]:
    """The weights of a group, and their Fisher information (k,) in the same order.

    ``bottom`` are the least of those that have any: words of no example would move nothing at all.
    """
    allowed = torch.cat([_allowed(row) for row in rows])
    every = torch.cat(list(fisher))
    if group == "random":
        places = allowed.nonzero().flatten()
        places = places[torch.randperm(len(places), generator=rng)[:k]]
    else:
        worst = -1.0 if group == "top" else float("inf")
        places = torch.where(allowed & (every > 0), every, worst).topk(k, largest=group == "top").indices
    places = places.sort().values
    starts = torch.tensor([0, *(len(part) for part in fisher)]).cumsum(0)
    owners = torch.searchsorted(starts, places, right=True) - 1
    entries = [
        (tensors[number].detach().view(-1), places[owners == number] - starts[number])
        for number in owners.unique().tolist()
    ]
    return entries, every[places]


def _allowed(row: Parameter) -> torch.Tensor:
    """Which entries of a tensor some example reaches, bool, flat."""
    allowed = torch.ones(row.size, dtype=torch.bool)
    width = row.size // max(1, row.shape[0])
    for start, stop in row.frozen_rows:
        allowed[start * width : stop * width] = False
    return allowed


@contextmanager
def _moved(entries: Entries, displacement: torch.Tensor) -> Iterator[None]:
    """The weights moved by so much, and afterwards exactly as they were."""
    kept = [tensor[places].clone() for tensor, places in entries]
    parts = displacement.split([len(places) for _, places in entries])
    for (tensor, places), part in zip(entries, parts, strict=True):
        tensor.index_add_(0, places, part)
    try:
        yield
    finally:
        for (tensor, places), before in zip(entries, kept, strict=True):
            tensor.index_copy_(0, places, before)


@torch.no_grad()
def _divergence(
    model: nn.Module, batch: dict[str, torch.Tensor], old: torch.Tensor, entries: Entries, displacement: torch.Tensor
) -> float:
    """Mean divergence of the moved answers from the old ones, nats.

    ``sum p (exp(d) - 1 - d)`` with d the change of the log-probabilities: the same as ``-sum p d``, without
    the cancellation of its first order.
    """
    with _moved(entries, displacement):
        change = _log_probabilities(model, batch) - old
    return float((old.exp() * (change.expm1() - change)).sum(1).mean())


@torch.no_grad()
def _curvature(
    model: nn.Module, batch: dict[str, torch.Tensor], old: torch.Tensor, entries: Entries, direction: torch.Tensor
) -> float:
    """``u' F u`` for a direction u, F the whole Fisher matrix: mean square slope of the log-probabilities."""
    ends = []
    for sign in (1, -1):
        with _moved(entries, sign * PROBE * direction):
            ends.append(_log_probabilities(model, batch))
    slope = (ends[0] - ends[1]) / (2 * PROBE)
    return float((old.exp() * slope.square()).sum(1).mean())
