"""Where everything lies below the store's home, and which folders cannot hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from engine.errors import StoreError, UnknownName

# SQLite's WAL shares memory between processes of one host; over a network it corrupts or blocks.
NETWORK_TYPES = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb", "smbfs", "smb2", "smb3", "afs", "afpfs", "webdav", "davfs", "ncpfs"}
    | {"ceph", "lustre", "gpfs", "beegfs", "glusterfs", "panfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "moosefs"}
    | {f"fuse.{name}" for name in ("sshfs", "s3fs", "rclone", "gcsfuse", "glusterfs", "ceph", "juicefs", "davfs2")}
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: Path

    @property
    def id(self) -> str:
        """The run's id: the folder's name."""
        return self.root.name

    @property
    def spec(self) -> Path:
        """What was asked, resolved, as YAML."""
        return self.root / "spec.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, hashes and hardware, as JSON."""
        return self.root / "provenance.json"

    @property
    def database(self) -> Path:
        """Scalars, frames, notes and metadata."""
        return self.root / "run.db"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.root / "log.txt"

    @property
    def checkpoint(self) -> Path:
        """The folder with the last checkpoint, while there is one."""
        return self.root / "checkpoint"

    @property
    def result(self) -> Path:
        """The folder with what the run trained."""
        return self.root / "result"

    def bytes(self) -> int:
        """How much of the disk the run takes."""
        total = 0
        for path in self.root.rglob("*"):
            try:
                total += 0 if path.is_dir() else path.lstat().st_size
            except FileNotFoundError:  # a live run's files come and go
                continue
        return total


@dataclass(frozen=True)
class Layout:
    """The files below one home."""

    home: Path

    @property
    def engine_db(self) -> Path:
        """The queue, and one summary row per run."""
        return self.home / "engine.db"

    @property
    def lock(self) -> Path:
        """Held by the one engine of this home."""
        return self.home / "engine.lock"

    @property
    def logs(self) -> Path:
        """What the engine and its workers print outside runs."""
        return self.home / "logs"

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.home / "runs"

    def run(self, run_id: str) -> RunFolder:
        """The files of a run.

        Raises:
            UnknownName: when the id, which may come from a link, could not be one of ours.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise UnknownName("run", run_id, [])
        return RunFolder(self.runs / run_id)


def network_type(folder: Path, mounts: Iterable[tuple[str, str]]) -> str | None:
    """The network file system that a folder lies on, or None.

    Args:
        folder: an absolute path.
        mounts: (mount point, file system type) of everything mounted.
    """
    if str(folder).startswith(("\\\\", "//")):
        return "a network share"
    holding = [(Path(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    if not holding:
        return None
    # Of several mounts on one point the last is the one seen.
    deepest = max(len(point.parts) for point, _ in holding)
    kind = [kind for point, kind in holding if len(point.parts) == deepest][-1].lower()
    return kind if kind in NETWORK_TYPES else None


def refuse_network_folder(folder: Path) -> None:
    """Check that a folder can hold SQLite files.

    Raises:
        StoreError: when it lies on a network file system.
    """
    kind = _network_type_of(folder.resolve())
    if kind:
        raise StoreError(
            f"{folder} is on a network file system ({kind}), where SQLite loses data.",
            "Set PEFTSCOPE_HOME to a folder on a local disk.",
        )


@lru_cache(maxsize=256)
def _network_type_of(folder: Path) -> str | None:
    return network_type(folder, [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)])
