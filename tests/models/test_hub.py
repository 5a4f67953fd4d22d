"""The hub's path for real: a small server that speaks the hub's protocol serves a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.settings import PROJECT
from tests.models.saved import save_tiny, save_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers repository information and file requests for ``owner/tiny``; 404 for the rest."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        files = sorted(path.name for path in self.folder.iterdir())
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/owner/tiny/tree/"):
            entries = [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in files]
            content = json.dumps(entries).encode()
        elif self.path.startswith("/api/models/owner/tiny"):
            about = {"id": "owner/tiny", "sha": COMMIT, "cardData": {"license": "mit"}}
            listing = [{"rfilename": file} for file in files]
            content = json.dumps({**about, "siblings": listing}).encode()
        elif self.path.startswith("/owner/tiny/resolve/") and name in files:
            content = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the server listens."""
    folder = save_tokenizer(save_tiny("bert", tmp_path / "served"), "bert")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle nobody should fetch")
    handler = type("TinyHub", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    assert not any(path.endswith(".bin") for path in handler.asked)


RESOLVE = """
import json, sys
from engine.errors import EngineError
from engine.models.catalogue import architecture_of, resolve_model
from engine.models.tokenizer import tokenizer_of
try:
    source = resolve_model(sys.argv[1])
    tokenizer_of(source).encode("a film")
    found = {"revision": source.revision, "licence": source.licence, "layers": architecture_of(source, 2).layers}
    print(json.dumps({**found, "files": sorted(path.name for path in source.folder.iterdir())}))
except EngineError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def resolve(ref: str, address: str, cache: Path) -> dict[str, object]:
    """What a fresh process gets for a reference from the hub at this address."""
    offline = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(cache), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, ref],
        env={**os.environ, **offline},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_hub_model_is_fetched_pinned_and_kept(home: Path, address: str, tmp_path: Path) -> None:
    first = resolve("owner/tiny", address, tmp_path / "cache")
    assert first == {
        "revision": COMMIT,
        "licence": "mit",
        "layers": 2,
        "files": ["config.json", "model.safetensors", "tokenizer.json"],
    }
    offline = resolve("owner/tiny", "http://127.0.0.1:9", tmp_path / "cache")  # nothing listens on port 9
    assert offline["revision"] == COMMIT


def test_a_model_that_does_not_exist_is_not_called_unreachable(home: Path, address: str, tmp_path: Path) -> None:
    answer = resolve("owner/other", address, tmp_path / "cache")
    assert answer["error"] == "ModelError"
    assert "no public model 'owner/other'" in str(answer["message"])
