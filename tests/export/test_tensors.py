"""The file of what cannot be merged: written from real runs, and put around the base model again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from engine.errors import DataError, ModelError, SpecError
from engine.export.finished import opened
from engine.export.formats import export_run, formats_of
from engine.export.rebuild import rebuild
from engine.export.tensors import put_in
from engine.spec import MethodChoice
from engine.training.build import Caches, encoded_splits
from engine.training.evaluation import predict
from tests.methods.driver import weights
from tests.methods.test_adapter import RUNS, every_run, finished
from tests.small import spec_data


@every_run
def test_a_run_ends_in_a_file_that_makes_the_trained_model_of_the_base(
    home: Path, small: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    run_id = finished(home, spec_data(small, method, lr=0.01, steps=20))
    path = export_run(home, run_id, "tensors", tmp_path / "trained.safetensors")
    with opened(home, run_id) as run:
        built, sha256 = rebuild(run), run.base_sha256
        recorded = safe_open(run.folder.result / "test.safetensors", framework="np").get_tensor("logits")
    stranger = AutoModelForSequenceClassification.from_pretrained(small / "model", num_labels=2)
    model = put_in(stranger, path, sha256)
    ours = dict(built.model.named_parameters())
    assert all(torch.equal(parameter, ours[name]) for name, parameter in model.named_parameters())
    test = encoded_splits(built.spec, built.setting, Caches())["test"]
    np.testing.assert_array_equal(predict(model, test, "cpu"), predict(built.model, test, "cpu"))
    np.testing.assert_allclose(predict(model, test, "cpu"), recorded, rtol=0, atol=1e-5)
    with pytest.raises(SpecError, match=r"cannot be exported as merged.*It offers: tensors"):
        export_run(home, run_id, "merged", tmp_path / "merged")


def test_a_file_fits_its_base_alone(home: Path, small: Path, tmp_path: Path) -> None:
    run_id = finished(home, spec_data(small, RUNS["adapter"], steps=2))
    path = export_run(home, run_id, "tensors", tmp_path / "trained.safetensors")
    with opened(home, run_id) as run:
        sha256 = run.base_sha256

    def fresh(labels: int = 2) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(small / "model", num_labels=labels)

    model = fresh(labels=3)
    before = weights(model)
    with pytest.raises(ModelError, match="not ffff"):
        put_in(model, path, "f" * 64)
    with pytest.raises(ModelError, match="with the same labels"):
        put_in(model, path, sha256)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        facts = file.metadata()
    missing = next(name for name in tensors if name.endswith("up.bias"))
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, tmp_path / "less", facts)
    with pytest.raises(ModelError, match=r"has shape none in the file"):
        put_in(fresh(), tmp_path / "less", sha256)
    save_file(tensors, tmp_path / "other", {"format": "1"})
    with pytest.raises(DataError, match="has format '1'"):
        put_in(fresh(), tmp_path / "other", sha256)
    with pytest.raises(DataError, match="Cannot read"):
        put_in(fresh(), small / "data.tsv", sha256)


def test_a_method_on_another_offers_what_that_one_can_be_taken_away_as() -> None:
    def offered(method: dict[str, Any]) -> set[str]:
        choice = MethodChoice.model_validate(method)
        return {entry.name for entry in formats_of(choice)} & {"delta", "peft", "merged", "tensors"}

    assert offered({"name": "adapter"}) == {"tensors"}
    assert offered({"name": "id3"}) == {"delta", "merged"}
    assert offered({"name": "id3", "on": {"name": "adapter"}}) == {"tensors"}
    assert offered({"name": "id3", "on": {"name": "lora"}}) == {"peft", "merged"}
    assert offered({"name": "id3", "on": {"name": "ssf"}}) == {"merged"}
    assert offered({"name": "id3", "on": {"name": "bitfit"}}) == {"merged"}
