"""Models are fetched from the Hub, and pushed to it, over HTTP; here the Hub is a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdbert.sweep.preloaded import Preloaded

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_thisIsASecretOfSomebody"


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


@pytest.fixture(scope="module")
def server(tiny_bert: Path) -> Iterator[tuple[str, list[tuple[str, str, bytes, str]]]]:
    """The hub's address, and what it was asked."""
    handler = type("Handler", (HubHandler,), {"folder": tiny_bert, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.seen  # type: ignore[attr-defined]
    server.shutdown()


@dataclass
class Hub:
    """Commands with a hub at an address: the libraries read that when they are imported, so such commands have a server
    of their own.
    """

    address: str
    seen: list[tuple[str, str, bytes, str]]
    cache: Path
    commands: Preloaded
    files: tuple[Path, Path]

    def run(self, model: str, folder: Path, *more: str, token: str | None = None) -> Done:
        """Fine-tune a model for two steps."""
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.cache),
            **({"HF_TOKEN": token} if token else {}),
        }
        words = [
            "finetune-teacher", "--task", "custom", "--train-file", self.files[0], "--dev-file", self.files[1],
            "--model", model, "--max-length", "32", "--runs-dir", folder / "runs", "--set", "train.max_steps=2",
            "--quiet", *more,
        ]  # fmt: skip
        with open(folder / "output", "w+b") as output:
            code = self.commands.start([str(word) for word in words], environment, output.fileno()).wait()
        return Done(code, (folder / "output").read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Done:
    """The exit code of a command, and the lines that it has printed: the run folder on stdout, the rest on stderr."""

    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def run(self) -> Path:
        """The run folder."""
        (folder,) = [Path(line) for line in self.lines if Path(line).is_dir() and (Path(line) / "run.json").is_file()]
        return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is fetched stays."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hub(
    server: tuple[str, list[tuple[str, str, bytes, str]]], cache: Path, custom_files: tuple[Path, Path]
) -> Iterator[Hub]:
    """The hub that answers."""
    with Preloaded() as commands:
        yield Hub(*server, cache, commands, custom_files)


@pytest.fixture(scope="module")
def nobody(cache: Path, custom_files: tuple[Path, Path]) -> Iterator[Hub]:
    """An address at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with Preloaded() as commands:
        yield Hub(address, [], cache, commands, custom_files)


def test_a_model_is_fetched_by_its_hub_id_and_without_the_hub_used_as_fetched(
    hub: Hub, nobody: Hub, tmp_path: Path
) -> None:
    done = hub.run("someone/tiny", tmp_path, "--seed", "1")
    assert done.code == 0, done.text
    assert (done.run / "model" / "model.safetensors").is_file()
    told = f"{nobody.address} cannot be reached ([Errno 111] Connection refused): only what was fetched before is used"
    done = nobody.run("someone/tiny", tmp_path, "--seed", "2")
    assert done.code == 0, done.text
    assert told in done.text
    done = nobody.run("someone/absent", tmp_path)
    assert done.code == 2
    assert done.text.count(told) == 1
    assert "model 'someone/absent'" in done.lines[-1]


def test_an_unknown_hub_id_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = hub.run("someone/absent", tmp_path)
    assert done.code == 2
    assert "someone/absent" in done.text
    assert "Hub" in done.text
    assert "Traceback" not in done.text
    assert not (tmp_path / "runs").exists()


def test_a_model_is_pushed_with_its_card_and_the_token_is_written_nowhere(
    hub: Hub, tiny_bert: Path, tmp_path: Path
) -> None:
    hub.seen.clear()
    push = ["--push-to-hub", "someone/student"]
    done = hub.run(str(tiny_bert), tmp_path, *push, token=TOKEN)
    assert done.code == 0, done.text
    folder = done.run
    made = next(json.loads(body) for _, path, body, _ in hub.seen if path == "/api/repos/create")
    assert (made["organization"], made["name"], made["visibility"]) == ("someone", "student", "private")
    commit = next(body for _, path, body, _ in hub.seen if path.endswith("/commit/main"))
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

    hub.seen.clear()
    again = hub.run(str(tiny_bert), tmp_path, *push, token=TOKEN)
    assert (again.code, again.run) == (0, done.run)
    assert any(path.endswith("/commit/main") for _, path, _, _ in hub.seen)  # of the finished run


def test_a_push_that_cannot_succeed_is_refused_before_training(hub: Hub, tiny_bert: Path, tmp_path: Path) -> None:
    for name, token, told in (
        ("student", TOKEN, "--push-to-hub 'student': expected OWNER/NAME"),
        ("someone/student", None, "needs a token of the Hub: run `hf auth login` once, or set HF_TOKEN"),
    ):
        done = hub.run(str(tiny_bert), tmp_path, "--push-to-hub", name, token=token)
        assert (done.code, len(done.lines)) == (2, 1)
        assert told in done.text
    assert not (tmp_path / "runs").exists()


def test_a_refused_push_leaves_the_model_and_says_so(hub: Hub, tiny_bert: Path, tmp_path: Path) -> None:
    done = hub.run(str(tiny_bert), tmp_path, "--push-to-hub", "someone/student", token="hf_wrong")
    assert done.code == 1
    assert "cannot push to someone/student" in done.text
    assert "the same command tries again" in done.text
    assert "hf_wrong" not in done.text
    assert (done.run / "model" / "model.safetensors").is_file()
