"""Ragged execution: the same logits, gradients and runs as padded batches, for every family that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from engine.errors import SpecError
from engine.models.families import FAMILIES
from engine.plan import make_plan
from engine.spec import parse_spec
from engine.store.runs import Runs
from engine.training.build import Caches
from engine.training.layout import Layout
from engine.training.ragged import RaggedForward
from engine.training.run import run_job
from tests.models.saved import CONFIGS, save_tiny, save_tokenizer
from tests.small import spec_data
from tests.training.test_run import series, submit

RAGGED = [name for name, (kind, _) in CONFIGS.items() if FAMILIES[kind].head_reads]
LENGTHS = np.array([5, 1, 9, 3])


def batch_of(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Four examples of differing lengths, with two token types where the model knows them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(int(LENGTHS.max())) < torch.from_numpy(LENGTHS)[:, None]
    ids = torch.randint(5, 100, mask.shape, generator=generator)
    batch = {"input_ids": torch.where(mask, ids, model.config.pad_token_id), "attention_mask": mask.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.where(mask, torch.randint(0, 2, mask.shape, generator=generator), 0)
    return batch


@pytest.fixture(params=RAGGED)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    folder = save_tiny(request.param, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    pad = config.get("pad_token_id")
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, pad_token_id=2 if pad is None else pad
    ).eval()


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 1])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_logits_and_gradients_are_those_of_the_padded_batch(model: Any) -> None:
    batch = batch_of(model)
    padded = model(**batch).logits
    expected = gradients(model, padded)
    forward = RaggedForward(model, FAMILIES[model.config.model_type])
    ragged = forward(batch)
    torch.testing.assert_close(ragged, padded, rtol=0, atol=1e-5)
    found = gradients(model, ragged)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(("causal", "single"), [(False, False), (True, False), (False, True), (True, True)])
def test_attention_is_differentiated_exactly(
    causal: bool, single: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(LENGTHS, LENGTHS - 1, causal)
    monkeypatch.setattr("engine.training.layout.KEPT_LENGTH", 128 if kept else 0)
    generator = torch.Generator().manual_seed(0)
    tokens = int(LENGTHS.sum())
    shapes = [(len(LENGTHS) if single else tokens, 4, 3), (tokens, 2, 3), (tokens, 2, 3)]
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda q, k, v: layout.attend(q, k, v, 0.5), rows)


def test_a_decoder_that_pads_with_its_end_token_is_read_at_the_same_place(tmp_path: Path) -> None:
    """Its tokenizer may end a text with that token, which the library passes over as padding."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        save_tiny("llama", tmp_path / "model"), num_labels=3, pad_token_id=2
    ).eval()
    batch = batch_of(model)
    for row, length in enumerate(LENGTHS):
        if length > 1:
            batch["input_ids"][row, length - 1] = 2
    ragged = RaggedForward(model, FAMILIES["llama"])(batch)
    torch.testing.assert_close(ragged, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_method_gives_nearly_the_same_losses_either_way(home: Path, small: Path) -> None:
    """Ragged and padded differ by rounding alone; ID3's choices may then differ in their last places."""
    for method in ("full", "bitfit", "fish", "pafi", "lora", "adalora", "dora"):
        losses = []
        for execution in ("ragged", "padded"):
            data = spec_data(small, method, lr=0.005, steps=50, execution=execution)
            if method in ("fish", "pafi"):
                data["method"] = {"name": method, "k": 500}
            run_id = submit(home, data)
            assert run_job(home, run_id, Caches()) == "finished", Runs(home).get(run_id).error
            losses.append([value for _, value in series(home, run_id)["train/loss"]])
        assert np.abs(np.subtract(*losses)).max() < 1e-4, method


def test_the_plan_takes_ragged_where_it_can_be(home: Path, small: Path) -> None:
    plain = spec_data(small)
    assert make_plan(parse_spec(plain)).spec.train.execution == "ragged"
    dropped = spec_data(small, dropout=0.1)
    assert make_plan(parse_spec(dropped)).spec.train.execution == "padded"
    with pytest.raises(SpecError, match="cannot draw dropout"):
        make_plan(parse_spec(spec_data(small, dropout=0.1, execution="ragged")))
    adapter = spec_data(small, {"name": "lora", "dropout": 0.1})
    assert make_plan(parse_spec(adapter)).spec.train.execution == "padded"
    outer = spec_data(small, {"name": "id3", "k": 50, "on": {"name": "lora", "dropout": 0.1}})
    assert make_plan(parse_spec(outer)).spec.train.execution == "padded"
    with pytest.raises(SpecError, match="it is for a GPU"):
        make_plan(parse_spec(spec_data(small, execution="graph")))


def test_a_family_with_relative_positions_stays_padded(home: Path, small: Path, tmp_path: Path) -> None:
    folder = save_tokenizer(save_tiny("deberta-v2", tmp_path / "model"), "bert")
    data = spec_data(small) | {"model": str(folder)}
    assert make_plan(parse_spec(data)).spec.train.execution == "padded"
    data["train"]["execution"] = "ragged"
    with pytest.raises(SpecError, match="type of model"):
        make_plan(parse_spec(data))
