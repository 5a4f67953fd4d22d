"""Unmasking in large parts, as on a GPU: the choice of sorting everything, the training of the tensor-by-tensor way."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import ModelError
from engine.methods._selective import Selective
from engine.methods.fish import FishMask
from engine.methods.id3 import ID3
from engine.methods.lt_sft import LTSFT
from engine.methods.pafi import PaFi
from engine.sparse import unmasking
from engine.sparse.blocks import BLOCK, Blocks, PlainD3
from engine.sparse.flat import FlatSparseAdamW, FlatTensors
from engine.sparse.scores import d3
from engine.sparse.unmasking import Unmasking
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import tiny_bert, tiny_llama

SIZES = (70, 3 * BLOCK, 40 * BLOCK + 17, BLOCK, 1, 12 * BLOCK + 1)


def parameters(sizes: tuple[int, ...] = SIZES, device: str = "cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((0.05 * torch.randn(size, generator=generator)).to(device)) for size in sizes]


def gradients_of(sizes: tuple[int, ...], kind: str, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    found = [torch.randn(size, generator=generator) for size in sizes]
    return [gradient.round() for gradient in found] if kind == "ties" else found


def test_tensors_keep_their_values_in_parts_no_larger_than_the_largest() -> None:
    tensors = parameters()
    before = [tensor.detach().clone() for tensor in tensors]
    flat = FlatTensors(tensors)
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))
    assert all(tensor.untyped_storage().data_ptr() == flat.values.data_ptr() for tensor in tensors)
    assert [number for part in flat.parts for number in part.tensors] == list(range(len(SIZES)))
    assert max(part.filled for part in flat.parts) == max(SIZES)
    assert all(part.filled <= 3 / 4 * max(SIZES) for part in flat.parts if len(part.tensors) > 1)
    flat.separate()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(SIZES)
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))


def test_tensors_of_several_types_are_refused() -> None:
    with pytest.raises(ModelError, match="several number formats"):
        FlatTensors([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("odd", [0, 17], ids=["whole blocks", "a rest"])
@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("quotas", [[1] * 3, [5, 5, 4], [300, 299, 0], [5500, 100, 10]])
@pytest.mark.parametrize("exp", [0.0, 1.0])
@pytest.mark.parametrize("waiting", [unmasking.WAITING, 0], ids=["the best wait", "all candidates wait"])
def test_the_choice_is_that_of_sorting_everything(
    kind: str, quotas: list[int], exp: float, waiting: int, odd: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmasking, "WAITING", waiting)
    sizes = (*SIZES[:2], 40 * BLOCK + odd, *SIZES[3:])
    tensors = parameters(sizes, device)
    score = partial(d3, power=1.0, exp=exp, eps=1e-3)
    sparse = FlatSparseAdamW(tensors, sum(quotas), most=max(quotas))
    never = [(2, 100, 900), (5, 0, 3)]
    growing = Unmasking(sparse, PlainD3(1e-3) if exp else Blocks(score), quotas, never)
    closed = {(number, index) for number, start, stop in never for index in range(start, stop)}
    for step, quota in enumerate(quotas):
        gradients = gradients_of(sizes, kind, step)
        gradients[3] = torch.zeros(sizes[3])  # which never comes: its entries score 0 and are free all the same
        order = []
        for number, gradient in enumerate(gradients):
            values = score(gradient, tensors[number].detach().cpu()).tolist()
            order += [(-value, number, index) for index, value in enumerate(values) if (number, index) not in closed]
        expected = [(number, index) for _, number, index in sorted(order)[:quota]]
        for number in (5, 4, 2, 1, 0):
            growing.feed(number, gradients[number].to(device, copy=True), max(quotas))
        square = growing.finish(max(quotas))
        for number, start, stop in never:
            gradients[number][start:stop] = 0.0  # no part of the norm
        assert float(square) == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-5)
        entries = sparse.entries()
        found = list(zip(entries["tensor"].tolist(), entries["index"].tolist(), strict=True))[-quota:] if quota else []
        assert found == expected
        assert set(entries["step"].tolist()[len(entries["step"]) - quota :]) <= {step}
        held = [float(gradients[number][index]) for number, index in zip(*_places(entries), strict=True)]
        assert sparse._values["gradient"][: len(held)].tolist() == held
        closed |= set(expected)
        sparse.step(1e-3, torch.ones((), device=device))
    assert sparse.count == sum(quotas)


def _places(entries: dict[str, torch.Tensor]) -> tuple[list[int], list[int]]:
    return entries["tensor"].tolist(), entries["index"].tolist()


def trained(model: nn.Module, flat: bool, steps: int, count: int, **settings: Any) -> Training:
    method = make(ID3, model, settings, steps=steps, clip=1e9)  # no clipping: only there the norm's last bit counts
    method.flat = flat  # type: ignore[attr-defined]
    # Rows of an embedding that come up twice are summed in an order that differs between processors.
    method._ask_for_rows = lambda model: None  # type: ignore[attr-defined]
    return Training(method, model, lr=5e-3).run(batches_of(count))


@pytest.mark.parametrize("make_model", [tiny_bert, tiny_llama])
@pytest.mark.parametrize(
    "settings",
    [
        {"k": 203},
        {"k": 7},
        {"k": 120, "schedule": "static"},
        {"k": 90, "bias_correction": "entry", "clip_scope": "selected"},
        {"k": 90, "p": 2.0, "exp": 1.5},
    ],
    ids=["plain", "few", "static", "entry", "powers"],
)
def test_training_is_that_of_the_tensor_by_tensor_way(make_model: Any, settings: dict[str, Any]) -> None:
    model = make_model()
    ours, plain = (trained(copy.deepcopy(model), flat, 10, 12, **settings) for flat in (True, False))
    assert isinstance(ours.method.sparse, FlatSparseAdamW)  # type: ignore[attr-defined]
    one, two = (run.method.selection() for run in (ours, plain))
    assert one is not None
    assert two is not None
    assert all((getattr(one, key) == getattr(two, key)).all() for key in ("tensor", "index", "step"))
    assert ours.losses == plain.losses
    mine, theirs = weights(ours.method.merged(ours.model)), weights(plain.model)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("cls", [PaFi, FishMask, LTSFT])
def test_a_fixed_mask_trains_as_it_does_tensor_by_tensor(cls: type[Selective]) -> None:
    runs = []
    for flat in (True, False):
        model = tiny_bert()
        method = make(cls, model, {"k": 90}, steps=6, clip=1e9)
        method.flat = flat  # type: ignore[attr-defined]
        runs.append(Training(method, model, lr=5e-3, score_batches=batches_of(4, size=1)).run(batches_of(6)))
    ours, plain = runs
    assert ours.losses == plain.losses
    assert ours.norms == pytest.approx(plain.norms, rel=1e-6)
    mine, theirs = weights(ours.method.merged(ours.model)), weights(plain.model)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_a_resume_goes_on_bit_for_bit() -> None:
    straight = trained(tiny_bert(), True, 10, 10, k=203, schedule="increment")
    first = trained(tiny_bert(), True, 10, 4, k=203)
    method = make(ID3, model := tiny_bert(), {"k": 203}, steps=10, clip=1e9)
    method.flat = True  # type: ignore[attr-defined]
    resumed = Training(method, model, lr=5e-3).load(first.state()).run(batches_of(10)[4:])
    assert first.losses + resumed.losses == straight.losses
    assert all(torch.equal(*pair) for pair in zip(resumed.model.parameters(), straight.model.parameters(), strict=True))
