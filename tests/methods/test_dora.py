"""DoRA: magnitudes and directions."""

from __future__ import annotations

import pytest
import torch

from engine.methods.dora import DoRA
from engine.methods.lora import LoRA
from engine.probes.change import ChangeProbe
from tests.methods.driver import Training, batches_of, make, weights
from tests.methods.test_lora import minilm  # noqa: F401 (a fixture)
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama


@pytest.fixture(params=[tiny_bert, tiny_llama])
def training(request) -> Training:
    model = request.param()
    made = Training(make(DoRA, model, {"rank": 4}, steps=10), model, lr=1e-2)
    made.base = weights(request.param())
    return made


def targets(training: Training):
    return training.method.targets_of(training.method.context.architecture, training.method.config)


def magnitudes(training: Training) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in training.method.parameters() if "magnitude" in name]


def test_magnitudes_start_as_lengths_of_the_rows(training):
    for row, magnitude in zip(targets(training), magnitudes(training), strict=True):
        assert tuple(magnitude.shape) == (row.shape[0],)
        assert torch.equal(magnitude, torch.linalg.norm(training.base[row.name], dim=1))


def test_merged_rows_have_the_learned_lengths(training):
    training.run(batches_of(10))
    merged = weights(training.method.merged(training.model))
    for row, magnitude in zip(targets(training), magnitudes(training), strict=True):
        assert torch.allclose(torch.linalg.norm(merged[row.name], dim=1), magnitude.abs(), atol=1e-6)


def test_magnitudes_alone_turn_nothing(training):
    with torch.no_grad():
        for magnitude in magnitudes(training):
            magnitude.mul_(torch.linspace(0.8, 1.3, len(magnitude)))
    frame = ChangeProbe(training.method, targets(training), training.base, "cpu").frame()
    assert frame["direction"].max() < 1e-9
    assert frame["magnitude"].min() > 1e-3


def test_with_the_lengths_of_the_sum_it_is_lora(training):
    training.run(batches_of(10))
    method = training.method
    for row, magnitude in zip(targets(training), magnitudes(training), strict=True):
        low_rank = method._layers[row.name].get_delta_weight("default").detach()
        with torch.no_grad():
            magnitude.copy_(torch.linalg.norm(training.base[row.name] + low_rank, dim=1))
        assert torch.allclose(method.delta(row, training.base[row.name]), low_rank, atol=1e-7)


def test_the_change_has_full_rank_though_the_direction_has_not(training):
    training.run(batches_of(10))
    for row in targets(training):
        values = torch.linalg.svdvals(training.method.delta(row, training.base[row.name]).double())
        assert int((values > 1e-6 * values[0]).sum()) == min(row.shape)
        low_rank = training.method._layers[row.name].get_delta_weight("default").detach().double()
        values = torch.linalg.svdvals(low_rank)
        assert int((values > 1e-4 * values[0]).sum()) == 4


def test_no_gradient_flows_through_the_norm(training):
    """The gradient of m is that of W' along the direction, with the norm held constant."""
    training.run(batches_of(3))
    model, row = training.model, targets(training)[0]
    model(**tiny_batch()).loss.backward()
    magnitude = magnitudes(training)[0]
    layer = training.method._layers[row.name]
    direction = training.base[row.name] + layer.get_delta_weight("default").detach()
    plain = training.method.merged(model).train()
    weight = plain.get_parameter(row.name).requires_grad_(True)
    plain(**tiny_batch()).loss.backward()
    expected = (weight.grad * direction).sum(1) / torch.linalg.norm(direction, dim=1)
    assert torch.allclose(magnitude.grad, expected, atol=1e-6)
    down = layer.lora_B["default"].weight.grad
    scale = (magnitude / torch.linalg.norm(direction, dim=1)).detach().unsqueeze(1)
    through = layer.scaling["default"] * (scale * weight.grad) @ layer.lora_A["default"].weight.detach().T
    assert torch.allclose(down, through, atol=1e-6)


def test_the_count_is_loras_and_one_per_output(minilm):  # noqa: F811
    for build in (tiny_bert, tiny_llama):
        architecture = architecture_of(build())
        outputs = sum(row.shape[0] for row in LoRA.targets_of(architecture, LoRA.Config()))
        assert DoRA.size(architecture, DoRA.Config()) == LoRA.size(architecture, LoRA.Config()) + outputs
    config = DoRA.fit(minilm, DoRA.Config(), 26_112)
    assert DoRA.size(minilm, config) == 28 * 768 + 4_608 == 26_112
    assert sum(DoRA.ranks_of(minilm, config).values()) == 28
