"""Every error that the lab raises on purpose.

EngineError                 something the user can act on; carries what happened and what to do
├── SpecError               the request itself is wrong
│   ├── UnknownName         a method, model, dataset or run that does not exist (suggests near names)
│   └── BudgetError         a budget that cannot be met on this model
├── DataError               a dataset that cannot be read or used
├── ModelError              a model that cannot be loaded or is not supported
│   └── HubUnreachable      a hub id that cannot be fetched from here
├── PathRefused             a path outside the configured roots
├── StoreError              the store cannot be read or written (disk full, not a local disk)
├── NotAllowed              somebody else's run
└── RunFailed               a run that ended without a result
    ├── Diverged            its loss left the finite world
    └── Stopped             somebody asked it to stop
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def shown(value: object, most: int = 60) -> str:
    """A value as it was given, for a message; the middle of a long one is left out."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def clipped(text: str) -> str:
    """A message without the middle of overlong words and lines: a name in it may have thousands of letters."""
    text = re.sub(r"\S{300,}", lambda word: f"{word[0][:100]}...{word[0][-100:]}", text)
    return re.sub(r".{1500,}", lambda line: f"{line[0][:700]}...{line[0][-700:]}", text)


class EngineError(Exception):
    """An error meant to be read by a user.

    Args:
        what: what happened, with the offending value.
        todo: what to do about it; empty when nothing can be done.
    """

    def __init__(self, what: str, todo: str = "") -> None:
        self.what = clipped(what)
        self.todo = clipped(todo)
        super().__init__(f"{self.what} {self.todo}".strip())


class SpecError(EngineError):
    """The request is malformed, or asks for something impossible."""


class UnknownName(SpecError):
    """A name that no registry, catalogue or store knows.

    Args:
        kind: what was looked for, for example ``"method"``.
        name: the name that was given.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        suggestion = f"Did you mean {near[0]!r}?" if near else ""
        listing = f"Known: {', '.join(names)}." if names else f"There is no {kind} yet."
        super().__init__(f"Unknown {kind} {shown(name)}.", f"{suggestion} {listing}".strip())


class BudgetError(SpecError):
    """A budget that is zero, above the model, or below what the method can do."""


class DataError(EngineError):
    """A dataset that cannot be read, is empty, or cannot be learned from."""


class ModelError(EngineError):
    """A model that cannot be loaded or whose architecture is not supported."""


class HubUnreachable(ModelError):
    """A hub id was asked for and the hub does not answer."""


class PathRefused(EngineError):
    """A file or folder outside the configured roots."""


class StoreError(EngineError):
    """The store cannot be read or written."""


class NotAllowed(EngineError):
    """The asker neither started the run nor is the machine's own user."""


class RunFailed(EngineError):
    """A run that ended without a result."""


class Diverged(RunFailed):
    """The loss is not finite, or far above where it began."""


class Stopped(RunFailed):
    """The run was asked to stop.

    Args:
        keep: whether the checkpoint stays, so that the run can be resumed.
    """

    def __init__(self, keep: bool) -> None:
        super().__init__("The run was stopped.", "Resume it from its checkpoint." if keep else "")
        self.keep = keep
