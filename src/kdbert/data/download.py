"""Downloads: resumed, checked by sha256 before they get their name, unpacked into their own folder only."""

from __future__ import annotations

import base64
import contextlib
import errno
import logging
import lzma
import os
import shutil
import struct
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from kdbert.disk.files import no_link, read_sha256
from kdbert.disk.lock import alone
from kdbert.errors import UserError, without_credentials

log = logging.getLogger("kdbert")
BLOCK = 1 << 18
TRIES = 3  # how often a broken connection is tried again
PAUSE = 1.0  # seconds more before each further try
TIMEOUT = 60  # seconds without a byte
# What zipfile and tarfile raise for bytes that are not an archive; RuntimeError: for an encrypted member, or a
# compression that Python does not know (NotImplementedError).
NO_ARCHIVE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError, RuntimeError
)  # fmt: skip


def download(url: str, target: Path, sha256: str | None) -> None:
    """Fetch a file to `target`, which never holds anything but the whole, checked file.

    A partial download is in `<target>.part`. A later call continues it if there is a checksum, which tells whether both
    parts are of one file. If two processes fetch the same file, the second waits and then finds it.

    Raises:
        UserError: no such file, no connection, another checksum, no room.
    """
    part = target.with_name(target.name + ".part")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"cannot fetch {without_credentials(url)!r}: it is not an http or https address")
    try:
        with alone(part):
            if sha256 is not None and target.exists() and read_sha256(target) == sha256:
                return
            _fetch(url, part, target, sha256)
    except OSError as error:
        raise _told(error, target) from None


def _fetch(url: str, part: Path, target: Path, sha256: str | None) -> None:
    shown = without_credentials(url)
    if sha256 is None or part.is_symlink():
        part.unlink(missing_ok=True)
    for attempt in range(TRIES):
        try:
            _receive(url, part)
            break
        except (ConnectionError, TimeoutError, urllib.error.URLError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise UserError(f"cannot fetch {shown}: the server says {error.code} {error.reason}") from None
            if attempt == TRIES - 1:
                size = part.stat().st_size if part.exists() else 0
                reason = getattr(error, "reason", None) or error
                raise UserError(
                    f"cannot fetch {shown}: {reason} ({size:,} bytes are here; the same command continues "
                    "from there). Without network, download it elsewhere: `kdbert data describe TASK` says where to"
                ) from None
            time.sleep(attempt * PAUSE)
    _put(part, target, sha256, shown)


def _receive(url: str, part: Path) -> None:
    """Append what is missing of a file to `part`, or start again if the server cannot continue."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kdbert", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = urllib.request.urlopen(_request(url, headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):  # it is complete
            return
        part.unlink()
        raise ConnectionError("the partial download was longer than the file, so it is fetched again") from None
    with answer, open(part, "ab" if answer.status == 206 else "wb", opener=no_link) as file:
        begun = file.tell()
        length = answer.headers.get("Content-Length")
        expected = None if length is None else begun + int(length)
        with tqdm(
            desc=PurePosixPath(url).name, total=expected, initial=begun, unit="B", unit_scale=True, leave=False,
            disable=not log.isEnabledFor(logging.INFO), mininterval=0.5 if sys.stderr.isatty() else 30.0,
        ) as bar:  # fmt: skip
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if expected is not None and file.tell() < expected:
            raise ConnectionError(f"the connection broke off after {file.tell():,} of {expected:,} bytes")


def _request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """The request; a user and password in the address go to its host only, not along redirects."""
    request = urllib.request.Request(without_credentials(url), headers=dict(headers))
    place = urlsplit(url)
    if place.username is not None:
        told = f"{unquote(place.username)}:{unquote(place.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(told).decode()}")
    return request


def unpack(archive: Path, members: Mapping[str, Path], checksums: Mapping[str, str]) -> None:
    """Extract some members of a zip or tar archive, each checked before it gets its name.

    Refused are members that lead outside, are links, are missing, or have another checksum.

    Args:
        members: name inside the archive -> file to write. checksums: the same -> sha256, if it is known.
    """
    try:
        with _opened(archive) as (names, read):
            for name, link in names.items():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts[:1]):
                    raise UserError(f"{archive.name}: member {name!r} leads outside the folder; nothing was unpacked")
                if link and name in members:
                    raise UserError(f"{archive.name}: member {name!r} is a link; nothing was unpacked")
            missing = [name for name in members if name not in names]
            if missing:
                raise UserError(f"{archive.name} has no member {missing[0]!r}; nothing was unpacked")
            for name, target in members.items():
                with read(name) as source:
                    write_checked(source, target, checksums.get(name))
    except NO_ARCHIVE as error:
        raise UserError(f"{archive} is not an archive, or a damaged one ({error})") from None
    except OSError as error:
        raise _told(error, archive) from None


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[dict[str, bool], Any]]:
    """Member of an archive -> whether it is a link (or not a file at all); and a function that opens one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            links = {i.filename: (i.external_attr >> 16) & 0o170000 == 0o120000 for i in zipped.infolist()}
            yield links, zipped.open
    else:
        with tarfile.open(archive) as tarred:
            kinds = {info.name: not info.isfile() for info in tarred.getmembers() if not info.isdir()}
            yield kinds, tarred.extractfile


def write_checked(source: IO[bytes], target: Path, sha256: str | None) -> None:
    """Write a file under a temporary name, check it, and rename it."""
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(part, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK)
        _put(part, target, sha256, target.name)
    except OSError as error:
        raise _told(error, target) from None
    finally:
        part.unlink(missing_ok=True)


def _put(part: Path, target: Path, sha256: str | None, name: str) -> None:
    """Give a file its name if it has this checksum, and remove it if not."""
    if sha256 is not None and (found := read_sha256(part)) != sha256:
        part.unlink()
        raise UserError(
            f"{name} is not the file that was expected (sha256 {found[:16]}…, expected {sha256[:16]}…); nothing of it "
            "was kept: try again, or get the file from elsewhere"
        )
    os.replace(part, target)


def _told(error: OSError, target: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"no room for {target.name} in {target.parent}: make some, and run the same command again")
    if error.errno == errno.ELOOP and error.filename:
        return UserError(f"{error.filename} is a link, and nothing is written through one: remove it")
    return UserError(f"cannot write {target}: {error.strerror or error}")
