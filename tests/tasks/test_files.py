"""Files of the user's own: guesses, choices, uploads, and loading them as datasets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import settings
from engine.errors import DataError, PathRefused, UnknownName
from engine.spec import DatasetChoice
from engine.tasks.catalogue import load_dataset
from engine.tasks.files import inspect_file, store_upload
from tests.tasks.test_splitting import sentences


def write_tsv(path: Path, header: str | None = "sentence\tlabel", rows: int = 200) -> Path:
    lines = [f"{text}\t{('bad', 'good')[i % 2]}" for i, text in enumerate(sentences(rows))]
    path.write_text("\n".join([*([header] if header else []), *lines]) + "\n")
    return path


def test_a_file_becomes_a_dataset(home: Path, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "films.tsv")
    dataset = load_dataset(DatasetChoice(source=str(path), text="sentence", label="label"))
    assert dataset.labels == ("bad", "good")
    assert dataset.title == "films.tsv"
    about = dataset.provenance
    assert about["columns"] == {"text": "sentence", "pair": None, "label": "label"}
    assert (about["encoding"], about["delimiter"], about["rows"]) == ("utf-8", "tab", 200)
    assert len(about["sha256"]) == 64


def test_columns_are_guessed_when_not_chosen(home: Path, tmp_path: Path) -> None:
    chosen = load_dataset(DatasetChoice(source=str(write_tsv(tmp_path / "a.tsv")), text="sentence", label="label"))
    guessed = load_dataset(DatasetChoice(source=str(tmp_path / "a.tsv")))
    assert guessed.sha256 == chosen.sha256


def test_pairs_by_column(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    lines = [f"premise {i},hypothesis {i},{i % 2}" for i in range(200)]
    path.write_text("sentence1,sentence2,label\n" + "\n".join(lines))
    dataset = load_dataset(DatasetChoice(source=str(path), text="sentence1", pair="sentence2", label="label"))
    assert dataset.is_pair
    first = dataset.splits["train"]
    assert first.pairs is not None
    assert first.texts[0].replace("premise", "hypothesis") == first.pairs[0]
    single = load_dataset(DatasetChoice(source=str(path), text="sentence1", label="label"))
    assert not single.is_pair  # a second text is only guessed together with the first


def test_no_header_and_columns_by_number(home: Path, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "plain.tsv", header=None)
    dataset = load_dataset(DatasetChoice(source=str(path), header=False, text="0", label="1"))
    assert dataset.provenance["rows"] == 200


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"text": "review"}, r"no column 'review'.*'sentence', 'label'"),
        ({"text": "sentence", "label": "sentence"}, "chosen twice"),
    ],
)
def test_wrong_columns_are_explained(home: Path, tmp_path: Path, choice: dict[str, str], message: str) -> None:
    path = write_tsv(tmp_path / "a.tsv")
    with pytest.raises(DataError, match=message):
        load_dataset(DatasetChoice(source=str(path), **choice))


def test_a_column_that_cannot_be_guessed_is_asked_for(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "problems.csv"
    path.write_text("question,answer\n" + "\n".join(f"what is {i} and {i},{2 * i}" for i in range(90)))
    with pytest.raises(DataError, match=r"not clear which column holds the label.*'question', 'answer'"):
        load_dataset(DatasetChoice(source=str(path)))


def test_looking_at_a_file(home: Path, tmp_path: Path) -> None:
    look = inspect_file(write_tsv(tmp_path / "a.tsv"))
    assert look.columns == ("sentence", "label")
    assert (look.rows, look.header, look.delimiter) == (200, True, "\t")
    assert look.guesses.text == "sentence"
    assert look.guesses.label == "label"
    assert look.guesses.pair is None
    assert look.sample[1] == {"sentence": "sentence number 1 of the file", "label": "good"}


def test_a_missing_header_is_noticed(home: Path, tmp_path: Path) -> None:
    look = inspect_file(write_tsv(tmp_path / "a.tsv", header=None))
    assert not look.header
    assert look.rows == 200
    assert (look.guesses.text, look.guesses.label) == ("0", "1")
    assert inspect_file(tmp_path / "a.tsv", header=True).rows == 199


def test_uploads_are_kept_by_content_and_never_by_name(home: Path) -> None:
    data = b"text,label\nx,1\n"
    path = store_upload(data, "../../etc/My Secret Name.CSV")
    assert path.parent == home / "uploads"
    assert path.suffix == ".csv"
    assert "Secret" not in path.name
    assert path.read_bytes() == data
    assert store_upload(data, "other.csv") == path
    assert store_upload(b"text,label\ny,1\n", "other.csv") != path
    assert settings.allowed_path(path) == path.resolve()


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "a.csv", "empty"),
        (b"MZ", "a.exe", r"'\.exe' are not read.*\.csv"),
        (b"x", "noending", "not read"),
    ],
)
def test_wrong_uploads_are_refused(home: Path, data: bytes, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_upload(data, name)
    assert not (home / "uploads").exists()


def test_an_upload_over_the_limit_is_refused_with_the_limit(home: Path) -> None:
    with pytest.raises(DataError, match="limit is 64 MB"):
        store_upload(bytes(settings.UPLOAD_BYTES + 1), "a.csv")


def test_an_upload_becomes_a_dataset(home: Path, tmp_path: Path) -> None:
    path = store_upload(write_tsv(tmp_path / "a.tsv").read_bytes(), "whatever.tsv")
    dataset = load_dataset(DatasetChoice(source=str(path)))
    assert dataset.title == f"upload {path.stem[:8]}.tsv"


def test_a_file_outside_the_roots_is_refused(home: Path) -> None:
    with pytest.raises(PathRefused, match="outside the folders"):
        load_dataset(DatasetChoice(source="/etc/passwd"))
    with pytest.raises(PathRefused):
        inspect_file("/etc/passwd")


def test_a_link_out_of_the_roots_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    with pytest.raises(PathRefused):
        load_dataset(DatasetChoice(source=str(tmp_path / "link.csv")))


def test_missing_file_and_unknown_word(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_dataset(DatasetChoice(source=str(tmp_path / "gone.csv")))
    with pytest.raises(UnknownName, match="Did you mean 'rotten_tomatoes'"):
        load_dataset(DatasetChoice(source="rotten_tomatos"))


def test_the_cache_follows_the_file_and_survives_damage(home: Path, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv")
    choice = DatasetChoice(source=str(path))
    first = load_dataset(choice)
    stored = list((home / "cache" / "datasets").glob("*.npz"))
    assert len(stored) == 1
    again = load_dataset(choice)
    assert again.splits["test"].texts == first.splits["test"].texts
    assert again.provenance == first.provenance
    assert again.sha256 == first.sha256
    stored[0].write_bytes(stored[0].read_bytes()[:200])
    assert load_dataset(choice).sha256 == first.sha256
    write_tsv(path, rows=220)
    assert load_dataset(choice).provenance["rows"] == 220


def test_limits_hold_for_a_file_given_by_path(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "some text,1\n" * (settings.UPLOAD_ROWS + 1))
    with pytest.raises(DataError, match="200,000 rows"):
        load_dataset(DatasetChoice(source=str(path)))


@pytest.mark.timeout(20)
def test_a_pipe_is_no_dataset(home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is not a file but"):
        load_dataset(DatasetChoice(source=str(tmp_path / "pipe.csv")))


def test_a_subset_of_a_file_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no subsets; `subset: 'sst2'`"):
        load_dataset(DatasetChoice(source=str(write_tsv(tmp_path / "a.tsv")), subset="sst2"))
