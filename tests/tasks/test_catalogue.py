"""The embedded datasets, the hub, and real benchmark files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import datasets as hub_library
import numpy as np
import pytest

from engine.errors import DataError, HubUnreachable
from engine.settings import PROJECT
from engine.spec import DatasetChoice
from engine.tasks import hub
from engine.tasks.catalogue import datasets, load_dataset
from engine.tasks.dataset import SPLITS
from engine.tasks.files import inspect_file
from engine.tasks.splitting import normalise
from tests.tasks.test_splitting import sentences


def test_rotten_tomatoes(home: Path) -> None:
    dataset = load_dataset(DatasetChoice(source="rotten_tomatoes"))
    assert dataset.labels == ("negative", "positive")
    assert dataset.length == "sentence"
    assert dataset.provenance["rows"] == 8530
    assert {name: len(dataset.splits[name]) for name in SPLITS} == {"train": 6881, "validation": 816, "test": 833}
    keys = [normalise(text) for name in SPLITS for text in dataset.splits[name].texts]
    assert len(keys) == len(set(keys)) == 8530
    labels = np.concatenate([dataset.splits[name].labels for name in SPLITS])
    assert np.bincount(labels).tolist() == [4265, 4265]
    train = dataset.splits["train"]
    known = next(i for i, text in enumerate(train.texts) if text.startswith("emerges as something rare"))
    assert train.labels[known] == 1


def test_imdb_and_its_warm_load(home: Path) -> None:
    dataset = load_dataset(DatasetChoice(source="imdb"))
    assert dataset.length == "review"
    assert dataset.provenance["rows"] == 25000
    assert dataset.provenance["duplicates_removed"] == 98
    assert sum(len(dataset.splits[name]) for name in SPLITS) == 24902
    assert not any("<br" in text for text in dataset.splits["train"].texts)
    start = time.monotonic()
    again = load_dataset(DatasetChoice(source="imdb"))
    assert time.monotonic() - start < 1.2  # about 0.06 s on a quiet machine
    assert again.splits["train"].texts == dataset.splits["train"].texts


def test_listing() -> None:
    assert [(entry.id, entry.available) for entry in datasets()] == [("rotten_tomatoes", True), ("imdb", True)]


def test_embedded_columns_are_fixed(home: Path) -> None:
    with pytest.raises(DataError, match="fixed"):
        load_dataset(DatasetChoice(source="imdb", text="text"))


def test_importing_needs_no_torch_and_not_the_package() -> None:
    code = (
        "import sys\n"
        "import engine.tasks.catalogue, engine.tasks.encoding, engine.tasks.preview, engine.tasks.order\n"
        "found = {'torch', 'transformers', 'datasets', 'movie_reviews', 'pandas'} & set(sys.modules)\n"
        "assert not found, found\n"
        "from engine.spec import DatasetChoice\n"
        "engine.tasks.catalogue.load_dataset(DatasetChoice(source='rotten_tomatoes'))\n"
        "found = {'torch', 'movie_reviews'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_a_hub_dataset_offline_says_so_and_the_rest_works(home: Path) -> None:
    with pytest.raises(HubUnreachable, match="dataset owner/name"):
        load_dataset(DatasetChoice(source="owner/name"))
    assert load_dataset(DatasetChoice(source="rotten_tomatoes")).id == "rotten_tomatoes"


def test_a_hub_table_has_names_for_labels_and_none_for_unlabelled_rows(home: Path) -> None:
    data = hub_library.Dataset.from_dict(
        {"sentence": ["a", "b", None], "label": [1, 0, -1], "idx": [0, 1, 2]},
        features=hub_library.Features(
            {
                "sentence": hub_library.Value("string"),
                "label": hub_library.ClassLabel(names=["bad", "good"]),
                "idx": hub_library.Value("int32"),
            }
        ),
    )
    table = hub.table_of(data, "owner/name")
    assert table.column("sentence") == ["a", "b", ""]
    assert table.column("label") == ["good", "bad", ""]
    assert table.column("idx") == ["0", "1", "2"]


def test_a_hub_dataset_over_the_limit_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.settings.UPLOAD_ROWS", 2)
    with pytest.raises(DataError, match="limit is 2"):
        hub.table_of(hub_library.Dataset.from_dict({"text": sentences(3)}), "owner/name")


REAL = {
    "sst2/train.tsv": (67349, 2, False, True),
    "sst2/dev.tsv": (872, 2, False, True),
    "mrpc/train.tsv": (3667, 2, True, False),
    "mrpc/dev.tsv": (408, 2, True, False),
    "mrpc/msr_paraphrase_test.txt": (1725, 2, True, False),
    "rte/train.tsv": (2490, 2, True, False),
    "rte/dev.tsv": (277, 2, True, False),
    "trec/TREC.train": (5452, 50, False, False),
    "trec/TREC.test": (500, 40, False, False),
}


@pytest.mark.slow
@pytest.mark.files
@pytest.mark.parametrize("name", REAL)
def test_real_benchmark_files(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("PEFTSCOPE_TEST_DATA")
    if not folder:
        pytest.skip("set PEFTSCOPE_TEST_DATA to the folder with the benchmark files")
    monkeypatch.setenv("PEFTSCOPE_ROOTS", folder)
    rows, classes, pairs, quoting = REAL[name]
    path = Path(folder) / name
    look = inspect_file(path)
    dataset = load_dataset(DatasetChoice(source=str(path), header=look.header))
    about = dataset.provenance
    assert (look.rows, about["rows"], look.quoting) == (rows, rows, quoting)
    assert (len(dataset.labels), dataset.is_pair) == (classes, pairs)
    assert about["dropped"]["empty"] == 0
    kept = sum(about["splits"].values()) + sum(about["dropped"]["label_not_in_training"].values())
    assert kept + about["duplicates_removed"] + about["contradictory_removed"] == rows


@pytest.mark.slow
@pytest.mark.files
def test_real_files_without_classes_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("PEFTSCOPE_TEST_DATA")
    if not folder:
        pytest.skip("set PEFTSCOPE_TEST_DATA to the folder with the benchmark files")
    monkeypatch.setenv("PEFTSCOPE_ROOTS", folder)
    path = str(Path(folder) / "gsm8k/test.jsonl")
    with pytest.raises(DataError, match="not clear which column holds the label"):
        load_dataset(DatasetChoice(source=path))
    with pytest.raises(DataError, match="different labels"):
        load_dataset(DatasetChoice(source=path, text="question", label="answer"))
