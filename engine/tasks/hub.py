"""Datasets from the Hugging Face Hub, through the datasets library; its training split is split here anew."""

from __future__ import annotations

from typing import Any

from engine import settings
from engine.errors import DataError, HubUnreachable
from engine.models.hub import hub_entry, split_ref, unreachable
from engine.spec import DatasetChoice
from engine.tasks.cache import cache_key, read_cached, write_cached
from engine.tasks.columns import chosen_columns
from engine.tasks.dataset import Dataset
from engine.tasks.files import rows_of
from engine.tasks.splitting import SPLIT_VERSION, make_dataset
from engine.tasks.tables import Table


def load_hub_dataset(choice: DatasetChoice) -> Dataset:
    """A hub dataset's training split at its present revision, cleaned and split by the one rule.

    Offline, what was loaded before comes from the cache.

    Raises:
        HubUnreachable: offline, and not loaded before.
        DataError: when it has no training split, too many rows, or no usable columns.
    """
    name, _ = split_ref(choice.source)
    wanted = choice.model_dump()
    latest = cache_key("hub", wanted, SPLIT_VERSION)
    try:
        entry = hub_entry("dataset", choice.source)
    except HubUnreachable:
        cached = read_cached(latest)
        if cached is None:
            raise
        return cached
    cached = read_cached(latest)
    if cached is not None and cached.provenance.get("revision") == entry.revision:
        return cached
    table = table_of(_download(name, choice.subset, entry.revision), name)
    columns = chosen_columns(table, choice)
    provenance = {
        "source": f"hub dataset {name}" + (f", {choice.subset}" if choice.subset else "") + ", split train",
        "revision": entry.revision,
        "licence": entry.licence,
        "url": f"https://huggingface.co/datasets/{name}",
        "columns": {"text": columns.text, "pair": columns.pair, "label": columns.label},
    }
    dataset = make_dataset(choice.source, name, rows_of(table, columns), provenance)
    write_cached(latest, dataset)
    return dataset


def _download(name: str, subset: str | None, revision: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split="train", revision=revision)
    except ConnectionError as error:
        raise unreachable("dataset", name, type(error).__name__) from None
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{name} cannot be loaded: {error}.", "Check its subset, or give a file instead.") from None


def table_of(data: Any, name: str) -> Table:
    """A `datasets.Dataset` as columns of text; numbers of a class label become the names of the classes.

    Raises:
        DataError: for more rows than the limit.
    """
    if len(data) > settings.UPLOAD_ROWS:
        raise DataError(f"{name} has {len(data):,} rows; the limit is {settings.UPLOAD_ROWS:,}.", "Give a smaller one.")
    columns = tuple(data.column_names)
    values = tuple(_texts(data[column], data.features[column]) for column in columns)
    return Table(columns, values, "utf-8", "", False, True)


def _texts(values: Any, feature: Any) -> list[str]:
    """One column as text; an unlabelled row (-1) and an absent value become empty."""
    names = getattr(feature, "names", None)
    if names is not None:
        return [names[value] if value is not None and value >= 0 else "" for value in values]
    return ["" if value is None else str(value) for value in values]
