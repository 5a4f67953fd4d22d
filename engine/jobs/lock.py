"""One engine per home: an OS lock that goes with its process, however that ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from engine.store.database import storing
from engine.store.paths import Layout, refuse_network_folder


class EngineLock:
    """Held by the supervisor as long as it lives."""

    def __init__(self, home: Path) -> None:
        self._layout = Layout(home)
        self._lock = FileLock(self._layout.lock, thread_local=False)

    def take(self) -> bool:
        """Take the lock; False when another engine of this home holds it.

        Raises:
            StoreError: when the home cannot hold the lab's files.
        """
        with storing(self._layout.lock):
            self._layout.home.mkdir(parents=True, exist_ok=True)
            refuse_network_folder(self._layout.home)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                return False
        return True

    def release(self) -> None:
        """Let another engine begin."""
        self._lock.release()
