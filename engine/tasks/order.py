"""Which examples come when: the same for every method, executor and machine."""

from __future__ import annotations

import numpy as np


def batch_order(n: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Indices of the training examples of each step, int64 (steps, batch_size).

    Epochs are permutations of all n examples, laid end to end and cut into batches, so a
    batch may span two epochs. The permutation of an epoch comes from PCG64 keyed by (seed,
    epoch) and depends on neither batch size nor steps.

    Args:
        n: number of training examples, at least 1.
        batch_size, steps: of the training.
        seed: the run's seed of data order.
    """
    needed = batch_size * steps
    epochs = -(-needed // n)
    stream = np.concatenate([_permutation(n, seed, epoch) for epoch in range(epochs)])
    return stream[:needed].reshape(steps, batch_size)


def curve_sample(labels: np.ndarray, size: int = 256, seed: int = 0) -> np.ndarray:
    """Fixed indices for the curves drawn while training, each class in proportion; sorted, int64.

    Args:
        labels: int64 (n,), classes of the split.
        size: how many; all when there are no more.
        seed: of the choice within each class.
    """
    if len(labels) <= size:
        return np.arange(len(labels), dtype=np.int64)
    counts = np.bincount(labels)
    quota, remainder = np.divmod(counts * size, len(labels))
    # Largest remainders get the places that rounding down left over; whole numbers, so that ties are ties.
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    shuffled = _permutation(len(labels), seed, 0)
    chosen = [shuffled[labels[shuffled] == number][: quota[number]] for number in range(len(counts))]
    return np.sort(np.concatenate(chosen))


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    return generator.permutation(n).astype(np.int64)
