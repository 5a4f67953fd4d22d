"""The sparse delta file: round trip bit for bit, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.errors import DataError, ModelError, StoreError
from engine.sparse.delta import Delta, apply_delta, delta_of, read_delta, write_delta

METADATA = {"method": "id3", "eligibility": "{}", "spec_hash": "abc", "base_sha256": "f" * 64}


class Small(nn.Module):
    """Two tensors of a backbone and a head, the same at every call."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.backbone = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def trained() -> Delta:
    result = {
        "backbone.weight.index": torch.tensor([0, 7, 11], dtype=torch.int32),
        "backbone.weight.value": torch.tensor([0.1, -3.7, 1e-40]),
        "backbone.weight.step": torch.tensor([0, 2, 1], dtype=torch.int32),
    }
    head = {"head.weight": torch.full((2, 3), 0.3), "head.bias": torch.zeros(2)}
    return delta_of(result, head, METADATA)


def test_round_trip_apply_and_revert_are_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, trained())
    delta = read_delta(path)
    assert delta.metadata == {**METADATA, "format": "1", "k": "3"}
    assert delta.entries["backbone.weight"].step.tolist() == [0, 2, 1]
    model, base = Small(), Small()
    applied = apply_delta(model, delta, METADATA["base_sha256"])
    expected = base.backbone.weight.detach().clone().flatten()
    expected[[0, 7, 11]] = torch.tensor([0.1, -3.7, 1e-40])
    assert torch.equal(model.backbone.weight.detach().flatten(), expected)
    assert torch.equal(model.backbone.bias, base.backbone.bias)
    assert torch.equal(model.head.weight, torch.full((2, 3), 0.3))
    applied.revert()
    assert all(torch.equal(own, other) for own, other in zip(model.parameters(), base.parameters(), strict=True))


def test_whole_tensors_become_all_their_entries() -> None:
    delta = delta_of({"backbone.bias": torch.tensor([1.0, 2.0, 3.0])}, {}, METADATA)
    assert delta.entries["backbone.bias"].index.tolist() == [0, 1, 2]
    assert delta.count == 3


def test_the_file_stays_small(tmp_path: Path) -> None:
    count = 5_000
    step = torch.zeros(count, dtype=torch.int32)
    result = {"w.index": torch.arange(count, dtype=torch.int32), "w.value": torch.randn(count), "w.step": step}
    write_delta(tmp_path / "d.safetensors", delta_of(result, {}, METADATA))
    assert 12 * count < (tmp_path / "d.safetensors").stat().st_size < 12 * count + 1_000


def test_another_base_is_refused() -> None:
    model = Small()
    with pytest.raises(ModelError, match="ffffffffffff, not 000000000000"):
        apply_delta(model, trained(), "0" * 64)
    assert torch.equal(model.head.bias, Small().head.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"entries": {"decoder.weight": d.entries["backbone.weight"]}}, "no tensor 'decoder.weight'"),
        (lambda d: {"entries": {"backbone.bias": d.entries["backbone.weight"]}}, "entry 11 of 'backbone.bias'"),
        (lambda d: {"head": {"head.bias": torch.zeros(3)}}, r"shape \(3,\)"),
        (
            lambda d: {
                "entries": {"backbone.weight": replace(d.entries["backbone.weight"], value=torch.ones(3).half())}
            },
            "float16",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(change: object, message: str) -> None:
    delta, model = trained(), Small()
    with pytest.raises(ModelError, match=message):
        apply_delta(model, replace(delta, **change(delta)), METADATA["base_sha256"])  # type: ignore[operator]
    assert all(torch.equal(own, other) for own, other in zip(model.parameters(), Small().parameters(), strict=True))


def test_files_that_are_no_delta(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    with pytest.raises(DataError, match="Cannot read"):
        read_delta(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="Cannot read"):
        read_delta(path)
    write_delta(path, trained())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="Cannot read"):
        read_delta(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(DataError, match="it lacks format, k"):
        read_delta(path)


def _write(path: Path, index: list[int], k: str = "2", form: str = "1", **other: torch.Tensor) -> None:
    triple = {
        "w.index": torch.tensor(index, dtype=torch.int32),
        "w.value": torch.ones(2),
        "w.step": torch.zeros(2, dtype=torch.int32),
    }
    save_file({**triple, **other}, path, metadata={**METADATA, "format": form, "k": k})


def test_deltas_that_contradict_themselves(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    _write(path, [0, 5])
    assert read_delta(path).count == 2
    _write(path, [0, 5], form="9")
    with pytest.raises(DataError, match="format '9'"):
        read_delta(path)
    _write(path, [0, 5], k="3")
    with pytest.raises(DataError, match="promises 3"):
        read_delta(path)
    for bad in ([5, 5], [5, 0], [-1, 4]):
        _write(path, bad)
        with pytest.raises(DataError, match="not ascending"):
            read_delta(path)
    _write(path, [0, 5, 6])
    with pytest.raises(DataError, match="do not fit together"):
        read_delta(path)
    _write(path, [0, 5], stray=torch.ones(1))
    with pytest.raises(DataError, match="'stray' has no place"):
        read_delta(path)


def test_writing_where_one_cannot(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Cannot write"):
        write_delta(tmp_path / "missing" / "delta.safetensors", trained())
    incomplete = replace(trained(), metadata={"format": "1", "k": "3"})
    with pytest.raises(DataError, match="base_sha256"):
        write_delta(tmp_path / "delta.safetensors", incomplete)
    assert list(tmp_path.iterdir()) == []
