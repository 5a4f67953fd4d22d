"""The result file comes back as it was written, and a full disk leaves the earlier one."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from engine.errors import EngineError, StoreError
from engine.training.result_file import TEST, TRAINED, read_outcomes, read_result, write_result


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    tensors = {"0/a": torch.randn(3, 4).t(), "0/index": torch.arange(5, dtype=torch.int32)}
    head = {"classifier.weight": torch.randn(2, 4, requires_grad=True)}
    path = write_result(tmp_path / "result", tensors, head, {"method": "lora", "steps": 3})
    found = read_result(tmp_path / "result")
    assert path.name == TRAINED
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert found.tensors["0/index"].dtype == torch.int32
    assert torch.equal(found.head["classifier.weight"], head["classifier.weight"])
    assert found.metadata == {"method": "lora", "steps": 3}


def test_a_method_may_not_use_the_heads_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.x"):
        write_result(tmp_path, {"head.x": torch.zeros(1)}, {}, {})


def test_a_full_disk_keeps_the_earlier_result(tmp_path: Path) -> None:
    """Made full by a real limit on the size of files."""
    write_result(tmp_path, {"a": torch.ones(2)}, {}, {"run": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            write_result(tmp_path, {"a": torch.ones(100_000)}, {}, {"run": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_result(tmp_path).metadata == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == [TRAINED]


def test_missing_and_damaged_results_say_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no trained result"):
        read_result(tmp_path)
    (tmp_path / TRAINED).write_bytes(b"not safetensors")
    with pytest.raises(EngineError, match="damaged"):
        read_result(tmp_path)
    with pytest.raises(EngineError, match="no test answers"):
        read_outcomes(tmp_path)
    save_file({"logits": np.zeros((2, 2), np.float32)}, tmp_path / TEST)
    with pytest.raises(EngineError, match="damaged"):
        read_outcomes(tmp_path)


def test_outcomes_of_the_test_set(tmp_path: Path) -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    save_file({"logits": logits, "labels": np.array([0, 1, 1])}, tmp_path / TEST)
    found = read_outcomes(tmp_path)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-2.0)))
