"""The mean change of biases: what it is, and that key biases may move without any effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.methods.bitfit import BitFit
from engine.methods.id3 import ID3
from engine.probes.bias import BiasProbe
from tests.methods.driver import Training, batches_of, make, weights
from tests.tiny import architecture_of, tiny_batch, tiny_bert

ROWS = [row for row in architecture_of(tiny_bert()).backbone if row.part == "bias"]


def trained(cls, settings=None):
    model = tiny_bert()
    run = Training(make(cls, model, settings or {}), model, lr=5e-3).run(batches_of(10))
    return run, BiasProbe(run.method, ROWS, weights(tiny_bert()), "cpu")


def test_it_is_the_mean_size_of_the_change():
    run, probe = trained(BitFit)
    now, base = weights(run.model), weights(tiny_bert())
    expected = [float((now[row.name] - base[row.name]).abs().mean()) for row in ROWS]
    assert probe.frame()["mean"].dtype == np.float32
    assert probe.frame()["mean"].tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) > 0


def test_a_bias_that_nothing_was_selected_from_has_not_moved():
    _, probe = trained(ID3, {"k": 50, "exclude": ["bias"]})
    assert probe.frame()["mean"].tolist() == [0.0] * len(ROWS)


def test_whatever_key_biases_are_no_answer_changes():
    run, _ = trained(BitFit)
    batch = {name: tensor for name, tensor in tiny_batch().items() if name != "labels"}
    with torch.no_grad():
        before = run.model(**batch).logits
        for name, parameter in run.model.named_parameters():
            if name.endswith("key.bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        after = run.model(**batch).logits
        dict(run.model.named_parameters())["bert.encoder.layer.0.attention.self.query.bias"].normal_()
        other = run.model(**batch).logits
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.allclose(before, other, atol=1e-6)
