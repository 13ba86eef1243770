"""Downloads from a server on this machine: broken off, wrong, missing, moved, hostile, and onto a full disk."""

from __future__ import annotations

import base64
import hashlib
import io
import multiprocessing
import resource
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdbert.data import download as download_module
from kdbert.data.download import download, unpack, write_checked
from kdbert.disk.lock import alone
from kdbert.errors import UserError

CONTENT = bytes(range(256)) * 4000  # 1 MB


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken transfers are tried again at once."""
    monkeypatch.setattr(download_module, "PAUSE", 0.0)


def sha256(content: bytes) -> str:
    """Its checksum."""
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT in several ways; notes what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.credentials: set[str | None] = set()
        self.left = 0  # transfers that break off in the middle

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """`/file`: with ranges; `/plain`: without; `/moved`: elsewhere; anything else: not there."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        wanted = self.headers.get("Range")
        self.server.credentials.add(self.headers["Authorization"])
        self.server.asked.append((self.path, wanted))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path not in ("/file", "/plain"):
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path == "/file" else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        if self.server.left:
            self.server.left -= 1
            self.wfile.write(CONTENT[start : start + 200_000])
            self.close_connection = True
            return
        self.wfile.write(CONTENT[start:])


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    with Server() as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def only(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["/file", "/plain", "/moved"])
def test_a_file_is_fetched_and_checked(server: Server, path: str, tmp_path: Path) -> None:
    download(server.url + path, tmp_path / "deep" / "a.bin", sha256(CONTENT))
    assert (tmp_path / "deep" / "a.bin").read_bytes() == CONTENT
    assert only(tmp_path / "deep") == ["a.bin"]


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(server: Server, tmp_path: Path) -> None:
    server.left = 2
    download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=200000-", "bytes=400000-"]


def test_a_broken_transfer_leaves_no_file_and_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.left = 3
    with pytest.raises(UserError, match=r"broke off.*600,000 bytes"):
        download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    assert only(tmp_path) == ["a.bin.part"]
    download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    assert server.asked[-1][1] == "bytes=600000-"
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.left = 1
    download(server.url + "/plain", tmp_path / "a.bin", sha256(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_what_had_come_whole_is_not_fetched_again_and_what_is_too_long_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    assert len(server.asked) == 1
    (tmp_path / "b.bin.part").write_bytes(CONTENT + b"more")
    download(server.url + "/file", tmp_path / "b.bin", sha256(CONTENT))
    assert (tmp_path / "b.bin").read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the file that was expected \(sha256 .*nothing of it was kept"):
        download(server.url + "/file", tmp_path / "a.bin", sha256(b"other"))
    assert only(tmp_path) == []
    (tmp_path / "a.bin.part").write_bytes(b"of an older version")
    with pytest.raises(UserError, match="not the file that was expected"):
        download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_missing_file_and_a_missing_server_are_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch http.*/none: the server says 404 Not Found"):
        download(server.url + "/none", tmp_path / "a.bin", None)
    assert len(server.asked) == 1  # asking again would not help
    with pytest.raises(UserError, match="Connection refused"):
        download("http://127.0.0.1:1/x", tmp_path / "a.bin", None)
    assert only(tmp_path) == []


def test_two_at_once_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    told: list[str] = []

    def one() -> None:
        try:
            download(server.url + "/file", tmp_path / "a.bin", sha256(CONTENT))
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == []
    assert len(server.asked) == 1
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert only(tmp_path) == ["a.bin"]


def test_without_a_checksum_nothing_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"of another file")
    download(server.url + "/file", tmp_path / "a.bin", None)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [("/file", None)]


def test_what_is_no_address_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="http"):
        download("foo/bar", tmp_path / "a.bin", None)


def _limited(url: str, target: Path, told: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        download(url, target, None)
    except UserError as error:
        told.write_text(str(error))


def test_a_full_disk_is_told_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    arguments = (server.url + "/file", tmp_path / "out" / "a.bin", tmp_path / "told")
    process = multiprocessing.get_context("forkserver").Process(target=_limited, args=arguments)
    process.start()
    process.join(60)
    assert "no room for a.bin" in (tmp_path / "told").read_text()
    assert only(tmp_path / "out") == ["a.bin.part"]


def make_zip(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    """A zip archive; `link` becomes a symbolic link."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    """A tar archive likewise."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = 0 if name == link else len(content)
            if name == link:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info, io.BytesIO(b"" if name == link else content))
    return path


MAKERS = pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])


@MAKERS
def test_wanted_members_are_unpacked_and_checked(make: Callable[..., Path], tmp_path: Path) -> None:
    archive = make(tmp_path / "x", {"T/train.tsv": b"a\tb\n", "T/other": b"-"})
    unpack(archive, {"T/train.tsv": tmp_path / "T" / "train.tsv"}, {"T/train.tsv": sha256(b"a\tb\n")})
    assert (tmp_path / "T" / "train.tsv").read_bytes() == b"a\tb\n"
    assert only(tmp_path / "T") == ["train.tsv"]
    with pytest.raises(UserError, match=r"train.tsv is not the file that was expected"):
        unpack(archive, {"T/train.tsv": tmp_path / "U" / "train.tsv"}, {"T/train.tsv": sha256(b"else")})
    assert only(tmp_path / "U") == []
    with pytest.raises(UserError, match=r"has no member 'T/dev\.tsv'"):
        unpack(archive, {"T/train.tsv": tmp_path / "V" / "t", "T/dev.tsv": tmp_path / "V" / "d"}, {})
    assert not (tmp_path / "V").exists()


@MAKERS
@pytest.mark.parametrize("name", ["../evil", "T/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
def test_an_archive_that_leads_outside_is_refused_whole(make: Callable[..., Path], name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / "x", {"T/a": b"1", name: b"2"})
    with pytest.raises(UserError, match="leads outside the folder; nothing was unpacked"):
        unpack(archive, {"T/a": tmp_path / "out" / "a"}, {})
    assert not (tmp_path / "out").exists()


@MAKERS
def test_a_link_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    archive = make(tmp_path / "x", {"T/a": b"/etc/passwd"}, link="T/a")
    with pytest.raises(UserError, match="is a link; nothing was unpacked"):
        unpack(archive, {"T/a": tmp_path / "out" / "a"}, {})
    assert not (tmp_path / "out").exists()


def test_members_that_cannot_be_unpacked_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("T/a", bytes(range(256)) * 9)
    whole = (tmp_path / "whole.zip").read_bytes()
    start, listed = whole.index(b"T/a") + 3, whole.index(b"PK\x01\x02")
    spoiled = bytearray(whole)
    spoiled[start : start + 4] = b"\xff" * 4
    (tmp_path / "spoiled.zip").write_bytes(spoiled)  # zlib.error
    for name, place, value in (("encrypted.zip", 8, 1), ("unknown.zip", 10, 77)):  # RuntimeError, NotImplementedError
        changed = bytearray(whole)
        changed[listed + place] = changed[place - 2] = value
        (tmp_path / name).write_bytes(changed)
    for name in ("spoiled.zip", "encrypted.zip", "unknown.zip"):
        with pytest.raises(UserError, match="archive"):
            unpack(tmp_path / name, {"T/a": tmp_path / "out" / "a"}, {})
        assert not any((tmp_path / "out").glob("*"))


def test_what_is_no_archive_or_a_damaged_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_bytes(b"<html>not here</html>")
    whole = make_zip(tmp_path / "x", {"T/a": b"1" * 5000}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:3000])
    whole = make_tar(tmp_path / "y", {"T/a": bytes(range(256)) * 99}).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("page.zip", "cut.zip", "cut.tar.gz"):
        with pytest.raises(UserError, match="archive, or a damaged one"):
            unpack(tmp_path / name, {"T/a": tmp_path / "out" / "a"}, {})
        assert not (tmp_path / "out" / "a").exists()


def test_nothing_is_written_through_a_link(server: Server, tmp_path: Path) -> None:
    """Whoever may write into the folder may have laid the link."""
    diary, folder = tmp_path / "diary", tmp_path / "data"
    diary.write_text("dear diary", encoding="utf-8")
    folder.mkdir()
    (folder / "a.bin.part.lock").symlink_to(diary)
    with pytest.raises(UserError, match=r"a\.bin\.part\.lock is a link"):
        download(server.url + "/file", folder / "a.bin", sha256(CONTENT))
    (folder / "a.bin.part.lock").unlink()
    for wanted in (sha256(CONTENT), None):
        (folder / "a.bin.part").symlink_to(diary)
        download(server.url + "/file", folder / "a.bin", wanted)
        assert not (folder / "a.bin").is_symlink()
        assert (folder / "a.bin").read_bytes() == CONTENT
    (folder / "b.txt.part").symlink_to(diary)
    write_checked(io.BytesIO(b"text"), folder / "b.txt", None)
    assert (folder / "b.txt").read_bytes() == b"text"
    assert diary.read_text(encoding="utf-8") == "dear diary"
    assert only(folder) == ["a.bin", "b.txt"]


def test_a_lock_that_is_there_already_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("notes", encoding="utf-8")
    with alone(tmp_path / "a"):
        assert (tmp_path / "a.lock").read_text(encoding="utf-8") == "notes"


@pytest.mark.parametrize("path", ["/none", "/file"])
def test_the_password_of_an_address_is_sent_and_not_told(server: Server, path: str, tmp_path: Path) -> None:
    url = server.url.replace("//", "//somebody:hunt%40er2@") + path
    with pytest.raises(UserError) as told:
        download(url, tmp_path / "a.bin", "0" * 64)
    assert server.url + path in str(told.value)
    assert "hunt" not in str(told.value)
    assert "somebody" not in str(told.value)
    assert server.credentials == {f"Basic {base64.b64encode(b'somebody:hunt@er2').decode()}"}
    with pytest.raises(UserError, match=r"'ftp://host/a'"):
        download("ftp://somebody:hunter2@host/a", tmp_path / "a.bin", None)
