"""Fixtures for all tests: a store of their own, and a small model and data file on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.settings import QUIET_THREADS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.update(QUIET_THREADS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, in force for this test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("PEFTSCOPE_HOME", str(folder))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", os.pathsep.join([str(tmp_path), str(tmp_path.parent)]))
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model and data file, made once."""
    from tests.small import write_data, write_model

    folder = tmp_path_factory.getbasetemp() / "small"
    write_model(folder / "model")
    write_data(folder / "data.tsv")
    return folder
