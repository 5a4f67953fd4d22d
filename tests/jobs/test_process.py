"""When a process counts as gone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from engine.jobs import process
from tests.jobs.conftest import until

LEADERLESS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
leave_this_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(leave_this_thread, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a leader as a zombie while its threads live")
def test_a_process_is_gone_only_with_its_last_thread(tmp_path: Path) -> None:
    """A killed worker's threads may outlive its leader for a moment, and they hold the locks of its files."""
    identity = process.start([sys.executable, "-c", LEADERLESS], env={}, log=tmp_path / "log.txt")
    until(lambda: psutil.Process(identity.pid).status() == psutil.STATUS_ZOMBIE)
    assert process.is_alive(identity)
    os.kill(identity.pid, signal.SIGKILL)
    until(lambda: not process.is_alive(identity))
    assert process.exit_code(identity) == -signal.SIGKILL
