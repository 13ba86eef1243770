"""A model named by its Hub id is fetched over HTTP; here the Hub is a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download uses: resolve, and the list of files."""

    folder: Path

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        content, headers = b"", {}
        if parts[:4] == ["api", "models", "someone", "tiny"]:
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            content = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": files}).encode()
            if "tree" in parts:
                content = json.dumps(
                    [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                        for f in self.folder.iterdir()
                    ]
                ).encode()
        elif len(parts) == 5 and parts[:3] == ["someone", "tiny", "resolve"] and (self.folder / parts[4]).is_file():
            content = (self.folder / parts[4]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            missing = "RepoNotFound" if parts[:2] != ["someone", "tiny"] else "EntryNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tiny_bert: Path) -> Iterator[str]:
    handler = type("Handler", (HubHandler,), {"folder": tiny_bert})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(model: str, endpoint: str, files: tuple[Path, Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
    }
    command = [
        "finetune-teacher",
        "--task",
        "custom",
        "--train-file",
        files[0],
        "--dev-file",
        files[1],
        "--model",
        model,
    ]
    command += ["--max-length", "32", "--runs-dir", folder / "runs", "--set", "train.max_steps=2", "--quiet"]
    return subprocess.run(
        [sys.executable, "-m", "kdbert", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def test_a_model_is_fetched_by_its_hub_id(hub: str, custom_files: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("someone/tiny", hub, custom_files, tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).joinpath("model/model.safetensors").is_file()


def test_an_unknown_hub_id_is_one_sentence(hub: str, custom_files: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("someone/absent", hub, custom_files, tmp_path)
    assert done.returncode == 2
    assert "someone/absent" in done.stderr
    assert "Hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
