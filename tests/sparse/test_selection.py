"""Exact selection against sorting everything."""

from __future__ import annotations

import pytest
import torch

from engine.errors import BudgetError, RunFailed
from engine.sparse import selection
from engine.sparse.selection import EXCLUDED, Picks, exclude, select


def pick(tensors: list[torch.Tensor], k: int, **settings: object) -> Picks:
    return select(lambda number: tensors[number], [len(tensor) for tensor in tensors], k, **settings)  # type: ignore[arg-type]


def pairs(picks: Picks) -> list[tuple[int, int]]:
    return list(zip(picks.tensor.tolist(), picks.index.tolist(), strict=True))


def brute_force(tensors: list[torch.Tensor], k: int, smallest: bool = False) -> list[tuple[int, int]]:
    entries = [
        (score if smallest else -score, number, index)
        for number, tensor in enumerate(tensors)
        for index, score in enumerate(tensor.tolist())
        if score >= 0
    ]
    return sorted((number, index) for _, number, index in sorted(entries)[:k])


def scored(kind: str, seed: int) -> list[torch.Tensor]:
    """Scores of tensors of different sizes, some entries excluded."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for size in (1, 300, 7, 1200, 64):
        scores = torch.rand(size, generator=generator)
        if kind == "ties":
            scores = (scores * 6).floor() / 8
        if kind == "tiny":
            scores = scores * 1e-42  # subnormal numbers
        if kind == "wide":
            scores = 10 ** (scores * 60 - 30)
        scores[torch.rand(size, generator=generator) < 0.1] = EXCLUDED
        tensors.append(scores)
    return tensors


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("kind", ["plain", "ties", "tiny", "wide"])
@pytest.mark.parametrize("k", [1, 2, 37, 800, 1300])
def test_selects_what_sorting_everything_selects(kind: str, k: int, smallest: bool) -> None:
    tensors = scored(kind, seed=k)
    assert pairs(pick(tensors, k, smallest=smallest)) == brute_force(tensors, k, smallest)


@pytest.mark.parametrize("kind", ["plain", "ties", "tiny", "wide"])
@pytest.mark.parametrize("k", [1, 2, 37, 800, 1300])
def test_ranking_parts_and_counting_find_the_same_threshold(kind: str, k: int) -> None:
    tensors = scored(kind, seed=k)
    sizes = [len(tensor) for tensor in tensors]

    def keys(number: int) -> torch.Tensor:
        return tensors[number].view(torch.int32)

    assert selection._threshold_by_ranking(keys, sizes, k) == selection._threshold_by_counting(keys, sizes, k)
    for find in (selection._threshold_by_ranking, selection._threshold_by_counting):
        with pytest.raises(BudgetError, match=r"only .* can be"):
            find(keys, sizes, sum(sizes))


@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("smallest", [False, True])
def test_ranking_and_counting_each_tensor_agree(kind: str, smallest: bool) -> None:
    tensors, quotas = scored(kind, 2), [0, 40, 3, 500, 1]

    def keys(number: int) -> torch.Tensor:
        return selection._keys(tensors[number], smallest)

    counted = selection.select_by_tensor(tensors.__getitem__, list(map(len, tensors)), quotas, smallest=smallest)
    assert pairs(selection._each_ranked(keys, tensors.__getitem__, quotas, [1, 2, 3, 4])) == pairs(counted)
    with pytest.raises(BudgetError, match=r"only .* can be"):
        selection._each_ranked(keys, tensors.__getitem__, [0, 300], [1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_a_gpu_selects_what_a_cpu_does(kind: str, seed: int | None) -> None:
    tensors = scored(kind, seed=1)
    there = [tensor.cuda() for tensor in tensors]
    assert pairs(pick(there, 500, seed=seed)) == pairs(pick(tensors, 500, seed=seed))
    sizes, quotas = [len(tensor) for tensor in tensors], [0, 40, 3, 500, 1]
    here, far = (selection.select_by_tensor(side.__getitem__, sizes, quotas, seed=seed) for side in (tensors, there))
    assert pairs(far) == pairs(here)


def test_ties_go_to_the_lowest_tensor_and_index() -> None:
    tensors = [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])]
    assert pairs(pick(tensors, 3)) == [(0, 1), (0, 2), (1, 1)]
    assert pairs(pick(tensors, 2, smallest=True)) == [(0, 0), (0, 1)]


def test_random_ties_are_fair_exact_and_repeatable() -> None:
    tensors = [torch.zeros(500), torch.cat([torch.ones(20), torch.zeros(500)])]
    first = pairs(pick(tensors, 120, seed=1))
    assert first == pairs(pick(tensors, 120, seed=1))
    assert len(set(first)) == 120
    assert {(1, index) for index in range(20)} <= set(first)  # strictly better ones are always in
    other = pairs(pick(tensors, 120, seed=2))
    assert len(set(first) & set(other)) < 60
    in_first_tensor = sum(number == 0 for number, _ in first)
    assert 25 <= in_first_tensor <= 75  # about half of the 100 tied ones


@pytest.mark.parametrize("seed", [None, 3])
def test_a_tensor_cut_in_two_gives_the_same_entries(seed: int | None) -> None:
    whole = torch.cat(scored("ties", 5))
    in_one = [index for _, index in pairs(pick([whole], 400, seed=seed))]
    in_two = [index + 700 * number for number, index in pairs(pick([whole[:700], whole[700:]], 400, seed=seed))]
    assert in_one == in_two


def test_more_than_there_are_is_an_error() -> None:
    tensors = [torch.tensor([1.0, EXCLUDED]), torch.tensor([EXCLUDED])]
    assert pairs(pick(tensors, 1)) == [(0, 0)]
    with pytest.raises(BudgetError, match="only 1 can be"):
        pick(tensors, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        pick([torch.tensor([1.0, bad])], 1)


def test_excluding_rows() -> None:
    scores = exclude(torch.arange(8.0), ((0, 1), (3, 4)), row_size=2)
    assert scores.tolist() == [EXCLUDED, EXCLUDED, 2, 3, 4, 5, EXCLUDED, EXCLUDED]
