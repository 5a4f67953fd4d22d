"""Change of magnitude and direction against float64, down to tiny changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.methods.contract import Method, MethodConfig
from engine.methods.dora import DoRA
from engine.methods.full import FullFineTuning
from engine.methods.lora import LoRA
from engine.models.architecture import Parameter
from engine.probes.change import ChangeProbe
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import context_for, tiny_bert, tiny_llama


class Moved(Method):
    """Changes every weight by what a function makes of it."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(MethodConfig(), context_for(tiny_bert()))
        self.change = change

    def delta(self, weight: Parameter, base: torch.Tensor) -> torch.Tensor:
        return self.change(base)


def truth(base: torch.Tensor, delta: torch.Tensor) -> tuple[float, float, float]:
    """The definitions as they stand, in float64."""
    w, v = base.double(), base.double() + delta.double()
    grown = (v.norm(dim=1) - w.norm(dim=1)).abs().mean()
    unit_w, unit_v = w / w.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    turned = ((unit_v - unit_w).square().sum(1) / 2).mean()  # 1 - cos of unit vectors
    return float(grown), float(turned), float(delta.double().norm() / w.norm())


def frame_of(base: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], **row) -> dict[str, np.ndarray]:
    parameter = Parameter("w", tuple(base.shape), 0, "q", "weight", **row)
    return ChangeProbe(Moved(change), [parameter], {"w": base}, "cpu").frame()


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-3, 0.3, 3.0])
def test_it_agrees_with_float64_at_every_size(size):
    base, noise = matrix(384, 384), matrix(384, 384, seed=1)
    found = frame_of(base, lambda w: size * noise)
    for value, expected in zip(
        (found["magnitude"], found["direction"], found["relative"]), truth(base, size * noise), strict=True
    ):
        assert value.dtype == np.float32
        assert float(value[0]) == pytest.approx(expected, rel=2e-4)


def test_subtracting_in_fp32_would_not():
    base, noise = matrix(384, 384), 1e-5 * matrix(384, 384, seed=1)
    naive = float((1 - torch.nn.functional.cosine_similarity(base, base + noise)).mean())
    assert naive != pytest.approx(truth(base, noise)[1], rel=0.5)


def test_lengths_without_turns_and_turns_without_lengths():
    base = matrix(16, 64)
    longer = frame_of(base, lambda w: 0.01 * w)
    assert float(longer["direction"][0]) < 1e-10
    assert float(longer["magnitude"][0]) == pytest.approx(0.01 * float(base.norm(dim=1).mean()), rel=1e-5)
    assert float(longer["relative"][0]) == pytest.approx(0.01, rel=1e-5)
    angle = 0.02
    across = matrix(16, 64, seed=2)
    across -= (across * base).sum(1, keepdim=True) / base.square().sum(1, keepdim=True) * base
    across *= base.norm(dim=1, keepdim=True) / across.norm(dim=1, keepdim=True)
    turned = frame_of(base, lambda w: (np.cos(angle) - 1) * w + np.sin(angle) * across)
    assert float(turned["direction"][0]) == pytest.approx(1 - np.cos(angle), rel=1e-4)
    assert float(turned["magnitude"][0]) < 1e-5


@pytest.mark.parametrize(("factor", "expected"), [(-2.0, 2.0), (-1.0, 0.0), (0.0, 0.0)])
def test_reversed_vanished_and_unchanged_rows(factor, expected):
    """A reversed row has turned by 180 degrees; a vanished one has no direction."""
    assert float(frame_of(matrix(4, 8), lambda w: factor * w)["direction"][0]) == pytest.approx(expected)


def test_rows_that_were_zero_have_no_direction():
    base = matrix(4, 8)
    base[0] = 0
    found = frame_of(base, lambda w: torch.full_like(w, 0.1))
    grown = (base + 0.1).norm(dim=1) - base.norm(dim=1)
    assert float(found["magnitude"][0]) == pytest.approx(float(grown.abs().mean()), rel=1e-5)
    assert np.isfinite(found["direction"][0])


def test_stored_transposed_the_figures_are_the_same():
    base, noise = matrix(6, 10), matrix(6, 10, seed=1)
    straight = frame_of(base, lambda w: 0.1 * noise)
    stored = frame_of(base.T.contiguous(), lambda w: 0.1 * noise.T, transposed=True)
    for key, value in straight.items():
        assert value == pytest.approx(stored[key], rel=1e-5)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("cls", [FullFineTuning, LoRA, DoRA])
def test_trained_methods_are_measured_from_their_base(cls, build):
    model, bases = build(), weights(build())
    training = Training(make(cls, model), model, lr=1e-2)
    rows = training.method.context.architecture.linears()
    probe = ChangeProbe(training.method, rows, bases, "cpu")
    assert all((value == 0).all() for value in probe.frame().values())
    training.run(batches_of(10))
    found = probe.frame()
    plain = weights(training.method.merged(training.model))
    for place, row in enumerate(rows):
        expected = truth(bases[row.name], plain[row.name] - bases[row.name])
        measured = [float(found[key][place]) for key in ("magnitude", "direction", "relative")]
        assert measured == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_method_on_another_reports_what_lies_below():
    model, bases = tiny_bert(), weights(tiny_bert())
    training = Training(make(LoRA, model), model, lr=1e-2).run(batches_of(5))
    outer = Method(MethodConfig(), training.method.context, training.method)
    rows = training.method.context.architecture.linears(("q",))
    direct = ChangeProbe(training.method, rows, bases, "cpu").frame()
    assert direct["relative"].min() > 0
    assert np.array_equal(ChangeProbe(outer, rows, bases, "cpu").frame()["relative"], direct["relative"])


def test_no_matrices_give_empty_arrays():
    found = ChangeProbe(Moved(lambda w: w), [], {}, "cpu").frame()
    assert {key: value.shape for key, value in found.items()} == dict.fromkeys(
        ("magnitude", "direction", "relative"), (0,)
    )
