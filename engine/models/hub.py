"""Hugging Face Hub: safetensors and JSON only, a pinned revision, and a quick answer when offline."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.errors import HubUnreachable, ModelError, shown

TIMEOUT = 6.0
"""Seconds until the hub counts as unreachable."""
_ID = re.compile(r"^([\w][\w.-]*/[\w][\w.-]*?)(?:@([\w.-]+))?$", re.ASCII)
_PATTERNS = ["config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.*", "model*.safetensors*"]


@dataclass(frozen=True)
class HubEntry:
    """A repository at one revision.

    Attributes:
        id: ``owner/name``.
        revision: the commit, or what was asked for when only the local cache could answer.
        licence: as its card says, empty when unknown.
    """

    id: str
    revision: str
    licence: str


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ``owner/name`` or ``owner/name@revision``."""
    return _ID.match(text) is not None and ".." not in text


def hub_entry(kind: Literal["model", "dataset"], ref: str) -> HubEntry:
    """Ask the hub for the commit that a reference means now.

    Raises:
        HubUnreachable: when it does not answer within `TIMEOUT`.
        ModelError: when it does, and there is no such repository, or it is closed; or when none can have this name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = split_ref(ref)
    api = HfApi()
    try:
        info = (api.model_info if kind == "model" else api.dataset_info)(name, revision=revision, timeout=TIMEOUT)
    except HFValidationError:
        raise ModelError(
            f"{shown(name)} cannot be a {kind} of the hub.",
            "Its names have at most 96 letters, and neither `--` nor, at an end, `-` or `.`.",
        ) from None
    except GatedRepoError:
        raise ModelError(f"The hub asks for an agreement before {name} may be used.", "Accept it there.") from None
    except RepositoryNotFoundError:
        raise ModelError(f"The hub has no public {kind} {name!r}.", "Check its spelling.") from None
    except RevisionNotFoundError:
        raise ModelError(f"The hub's {kind} {name} has no revision {revision!r}.", "Check its spelling.") from None
    except HfHubHTTPError as error:
        raise unreachable(kind, name, f"it answered {error.response.status_code}") from None
    except Exception as error:
        if not _of_the_network(error):
            raise
        raise unreachable(kind, name, type(error).__name__) from None
    return HubEntry(name, str(info.sha or revision or "main"), str(getattr(info.card_data, "license", None) or ""))


def split_ref(ref: str) -> tuple[str, str | None]:
    """``owner/name@revision`` as its two parts; the revision is None when not given."""
    match = _ID.match(ref)
    if match is None:
        raise ModelError(f"{ref!r} is not a hub id.", "Hub ids have the form owner/name or owner/name@revision.")
    return match[1], match[2]


def unreachable(kind: str, name: str, reason: str) -> HubUnreachable:
    """The error that says what still works without the hub."""
    embedded = "minilm-l6" if kind == "model" else "rotten_tomatoes or imdb"
    return HubUnreachable(
        f"The hub cannot be reached for the {kind} {name} ({reason}).",
        f"Everything else works: use {embedded}, or a {'folder' if kind == 'model' else 'file'} of your own.",
    )


def model_snapshot(ref: str) -> tuple[Path, HubEntry]:
    """A model's folder at one revision, downloaded on first use; the local cache answers when offline.

    Raises:
        HubUnreachable: offline, and not downloaded before.
        ModelError: no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = split_ref(ref)
    try:
        entry = hub_entry("model", ref)
    except HubUnreachable as offline:
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            raise offline from None
        return folder, HubEntry(name, folder.name, "")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, etag_timeout=TIMEOUT))
    except Exception as error:
        if not _of_the_network(error):
            raise
        raise unreachable("model", name, f"the download broke off: {type(error).__name__}") from None
    # Fetched by the name that was asked for, so that the cache answers to it offline; the folder's name is the commit.
    return folder, replace(entry, revision=folder.name)


def _of_the_network(error: Exception) -> bool:
    """Whether an error comes from the connection.

    Told by the library that raised it: the HTTP client below the hub's own has changed with
    its versions, and so have the classes of its errors.
    """
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("httpx", "httpx2", "httpcore", "requests", "huggingface_hub")
