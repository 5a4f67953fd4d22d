"""PaFi's own oracles: the smallest weights, whatever the data, nested and exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.methods.pafi import PaFi
from engine.sparse.selection import EXCLUDED, select
from tests.methods.driver import Training, batches_of, make
from tests.tiny import architecture_of, tiny_bert


def attached(k: int, model: nn.Module | None = None, seed: int = 0, **settings: Any) -> tuple[PaFi, nn.Module]:
    model = model or tiny_bert()
    method = make(PaFi, model, {"k": k, **settings}, seed=seed)
    assert isinstance(method, PaFi)
    return method, method.attach(model)


def entries(method: PaFi) -> set[tuple[int, int]]:
    selection = method.selection()
    return set(zip(selection.tensor.tolist(), selection.index.tolist(), strict=True))


def magnitudes(method: PaFi, model: nn.Module) -> list[torch.Tensor]:
    named = dict(model.named_parameters())
    return [named[row.name].detach().flatten().abs() for row in method.rows]


@pytest.mark.parametrize("k", [5, 900, 4000])
def test_no_frozen_weight_is_smaller_than_a_selected_one(k: int) -> None:
    method, model = attached(k)
    values = magnitudes(method, model)
    chosen = [torch.zeros(len(value), dtype=torch.bool) for value in values]
    for tensor, index in entries(method):
        chosen[tensor][index] = True
    everything, mask = torch.cat(values), torch.cat(chosen)
    assert int(mask.sum()) == k
    assert everything[mask].max() <= everything[~mask].min()


def test_masks_are_nested() -> None:
    small, large = (entries(attached(k)[0]) for k in (700, 1900))
    assert small < large


def test_signs_and_scale_of_the_weights_do_not_matter() -> None:
    flipped = tiny_bert()
    with torch.no_grad():
        for parameter in flipped.parameters():
            parameter.mul_(-4.0)
    assert entries(attached(900)[0]) == entries(attached(900, flipped)[0])


def test_equal_magnitudes_go_to_the_first_tensors_or_to_random_ones() -> None:
    """All biases of the tiny model are zero, and there are more of them than are asked for."""
    method, model = attached(50)
    zeros = [(t, int(i)) for t, value in enumerate(magnitudes(method, model)) for i in (value == 0).nonzero()]
    assert entries(method) == set(zeros[:50])
    random, again, other = (entries(attached(50, seed=seed, ties="random")[0]) for seed in (1, 1, 2))
    assert random == again != other
    assert random < set(zeros)


def test_revealing_the_smallest_while_training_ends_with_the_same_mask() -> None:
    """Weights that are not selected do not move, so that their order stays."""
    model = tiny_bert()
    run = Training(make(PaFi, model, {"k": 700}), model, lr=0.01).run(batches_of(6))
    method = run.method
    assert isinstance(method, PaFi)
    remaining = magnitudes(method, model)
    for tensor, index in entries(method):
        remaining[tensor][index] = EXCLUDED
    more = select(lambda number: remaining[number], [len(value) for value in remaining], 500, smallest=True)
    added = set(zip(more.tensor.tolist(), more.index.tolist(), strict=True))
    assert entries(method) | added == entries(attached(1200)[0])


def test_words_that_never_occur_are_counted_as_unmoved() -> None:
    model = tiny_bert()
    method = make(PaFi, model, {"k": 4000})
    run = Training(method, model).run(batches_of(2))
    seen = {int(token) for batch in batches_of(2) for token in batch["input_ids"].flatten()}
    assert isinstance(method, PaFi)
    tokens = next(n for n, row in enumerate(method.rows) if row.role == "token")
    unseen = sum(tensor == tokens and index // 32 not in seen for tensor, index in entries(method))
    assert 0 < unseen <= method.unmoved() < 4000
    assert run.step == 2


def test_the_mask_needs_no_data_and_is_complete_before_the_first_step() -> None:
    method, model = attached(900)
    before = entries(method)
    architecture = architecture_of(model)
    assert len(before) == PaFi.size(architecture, PaFi.Config(k=900))
    assert not PaFi.scores_first


def test_ranked_tensor_by_tensor_each_gives_the_same_share() -> None:
    method, model = attached(1500, scope="tensor")
    total = sum(row.eligible for row in method.rows)
    for number, (row, values) in enumerate(zip(method.rows, magnitudes(method, model), strict=True)):
        own = sorted(index for tensor, index in entries(method) if tensor == number)
        assert abs(len(own) - 1500 * row.eligible / total) < 1
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[own] = True
        if own:
            assert values[mask].max() <= values[~mask].min(), row.name
