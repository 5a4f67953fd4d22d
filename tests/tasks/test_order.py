"""The order of examples: permutations per epoch, the same whatever the batches are."""

from __future__ import annotations

import numpy as np
import pytest

from engine.tasks.order import batch_order, curve_sample


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (7, 7), (5, 16), (101, 8)])
def test_each_epoch_is_a_permutation(n: int, batch_size: int) -> None:
    order = batch_order(n, batch_size, steps=60, seed=4)
    assert order.shape == (60, batch_size)
    assert order.dtype == np.int64
    stream = order.ravel()
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_does_not_depend_on_batch_size_or_steps() -> None:
    long = batch_order(50, 4, 100, seed=1).ravel()
    assert np.array_equal(long[:240], batch_order(50, 8, 30, seed=1).ravel())


def test_seed_decides() -> None:
    assert np.array_equal(batch_order(50, 4, 40, seed=1), batch_order(50, 4, 40, seed=1))
    assert not np.array_equal(batch_order(50, 4, 40, seed=1), batch_order(50, 4, 40, seed=2))


def test_epochs_differ() -> None:
    stream = batch_order(50, 10, 10, seed=0).ravel()
    assert not np.array_equal(stream[:50], stream[50:])


def test_order_is_pinned() -> None:
    # A change here would silently give every stored spec other numbers.
    assert batch_order(10, 5, 2, seed=0).tolist() == [[4, 6, 2, 7, 3], [5, 9, 0, 8, 1]]


def test_curve_sample_keeps_the_shares() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = curve_sample(labels, size=256, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 256
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.bincount(labels[chosen]).tolist() == [154, 77, 25]


def test_curve_sample_is_fixed_and_never_more_than_there_is() -> None:
    labels = np.arange(1000) % 3
    assert np.array_equal(curve_sample(labels, 100, seed=2), curve_sample(labels, 100, seed=2))
    assert not np.array_equal(curve_sample(labels, 100, seed=2), curve_sample(labels, 100, seed=3))
    assert curve_sample(labels[:20]).tolist() == list(range(20))
