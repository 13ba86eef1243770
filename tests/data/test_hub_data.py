"""Datasets of the Hub, by their id; the Hub is a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train.csv
  - split: validation
    path: data/val.csv
- config_name: small
  data_files: small.csv
---
"""


def table(rows: int) -> bytes:
    return ("text,label\n" + "".join(f"words {n},{'xy'[n % 2]}\n" for n in range(rows))).encode()


FILES = {"README.md": CARD.encode(), "data/train.csv": table(24), "data/val.csv": table(8), "small.csv": table(30)}


class Hub(BaseHTTPRequestHandler):
    """What a download of the dataset someone/films asks for."""

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, entries = self.path.split("?")[0], []
        if re.match("/api/datasets/someone/films(/revision/.*)?$", path):
            self.reply(json.dumps({"id": "someone/films", "sha": COMMIT, "siblings": []}).encode())
        elif match := re.match("/api/datasets/someone/films/tree/[^/]*/?(.*)", path):
            for name, content in FILES.items():
                folder, _, file = name.rpartition("/")
                if folder == match[1]:
                    oid = hashlib.sha1(content).hexdigest()
                    entries.append({"type": "file", "path": name, "size": len(content), "oid": oid})
                elif file and not match[1]:
                    entries.append({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            self.reply(json.dumps(entries).encode())
        elif (match := re.match("/datasets/someone/films/resolve/[^/]*/(.*)", path)) and match[1] in FILES:
            self.reply(FILES[match[1]])
        else:
            self.reply(b"", 404, "EntryNotFound" if "someone/films" in path else "RepoNotFound")

    def reply(self, content: bytes, code: int = 200, error: str | None = None) -> None:
        self.send_response(code)
        headers = {"Content-Length": len(content), "X-Repo-Commit": COMMIT, "X-Error-Code": error}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def kdbert(home: Path, address: str, *words: Any) -> subprocess.CompletedProcess[str]:
    """A command of its own process: the libraries read the Hub's address when they are imported."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-m", "kdbert", *map(str, words)], capture_output=True, text=True,
        env={**kept, "HF_ENDPOINT": address, "HF_HOME": str(home)},
    )  # fmt: skip


def test_a_dataset_of_the_hub_is_fetched_once_and_read_offline(address: str, tmp_path: Path) -> None:
    words = ["data", "describe", "custom", "--train-file"]
    done = kdbert(tmp_path, address, *words, "someone/films", "--examples", 1)
    assert done.returncode == 0, done.stderr
    assert f"dataset someone/films of the Hub, revision {COMMIT}: train 24, validation 8" in done.stderr
    assert ("train: 24 rows" in done.stdout, "dev: 8 rows" in done.stdout) == (True, True)
    again = kdbert(tmp_path, "http://127.0.0.1:1", *words, "someone/films")
    assert again.returncode == 0, again.stderr
    assert "train: 24 rows" in again.stdout


@pytest.mark.long
def test_of_several_configurations_one_is_named(address: str, tmp_path: Path) -> None:
    words = ["data", "describe", "custom", "--train-file"]
    small = kdbert(tmp_path, address, *words, "someone/films:small", "--dev-share", 0.2)
    assert small.returncode == 0, small.stderr
    assert ("train: 24 rows" in small.stdout, "dev: 6 rows" in small.stdout) == (True, True)
    for place in (address, "http://127.0.0.1:1"):
        done = kdbert(tmp_path, place, *words, "someone/films")
        assert done.returncode == 0, done.stderr
        assert "train: 24 rows" in done.stdout


@pytest.mark.parametrize("name", ["someone/absent", pytest.param("someone/films:absent", marks=pytest.mark.long)])
def test_what_the_hub_does_not_have_is_one_sentence(address: str, tmp_path: Path, name: str) -> None:
    done = kdbert(tmp_path, address, "data", "describe", "custom", "--train-file", name)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert name in done.stderr


@pytest.mark.long
def test_an_unknown_name_without_a_hub_is_one_sentence(tmp_path: Path) -> None:
    done = kdbert(tmp_path, "http://127.0.0.1:1", "data", "describe", "custom", "--train-file", "no/data")
    assert done.returncode == 2, done.stderr
    assert "no/data" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
