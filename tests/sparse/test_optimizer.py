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
