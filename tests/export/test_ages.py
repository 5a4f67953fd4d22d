"""When weights were unmasked against how far they moved, recomputed from the result and the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import SpecError
from engine.export.ages import ages
from engine.export.finished import opened
from engine.export.rebuild import own_tensors, rebuild
from engine.training.build import Caches
from engine.training.result_file import read_result
from tests.export.conftest import Trained


@pytest.fixture
def home(trained: Trained, monkeypatch: pytest.MonkeyPatch, small: Path) -> Path:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(trained.home))
    monkeypatch.setenv("PEFTSCOPE_ROOTS", f"{small}:{trained.home}")
    return trained.home


def test_every_weight_is_in_one_group_with_its_own_change(home: Path, trained: Trained) -> None:
    found = ages(home, trained.ids["id3"])
    with opened(home, trained.ids["id3"]) as finished:
        own = own_tensors(read_result(finished.folder.result), 0)
        base = dict(rebuild(finished, Caches()).base.named_parameters())
    pairs = []
    for name in (key.removesuffix(".step") for key in own if key.endswith(".step")):
        start = base[name].detach().view(-1)[own[f"{name}.index"].long()]
        pairs += zip(own[f"{name}.step"].tolist(), (own[f"{name}.value"] - start).abs().tolist(), strict=True)
    assert sum(row["count"] for row in found["rows"]) == len(pairs) == 300
    for row in found["rows"]:
        moved = [change for step, change in pairs if row["first"] <= step <= row["last"]]
        assert len(moved) == row["count"] > 0
        assert row["quartiles"] == pytest.approx(np.quantile(moved, (0.25, 0.5, 0.75)).tolist(), rel=1e-5, abs=1e-9)
        assert row["unmoved"] == sum(change == 0 for change in moved)
    firsts = [row["first"] for row in found["rows"]]
    assert firsts == sorted(set(firsts))
    assert found["rows"][0]["quartiles"][1] > found["rows"][-1]["quartiles"][1], "late weights have little time"


def test_a_mask_on_lora_starts_from_what_lora_made(home: Path, trained: Trained) -> None:
    assert sum(row["count"] for row in ages(home, trained.ids["id3-on-lora"])["rows"]) == 60


def test_a_mask_of_one_size_has_no_ages(home: Path, trained: Trained) -> None:
    with pytest.raises(SpecError, match="one size only"):
        ages(home, trained.ids["lora"])
