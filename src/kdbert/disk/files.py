"""Files that are written whole or not at all, and what they are known by."""

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
from functools import lru_cache
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], object], name: str | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it.

    Args:
        name: of the temporary file, for the holder of a lock: it takes the place of what a killed process left. Else
            it is one of this process, and those that killed ones left go.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if name is None:
        _clear(path, "tmp")
    temporary = path.with_name(name) if name is not None else _own(path, "tmp")
    try:
        with full_disk(path):
            write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)  # what is removed after it must not be gone before it is there
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Name `path` where something cannot be written: the system names no file that cannot grow, and safetensors and
    tokenizers raise exceptions of their own (of no class but `Exception`).
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
    """Write a whole text file or nothing."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, and put it in `path`'s place.

    What killed processes left of such folders goes: what was half-written at once, what it was to replace when there is
    a new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = _own(path, "tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path, "tmp")
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
            old = _own(path, "old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        fsync(path.parent)
        _clear(path, "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _own(path: Path, kind: str) -> Path:
    """A name beside `path` that is of this process, on whichever machine of a shared file system."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{kind}")


def _clear(path: Path, kind: str) -> None:
    """Remove what `_own` names for processes that are no more; of another machine nobody here can tell."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d{{1,9}})\.{kind}")
    with contextlib.suppress(OSError):  # another process is at it, too; the folder may not be listed
        for litter in path.parent.iterdir():
            match = name.fullmatch(litter.name)
            if match and not _alive(int(match[1])):
                remove(litter)


def _alive(process: int) -> bool:
    """Whether there is a process of this id on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def move_aside(path: Path) -> Path:
    """Rename a folder to `<name>.old-<time>`; nothing is deleted. Returns where it is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.old-{stamp}")
    for number in range(2, 1000):
        if not target.exists():
            break
        target = path.with_name(f"{path.name}.old-{stamp}-{number}")
    path.rename(target)
    return target


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file; read once per process while size and time of change stay the same."""
    status = path.stat()
    return _sha256(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def damaged(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file of a folder that does not have its sha256 any more, and what is wrong with it."""
    for name, digest in files.items():
        try:
            if sha256(folder / name) != digest:
                return f"{folder / name} is damaged (it is not what was written there)"
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def content_digest(path: Path) -> str:
    """Hex digest of a file, or of every file of a folder with its name."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
    return digest.hexdigest()


def no_link(path: str, flags: int) -> int:
    """`opener` of a file that is to be written: whoever laid a link there means another file to be written.

    Raises:
        OSError: ELOOP where it is a link.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
