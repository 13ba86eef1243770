"""Models are fetched from the Hub, and pushed to it, over HTTP; here the Hub is a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_thisIsASecretOfSomebody"
SEEN: dict[str, list[tuple[str, str, bytes, str]]] = {}  # address of a hub -> what it was asked


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download uses: resolve, and the list of files."""

    folder: Path
    seen: list[tuple[str, str, bytes, str]]  # method, path, body, token

    def do_POST(self) -> None:
        """What an upload uses: a repository is made, its card checked, files asked about, and committed."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = str(self.headers.get("Authorization"))
        self.seen.append(("POST", self.path, body, token))
        if token != f"Bearer {TOKEN}":
            self._reply(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self._reply(200, {"url": f"http://{self.headers['Host']}/someone/student", "name": "someone/student"})
        elif self.path.endswith("/preupload/main"):
            told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": file["path"], **told} for file in json.loads(body)["files"]]
            self._reply(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            address = f"http://{self.headers['Host']}/someone/student/commit/{COMMIT}"
            self._reply(200, {"success": True, "commitUrl": address, "commitOid": COMMIT})
        elif self.path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        else:
            self._reply(404, {"error": self.path})

    def _reply(self, code: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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
    handler = type("Handler", (HubHandler,), {"folder": tiny_bert, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    SEEN[f"http://127.0.0.1:{server.server_port}"] = handler.seen  # type: ignore[attr-defined]
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(
    model: str, endpoint: str, files: tuple[Path, Path], folder: Path, *more: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        **({"HF_TOKEN": token} if token else {}),
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
    command += ["--max-length", "32", "--runs-dir", folder / "runs", "--set", "train.max_steps=2", "--quiet", *more]
    return subprocess.run(
        [sys.executable, "-m", "kdbert", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def test_a_model_is_fetched_by_its_hub_id_and_without_the_hub_used_as_fetched(
    hub: str, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("someone/tiny", hub, custom_files, tmp_path, "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).joinpath("model/model.safetensors").is_file()
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"
    told = f"{nobody} cannot be reached ([Errno 111] Connection refused): only what was fetched before is used"
    done = run("someone/tiny", nobody, custom_files, tmp_path, "--seed", "2")
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    done = run("someone/absent", nobody, custom_files, tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(told) == 1
    assert "model 'someone/absent' is not a local folder and could not be fetched" in done.stderr.splitlines()[-1]


def test_an_unknown_hub_id_is_one_sentence(hub: str, custom_files: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("someone/absent", hub, custom_files, tmp_path)
    assert done.returncode == 2
    assert "someone/absent" in done.stderr
    assert "Hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_model_is_pushed_with_its_card_and_the_token_is_written_nowhere(
    hub: str, tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    push = ["--push-to-hub", "someone/student"]
    done = run(str(tiny_bert), hub, custom_files, tmp_path, *push, token=TOKEN)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    made = next(json.loads(body) for _, path, body, _ in SEEN[hub] if path == "/api/repos/create")
    assert (made["organization"], made["name"], made["visibility"]) == ("someone", "student", "private")
    commit = next(body for _, path, body, _ in SEEN[hub] if path.endswith("/commit/main"))
    sent = {}
    for line in commit.decode().splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            sent[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
    assert sent == {file.name: file.read_bytes() for file in (folder / "model").iterdir()}
    assert b"## Results" in sent["README.md"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr

    SEEN[hub].clear()
    again = run(str(tiny_bert), hub, custom_files, tmp_path, *push, token=TOKEN)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert any(path.endswith("/commit/main") for _, path, _, _ in SEEN[hub])  # of the finished run


def test_a_push_that_cannot_succeed_is_refused_before_training(
    hub: str, tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, token, told in (
        ("student", TOKEN, "--push-to-hub 'student': expected OWNER/NAME"),
        ("someone/student", None, "needs a token of the Hub: run `hf auth login` once, or set HF_TOKEN"),
    ):
        done = run(str(tiny_bert), hub, custom_files, tmp_path, "--push-to-hub", name, token=token)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert told in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_refused_push_leaves_the_model_and_says_so(
    hub: str, tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run(str(tiny_bert), hub, custom_files, tmp_path, "--push-to-hub", "someone/student", token="hf_wrong")
    assert done.returncode == 1
    assert "cannot push to someone/student" in done.stderr
    assert "the same command tries again" in done.stderr
    assert "hf_wrong" not in done.stderr
    assert (Path(done.stdout.strip()) / "model" / "model.safetensors").is_file()
