"""Loading: the map made from headers is that of the loaded model; seeds, dropout, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.errors import ModelError, PathRefused
from engine.models.catalogue import ModelSource, architecture_of, missing_from, resolve_model
from engine.models.loading import load_classifier
from tests.models.saved import CONFIGS, save_tiny
from tests.tiny import architecture_of as map_of

pytestmark = pytest.mark.usefixtures("home")


def load(
    source: ModelSource, head_seed: int = 0, init_seed: int = 0, dropout: float = 0.0, labels: int = 3
) -> nn.Module:
    names = ["no", "yes", "maybe", "never"][:labels]
    return load_classifier(source, names, head_seed=head_seed, init_seed=init_seed, dropout=dropout)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", [False, True], ids=["backbone", "classifier"])
def test_map_from_headers_is_that_of_the_loaded_model(name: str, head: bool, tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny(name, tmp_path / "model", head=head)))
    planned, loaded = architecture_of(source, 3), map_of(load(source))
    assert planned == loaded


@pytest.mark.parametrize("name", CONFIGS)
def test_backbone_is_the_checkpoint_and_the_model_answers(name: str, tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny(name, tmp_path / "model")))
    model = load(source)
    saved = load_file(source.folder / "model.safetensors")
    tensors = dict(model.named_parameters())
    for row in architecture_of(source, 3).backbone:
        if row.name not in missing_from(source):
            key = row.name if row.name in saved else row.name.partition(".")[2]
            assert torch.equal(tensors[row.name], saved[key]), row.name
    ids = torch.tensor([[5, 6, 7], [8, 9, source.config["pad_token_id"]]])
    logits = model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]])).logits
    alone = model(input_ids=ids[1:, :2], attention_mask=torch.ones(1, 2, dtype=torch.long)).logits
    assert logits.shape == (2, 3)
    torch.testing.assert_close(logits[1:], alone, atol=1e-5, rtol=1e-4)  # padding changes nothing


def test_minilm_is_the_official_model_and_its_map_is_right() -> None:
    source = resolve_model("minilm-l6")
    model = load(source, labels=2)
    assert source.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert architecture_of(source, 2) == map_of(model)
    assert sum(p.size for p in architecture_of(source, 2).head) == 770
    assert sum(p.size for p in architecture_of(source, 2).backbone) == 22_713_216
    assert missing_from(source) == ()
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert not model.training


def test_seeds_move_only_what_they_name(tmp_path: Path) -> None:
    source = resolve_model(str(_without_pooler(save_tiny("bert", tmp_path / "model"))))
    assert missing_from(source) == ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    base, again = load(source).state_dict(), load(source).state_dict()
    other_head, other_init = load(source, head_seed=1).state_dict(), load(source, init_seed=1).state_dict()
    assert all(torch.equal(base[name], again[name]) for name in base)
    assert {n for n in base if not torch.equal(base[n], other_head[n])} == {"classifier.weight"}
    assert {n for n in base if not torch.equal(base[n], other_init[n])} == {"bert.pooler.dense.weight"}


def test_head_is_drawn_anew_from_the_configured_normal(tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny("roberta", tmp_path / "model", head=True)))
    model = load(source)
    weights = torch.cat([model.classifier.dense.weight.flatten(), model.classifier.out_proj.weight.flatten()])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(model.classifier.dense.bias.detach().abs().sum()) == 0
    saved = load_file(source.folder / "model.safetensors")
    assert not torch.equal(model.classifier.dense.weight, saved["classifier.dense.weight"])


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny("bert", tmp_path / "model")))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(source, head_seed=9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta-v2", "gpt2", "llama"])
def test_dropout_is_set_everywhere(name: str, tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny(name, tmp_path / "model")))
    ids = torch.randint(3, 100, (4, 12))
    still = load(source, dropout=0.0).train()
    assert torch.equal(still(input_ids=ids).logits, still(input_ids=ids).logits)
    moving = load(source, dropout=0.4).train()
    assert not torch.equal(moving(input_ids=ids).logits, moving(input_ids=ids).logits)
    rates = {module.p for module in moving.modules() if isinstance(module, nn.Dropout)}
    assert rates <= {0.4}


def test_half_precision_and_sharded_weights_become_fp32(tmp_path: Path) -> None:
    half = resolve_model(str(save_tiny("bert", tmp_path / "half", dtype=torch.float16)))
    assert {p.dtype for p in load(half).parameters()} == {torch.float32}
    whole = resolve_model(str(save_tiny("bert", tmp_path / "whole")))
    parts = resolve_model(str(save_tiny("bert", tmp_path / "parts", max_shard_size="8KB")))
    assert len(list(parts.folder.glob("*.safetensors"))) > 1
    assert parts.sha256 != whole.sha256
    assert architecture_of(parts, 3) == architecture_of(whole, 3)
    expected = load(whole).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(parts).state_dict().items())


def test_missing_and_damaged_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        resolve_model(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path / "empty"))
    folder = save_tiny("bert", tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        resolve_model(str(folder))
    weights.write_bytes(b"not weights at all, just some text")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        resolve_model(str(folder))
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        resolve_model(str(folder))


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        resolve_model(str(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model", max_shard_size="8KB")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        resolve_model(str(folder))


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model", max_shard_size="8KB")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = dict.fromkeys(data["weight_map"], "../other.safetensors")
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="not a safetensors file beside it"):
        resolve_model(str(folder))


def test_a_checkpoint_without_part_of_its_backbone_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack bert\.encoder\.layer\.1\.output\.dense\.weight"):
        resolve_model(str(folder))


def test_shapes_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.intermediate.dense.weight"] = torch.zeros(30, 16)
    save_file(tensors, folder / "model.safetensors")
    source = resolve_model(str(folder))
    with pytest.raises(ModelError, match=r"does not fit its config\.json"):
        load(source)


def test_unsupported_type_is_refused_before_hashing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(ModelError, match="'whisper'"):
        resolve_model(str(folder))


def test_a_folder_outside_the_roots_is_refused() -> None:
    with pytest.raises(PathRefused):
        resolve_model("/usr/lib")


def test_loading_leaves_numpy_and_arguments_alone(tmp_path: Path) -> None:
    source = resolve_model(str(save_tiny("bert", tmp_path / "model")))
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    labels = ["b", "a"]
    load_classifier(source, labels, head_seed=0, init_seed=0, dropout=0.0)
    assert labels == ["b", "a"]
    assert np.random.rand() == expected


def _without_pooler(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "pooler" not in n}, folder / "model.safetensors", {"format": "pt"})
    return folder
