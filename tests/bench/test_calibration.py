"""The calibration times real work and leaves the random state as it was."""

from __future__ import annotations

import pytest
import torch

from engine.bench import calibration, main


def test_calibration_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    found = calibration.calibrate()
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < found.product_seconds < 10
    assert 0 < found.step_seconds < 60
    assert found.threads == torch.get_num_threads()
    assert "Gflop/s" in found.sentence


def test_a_slower_machine_reads_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the work takes longer."""
    import torch as library

    once = calibration._products()
    plain = library.mm
    monkeypatch.setattr(library, "mm", lambda a, b: [plain(a, b) for _ in range(4)])
    assert calibration._products() > 2 * once


def test_it_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibration"]) == 0
    assert capsys.readouterr().out.startswith("calibration: ")
