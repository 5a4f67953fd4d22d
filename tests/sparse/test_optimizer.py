"""The sparse optimizer against torch.optim.AdamW on the same entries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.sparse.gradient import StreamedGradient
from engine.sparse.optimizer import SparseAdamW

ONE = torch.tensor(1.0)


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((7, 5), (11,), (3, 2, 4))]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters()]


def train(optimizer: SparseAdamW, steps: range, lr: float = 0.01, scale: torch.Tensor = ONE) -> None:
    for step in steps:
        for number, gradient in enumerate(gradients(step)):
            optimizer.gather(number, StreamedGradient.of(gradient))
        optimizer.step(lr, scale)


def everything(optimizer: SparseAdamW, tensors: list[nn.Parameter]) -> None:
    for number, tensor in enumerate(tensors):
        index = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(number))
        optimizer.add(torch.full_like(index, number), index, step=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_selecting_everything_is_torch_adamw(weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    sparse = SparseAdamW(ours, sum(p.numel() for p in ours), weight_decay=weight_decay)
    everything(sparse, ours)
    dense = torch.optim.AdamW(theirs, lr=0.01, weight_decay=weight_decay, foreach=False)
    train(sparse, range(30))
    for step in range(30):
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        dense.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_only_selected_entries_change(weight_decay: float) -> None:
    tensors, base = parameters(), parameters()
    sparse = SparseAdamW(tensors, 4, weight_decay=weight_decay)
    sparse.add(torch.tensor([2, 0, 0]), torch.tensor([23, 34, 0]), step=0)
    train(sparse, range(3))
    sparse.add(torch.tensor([0]), torch.tensor([17]), step=3, gradient=torch.tensor([1.0]))
    train(sparse, range(3, 6))
    changed = [(own != other).flatten().nonzero().flatten().tolist() for own, other in zip(tensors, base, strict=True)]
    assert changed == [[0, 17, 34], [], [23]]
    assert sparse.scalars() == 8


def test_clipping_scales_the_gradient() -> None:
    halved, plain = parameters(), parameters()
    for tensors, scale in ((halved, torch.tensor(0.5)), (plain, ONE)):
        sparse = SparseAdamW(tensors, 1)
        sparse.add(torch.tensor([1]), torch.tensor([4]), step=0)
        assert float(sparse.gradient_square()) == 0.0
        sparse.gather(1, StreamedGradient.of(gradients(0)[1]))
        assert float(sparse.gradient_square()) == pytest.approx(float(gradients(0)[1][4] ** 2))
        sparse.step(0.01, scale)
        assert float(sparse.state_dict()["m"]) == pytest.approx(0.1 * float(scale * gradients(0)[1][4]))


@pytest.mark.parametrize(("correction", "factor"), [("global", 2.5), ("entry", 1.0)])
def test_the_first_update_of_an_entry_selected_late(correction: str, factor: float) -> None:
    """In global mode it is (1-b1)/(1-b1^t) / sqrt((1-b2)/(1-b2^t)) times the learning rate."""
    tensors = parameters()
    sparse = SparseAdamW(tensors, 2, correction=correction)  # type: ignore[arg-type]
    sparse.add(torch.tensor([0]), torch.tensor([0]), step=0)
    train(sparse, range(999))
    before = float(tensors[1].detach()[3])
    sparse.add(torch.tensor([1]), torch.tensor([3]), step=999, gradient=torch.tensor([-0.2]))
    sparse.step(1e-3, ONE)
    assert float(tensors[1].detach()[3]) - before == pytest.approx(factor * 1e-3, rel=0.01)


def test_a_tensor_that_takes_no_part_does_not_repeat_its_gradient() -> None:
    sparse = SparseAdamW(parameters(), 2)
    sparse.add(torch.tensor([0, 1]), torch.tensor([1, 2]), step=0)
    train(sparse, range(1))
    sparse.gather(0, StreamedGradient.of(gradients(1)[0]))
    sparse.step(0.01, ONE)
    state = sparse.state_dict()
    assert float(state["m"][1]) == pytest.approx(0.9 * 0.1 * float(gradients(0)[1][2]))


def test_half_precision_weights_have_an_fp32_master_copy() -> None:
    """Updates far below the rounding of bf16 add up instead of vanishing."""
    tensors = [nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    sparse = SparseAdamW(tensors, 1)
    sparse.add(torch.tensor([0]), torch.tensor([2]), step=0)
    for _ in range(100):
        sparse.gather(0, StreamedGradient.of(torch.full((4,), -1.0, dtype=torch.bfloat16)))
        sparse.step(1e-3, ONE)
    assert tensors[0].dtype == torch.bfloat16
    assert tensors[0].tolist() == [1.0, 1.0, pytest.approx(1.1, abs=0.005), 1.0]


def test_resuming_is_bit_for_bit() -> None:
    straight, resumed = parameters(), parameters()
    picks = torch.tensor([2, 0, 1, 0]), torch.tensor([5, 9, 2, 30])
    first = SparseAdamW(straight, 5)
    first.add(*picks, step=0)
    train(first, range(4))
    state = {key: value.clone() for key, value in first.state_dict().items()}
    second = SparseAdamW(resumed, 5)
    second.load_state_dict(state)
    for sparse in (first, second):
        sparse.add(torch.tensor([1]), torch.tensor([7]), step=4, gradient=torch.tensor([0.3]))
        train(sparse, range(4, 9))
    for own, other in zip(straight, resumed, strict=True):
        assert torch.equal(own, other)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def test_entries_without_any_gradient_are_counted() -> None:
    sparse = SparseAdamW(parameters(), 3)
    sparse.add(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), step=0)
    sparse.gather(0, StreamedGradient.of(torch.tensor([0.5] + [0.0] * 34)))
    sparse.step(0.01, ONE)
    assert sparse.unmoved() == 2


def select(optimizer: SparseAdamW) -> None:
    optimizer.add(torch.tensor([2, 0, 1, 0]), torch.tensor([5, 9, 2, 30]), step=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_anchored_entry_that_is_replaced_is_what_it_was(dtype: torch.dtype) -> None:
    tensors, base = parameters(dtype=dtype), parameters(dtype=dtype)
    sparse = SparseAdamW(tensors, 4, correction="entry", anchored=True, weight_decay=0.1)
    select(sparse)
    train(sparse, range(4), lr=0.1)
    assert (sparse.change(torch.arange(4)) != 0).all()
    sparse.replace(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([4, 8]), step=4)
    assert tensors[0].view(-1)[9] == base[0].view(-1)[9]
    assert torch.equal(tensors[2], base[2])
    train(sparse, range(4, 7), lr=0.1)
    changed = [(own != other).flatten().nonzero().flatten().tolist() for own, other in zip(tensors, base, strict=True)]
    assert changed == [[4, 30], [2, 8], []]
    assert sparse.scalars() == 8
    assert sparse.entries()["step"].tolist() == [4, 4, 0, 0]


def test_without_an_anchor_it_stays_as_it_was_trained() -> None:
    tensors = parameters()
    sparse = SparseAdamW(tensors, 4, weight_decay=0.1)
    select(sparse)
    train(sparse, range(4))
    trained = float(tensors[0].detach().view(-1)[9])
    assert trained != float(parameters()[0].detach().view(-1)[9])
    sparse.replace(torch.tensor([1]), torch.tensor([2]), torch.tensor([7]), step=4)
    train(sparse, range(4, 9))
    assert float(tensors[0].detach().view(-1)[9]) == trained


@pytest.mark.parametrize("anchored", [False, True])
def test_what_is_not_replaced_does_not_notice(anchored: bool) -> None:
    alone, beside = parameters(), parameters()
    runs = [SparseAdamW(tensors, 4, anchored=anchored) for tensors in (alone, beside)]
    for sparse in runs:
        select(sparse)
        train(sparse, range(3))
    runs[1].replace(torch.tensor([2, 0]), torch.tensor([1, 1]), torch.tensor([0, 1]), step=3)
    for sparse in runs:
        train(sparse, range(3, 6))
    one, two = (sparse.state_dict() for sparse in runs)
    for key in ("value", "m", "v"):
        assert torch.equal(one[key][[1, 3]], two[key][[1, 3]])
    assert torch.equal(alone[0], beside[0])


def test_a_newcomer_goes_on_from_given_moments_as_old_as_it_is_said() -> None:
    """Three equal gradients behind it: exactly the entry that was selected three steps ago."""
    gradient = torch.full((11,), 0.25)
    values = []
    for late in (False, True):
        tensors = [nn.Parameter(torch.ones(11))]
        sparse = SparseAdamW(tensors, 1, correction="entry", anchored=True)
        sparse.add(torch.tensor([0]), torch.tensor([1 if late else 6]), step=0)
        for _ in range(3):
            sparse.gather(0, StreamedGradient.of(gradient))
            sparse.step(0.0, ONE)
        if late:
            moments = torch.tensor([0.25 * (1 - 0.9**3)]), torch.tensor([0.25**2 * (1 - 0.999**3)])
            sparse.replace(torch.tensor([0]), torch.tensor([0]), torch.tensor([6]), 3, moments, 3)
        sparse.gather(0, StreamedGradient.of(-gradient))
        sparse.step(0.1, ONE)
        values.append(float(tensors[0].detach()[6]))
    assert values[0] != 1.0
    assert values[1] == pytest.approx(values[0], abs=1e-6)


def test_anchored_decay_pulls_towards_the_first_value() -> None:
    tensors = [nn.Parameter(torch.full((3,), 2.0))]
    sparse = SparseAdamW(tensors, 1, anchored=True, weight_decay=0.5)
    sparse.add(torch.tensor([0]), torch.tensor([1]), step=0)
    sparse.step(0.1, ONE)
    assert tensors[0].tolist() == [2.0, 2.0, 2.0], "no change, nothing to pull"
    sparse.gather(0, StreamedGradient.of(torch.full((3,), -1.0)))
    sparse.step(0.1, ONE)
    moved = float(tensors[0][1]) - 2.0
    before = sparse.state_dict()
    sparse.step(0.1, ONE)
    step = float(0.1 / (1 - 0.9**3) * 0.9 * before["m"] / ((0.999 * before["v"] / (1 - 0.999**3)).sqrt() + 1e-8))
    assert float(tensors[0][1]) == pytest.approx(2.0 + moved * (1 - 0.05) - step, abs=1e-6)


def test_a_newcomer_does_not_take_over_a_gradient() -> None:
    tensors = parameters()
    sparse = SparseAdamW(tensors, 1)
    sparse.add(torch.tensor([0]), torch.tensor([3]), step=0)
    sparse.gather(0, StreamedGradient.of(gradients(0)[0]))
    sparse.replace(torch.tensor([0]), torch.tensor([1]), torch.tensor([3]), step=0)
    assert float(sparse.gradient_square()) == 0.0
    sparse.step(0.1, ONE)
    assert torch.equal(tensors[1], parameters()[1])


@pytest.mark.parametrize("anchored", [False, True])
def test_resuming_after_a_replacement_is_bit_for_bit(anchored: bool) -> None:
    straight, resumed = parameters(), parameters()
    first = SparseAdamW(straight, 4, correction="entry", anchored=anchored, weight_decay=0.1)
    select(first)
    train(first, range(3))
    first.replace(torch.tensor([3, 0]), torch.tensor([1, 0]), torch.tensor([0, 2]), step=3)
    train(first, range(3, 5))
    state = {key: value.clone() for key, value in first.state_dict().items()}
    second = SparseAdamW(resumed, 4, correction="entry", anchored=anchored, weight_decay=0.1)
    second.load_state_dict(state)
    if not anchored:  # what has left is its owner's to restore
        with torch.no_grad():
            for own, other in zip(resumed, straight, strict=True):
                own.copy_(other)
    for sparse in (first, second):
        train(sparse, range(5, 8))
        sparse.replace(torch.tensor([1]), torch.tensor([2]), torch.tensor([11]), step=8)
        train(sparse, range(8, 10))
    assert all(torch.equal(own, other) for own, other in zip(straight, resumed, strict=True))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
