"""From KL to Fisher: the measured divergence meets its quadratic prediction as the step shrinks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from engine.errors import SpecError
from engine.plan import make_plan, read_setting
from engine.spec import parse_spec
from engine.training.build import Caches, base_model, encoded_splits
from engine.training.divergence import STEPS, fisher_diagonal, measure
from tests.small import spec_data

NUMBER = 6


@pytest.fixture
def parts(home: Path, small: Path):
    spec = make_plan(parse_spec(spec_data(small))).spec
    setting, caches = read_setting(spec), Caches()
    model = base_model(spec, setting, caches).double().eval()
    return model, setting.architecture.backbone, encoded_splits(spec, setting, caches)["validation"]


@pytest.fixture
def rows(parts):
    model, backbone, encoded = parts
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = measure(model, backbone, encoded, k=50, examples=NUMBER, draws=3, seed=1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "the weights end as they were"
    return {(row["group"], row["step"]): row for row in found}


def test_the_prediction_is_met_as_the_step_shrinks(rows) -> None:
    for group in ("top", "random"):
        apart = [
            np.abs(np.array(rows[group, step]["kl"]) / np.array(rows[group, step]["quadratic"]) - 1).max()
            for step in STEPS
        ]
        assert apart[0] < 2e-3
        assert 5 < apart[2] / apart[0] < 20, "the first order that is left out shrinks with the step, tenfold here"
        assert apart[-1] > 0.02, "and large steps do not meet it"


def test_the_groups_are_in_the_order_of_their_information(rows) -> None:
    top, random, bottom = (np.mean(rows[group, STEPS[0]]["kl"]) for group in ("top", "random", "bottom"))
    assert top > 5 * random > 0
    assert bottom < random / 5
    assert rows["bottom", STEPS[0]]["diagonal"] > 0, "of words that no example has nothing is shown"


def test_the_diagonal_is_that_of_the_jacobian(parts) -> None:
    """F_j = mean over x of sum over y of p(y) (d log p(y) / d theta_j)^2, with derivatives made another way."""
    model, backbone, encoded = parts
    name = next(row.name for row in backbone if row.role == "q" and row.part == "weight")
    weight = dict(model.named_parameters())[name]
    (ours,) = fisher_diagonal(model, [weight], encoded, NUMBER)
    batch = {key: torch.from_numpy(array) for key, array in encoded.batch(np.arange(NUMBER)).items()}
    batch.pop("labels")

    def answers(value: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {name: value}, kwargs=batch).logits.log_softmax(-1)

    slopes = jacrev(answers)(weight.detach()).flatten(2)
    shares = answers(weight.detach()).exp()
    expected = (shares[..., None] * slopes.square()).sum(1).mean(0)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-15)


def test_more_weights_than_there_are_is_refused(parts) -> None:
    model, backbone, encoded = parts
    with pytest.raises(SpecError, match="more than may be selected"):
        measure(model, backbone, encoded, k=10**9, examples=1, draws=1, seed=0)
