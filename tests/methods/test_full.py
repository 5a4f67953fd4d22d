"""Full fine-tuning against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from engine.errors import BudgetError
from engine.methods.full import FullFineTuning
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_bert, tiny_llama


def test_it_trains_the_whole_backbone_with_its_pooler():
    architecture = architecture_of(tiny_bert())
    rows = FullFineTuning.trainables(architecture, FullFineTuning.Config())
    assert "pooler" in {row.role for row in rows}
    assert "head" not in {row.role for row in rows}
    everything = sum(p.numel() for p in tiny_bert().parameters())
    head = sum(row.size for row in architecture.head)
    assert FullFineTuning.size(architecture, FullFineTuning.Config()) == everything - head


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_equals_plain_adamw(decay):
    model = tiny_bert()
    training = Training(make(FullFineTuning, model, weight_decay=decay, clip=1e9), model, lr=1e-3, schedule=False).run(
        batches_of(8)
    )
    plain = tiny_bert().train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=decay)
    losses = []
    for batch in batches_of(8):
        loss = plain(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert training.losses == losses
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(model)[name]), name


def test_the_first_step_moves_no_entry_further_than_the_rate():
    """Adam's first update is the sign of the gradient times the learning rate."""
    model, base = tiny_bert(), weights(tiny_bert())
    Training(make(FullFineTuning, model), model, lr=1e-3, schedule=False).run(batches_of(1))
    moved = {name: (value - base[name]).abs() for name, value in weights(model).items()}
    assert max(float(change.max()) for change in moved.values()) <= 1e-3 * (1 + 1e-3)
    assert all(change.any() for name, change in moved.items() if "token_type" not in name)


def test_its_change_is_the_difference_from_the_base():
    model, base = tiny_bert(), weights(tiny_bert())
    method = make(FullFineTuning, model)
    Training(method, model).run(batches_of(3))
    for row in method.context.architecture.linears():
        change = method.delta(row, base[row.name])
        assert torch.equal(change, weights(model)[row.name] - base[row.name])
        assert change.abs().sum() > 0
    head = method.context.architecture.head[0]
    assert method.delta(head, base[head.name]) is None


def test_a_result_goes_into_a_fresh_model():
    model, fresh = tiny_llama(), tiny_llama()
    method, other = make(FullFineTuning, model), make(FullFineTuning, fresh)
    Training(method, model).run(batches_of(3))
    other.attach(fresh)
    other.install(method.result())
    for row in method.context.architecture.backbone:
        assert torch.equal(weights(fresh)[row.name], weights(model)[row.name])


def test_it_cannot_be_made_smaller():
    architecture = architecture_of(tiny_bert())
    config = FullFineTuning.Config()
    with pytest.raises(BudgetError, match="cannot be made smaller"):
        FullFineTuning.fit(architecture, config, 100)
    assert FullFineTuning.fit(architecture, config, 10**9) == config
