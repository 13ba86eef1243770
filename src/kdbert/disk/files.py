"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it.

    Temporary files of `path` that killed processes of this machine left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path, "tmp")
    temporary = _own(path, "tmp")
    try:
        with full_disk(path):
            write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)  # so that nothing removed after this is gone before the new file is on the disk
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Inside, an error of the disk names `path`.

    The system names no file that cannot grow, and safetensors and tokenizers raise a plain `Exception`.
    """
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) and error.filename is None else told and int(told[1])
        if not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def write_text(path: Path, text: str) -> None:
    """`atomic_write` for a text."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`atomic_write` for JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, and put it in `path`'s place.

    Folders that killed processes of this machine left are removed: half-written ones at once, an old one that was to be
    replaced only when the new one is in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path, "tmp")
    temporary, old = _own(path, "tmp"), _own(path, "old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with full_disk(path):
            write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors makes its files readable for their owner only
                fsync(file)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        fsync(path.parent)
        _clear(path, "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _own(path: Path, kind: str) -> Path:
    """A hidden name beside `path` that only this process uses, also on a file system that machines share."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{kind}")


def _clear(path: Path, kind: str) -> None:
    """Remove what dead processes of this machine left under their `_own` names."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d{{1,9}})\.{kind}")
    with contextlib.suppress(OSError):  # another process may remove the same; the folder may be unreadable
        for litter in path.parent.iterdir():
            match = name.fullmatch(litter.name)
            if match and not psutil.pid_exists(int(match[1])):
                remove(litter)


def remove(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def move_aside(path: Path) -> Path:
    """Rename a folder to `<name>.old-<time>`, so that nothing is deleted; returns its new path."""
    stem = f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = path.with_name(stem), 2
    while target.exists():
        target, number = path.with_name(f"{stem}-{number}"), number + 1
    path.rename(target)
    return target


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Digests of files, as long as size and time of change stay the same: path, size, time in ns, inode -> hex digits.
known_sha256: dict[tuple[str, int, int, int], str] = {}


def sha256(path: Path) -> str:
    """Hex digest of a file; read once per process as long as its size and time of change stay the same."""
    status = path.stat()
    key = str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino
    if key not in known_sha256:
        known_sha256[key] = read_sha256(path)
    return known_sha256[key]


def read_sha256(path: Path) -> str:
    """Hex digest of a file, read now."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def damaged(folder: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with the first file of a folder whose sha256 has changed; None if all are as they were."""
    for name, digest in files.items():
        try:
            if sha256(folder / name) != digest:
                return f"{folder / name} is damaged (its checksum is wrong)"
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def content_digest(path: Path) -> str:
    """Hex digest of a file, or of all files of a folder and their names."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
    return digest.hexdigest()


def no_link(path: str, flags: int) -> int:
    """An `opener` that fails on a symbolic link, which somebody may have put there to have another file overwritten."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
