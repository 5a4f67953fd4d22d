"""The linear probe leaves the backbone alone."""

from __future__ import annotations

import torch

from engine.methods.linear_probe import LinearProbe
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama


def test_only_the_head_changes():
    for build in (tiny_bert, tiny_llama):
        model, base = build(), weights(build())
        training = Training(make(LinearProbe, model, weight_decay=0.1), model, lr=1e-2).run(batches_of(5))
        head = {row.name for row in training.method.context.architecture.head}
        for name, value in weights(model).items():
            assert torch.equal(value, base[name]) != (name in head), name


def test_its_own_count_is_zero_and_fits_every_budget():
    architecture = architecture_of(tiny_bert())
    config = LinearProbe.Config()
    assert LinearProbe.size(architecture, config) == 0
    assert LinearProbe.fit(architecture, config, 1) == config
    assert LinearProbe.warnings(architecture, config, 10) == []


def test_it_learns():
    model = tiny_bert()
    training = Training(make(LinearProbe, model, steps=40), model, lr=0.1, schedule=False)
    training.run([tiny_batch()] * 40)
    assert training.losses[-1] < 0.9 * training.losses[0]


def test_no_gradient_reaches_the_backbone():
    model = tiny_bert()
    model = make(LinearProbe, model).attach(model)
    for row in architecture_of(model).head:
        model.get_parameter(row.name).requires_grad_(True)
    model(**tiny_batch()).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {row.name for row in architecture_of(model).head}
