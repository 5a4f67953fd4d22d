"""What errors show of what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import settings
from engine.errors import EngineError, StoreError, UnknownName, clipped, shown
from engine.plan import make_plan
from engine.spec import parse_spec
from tests.small import spec_data

LONG = "x" * 3_000
SPACED = "xy " * 1_000


def test_a_short_value_is_shown_as_it_is() -> None:
    assert shown("lora") == "'lora'"
    assert shown(3) == "3"
    assert clipped("a path /home/ada/films.csv.\nand a line") == "a path /home/ada/films.csv.\nand a line"


@pytest.mark.parametrize("value", [LONG, SPACED, [1] * 3_000, "\n" * 3_000])
def test_a_long_value_keeps_its_ends(value: object) -> None:
    text = shown(value)
    assert len(text) < 70
    assert (text[0], text[-1]) == (repr(value)[0], repr(value)[-1])


def test_errors_leave_out_the_middle_of_long_names() -> None:
    error = EngineError(f"There is no {LONG}.", f"Give another than {SPACED}, please.")
    assert error.what.startswith("There is no xxx")
    assert error.todo.endswith(", please.")
    assert len(str(error)) < 2_000
    again = EngineError(error.what, error.todo)
    assert (again.what, again.todo) == (error.what, error.todo)
    assert len(UnknownName("model", LONG, ["nano-bert"]).what) < 100


WRONG: list[dict[str, Any]] = [
    *({key: name} for key in ("model", "dataset", "method") for name in (LONG, SPACED, f"owner/{LONG}", f"./{LONG}")),
    {"method": {"name": "lora", LONG: 3}},
    {"method": {"name": "lora", "rank": SPACED}},
    {"train": {"device": SPACED}},
    {"train": {LONG: 1}},
    {LONG: 1},
]


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_a_spec_with_long_names_is_refused_in_few_words(home: Path, small: Path, change: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        make_plan(parse_spec(spec_data(small) | change))
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("below", ["", "sub/store"])
def test_a_store_that_is_a_file_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    monkeypatch.setenv("PEFTSCOPE_HOME", str(file / below))
    with pytest.raises(StoreError, match=r"notes\.txt is a file\. Set PEFTSCOPE_HOME to a folder"):
        settings.home()
    assert file.read_text() == "mine"


@pytest.mark.parametrize("below", ["", "new/deep"])
def test_a_folder_or_one_to_be_made_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setenv("PEFTSCOPE_HOME", str(tmp_path / below))
    assert settings.home() == tmp_path / below
