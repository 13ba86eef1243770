"""Strict reading of text files: every fault is refused with its file and line."""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

from kdbert.errors import UserError

_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # what no line of text has, in any encoding of one byte


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that exists in `folder`, plain or with `.gz`; else None."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without line end) of a UTF-8 file, plain or gzip.

    A byte-order mark is dropped and CRLF is taken as a line end. Only `\\n` ends a line, so odd
    characters inside a sentence (form feed, U+2028) never split an example.

    Raises:
        UserError: missing, unreadable, empty, truncated (gzip) or not UTF-8.
    """
    try:
        stream = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"no file {str(path)!r}: check the path") from None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    number = 0
    with stream:
        try:
            for number, raw in enumerate(stream, 1):
                start = 3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0
                yield number, raw[start:].rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as error:
            if _BINARY.search(error.object) and _encoding(error.object) == "latin1":
                raise UserError(f"{path}, line {number}: this is no text but a binary file") from None
            raise UserError(
                f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
                f"convert the file, for example with `iconv -f {_encoding(error.object)} -t utf-8`"
            ) from None
        except (EOFError, zlib.error):
            raise UserError(f"{path} is truncated after line {number}: fetch it again") from None
        except OSError as error:  # includes gzip.BadGzipFile
            raise UserError(f"cannot read {str(path)!r}: {error}") from None
    if number == 0:
        raise UserError(f"{path} is empty")


def _encoding(line: bytes) -> str:
    """The probable encoding of a line that is not UTF-8: by its byte-order mark, else the commonest."""
    return "utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"


def text_digest(path: Path) -> str:
    """16 hex digits of a file's content; the same for a plain file and its gzip."""
    return unpacked_sha256(path)[:16]


def unpacked_sha256(path: Path) -> str:
    """sha256 of a file's content, unpacked; read once per process while size and time of change stay the same."""
    try:
        status = path.stat()
        return _text_digest(path.absolute(), status.st_size, status.st_mtime_ns)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from None


@lru_cache(maxsize=256)
def _text_digest(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def log_once(sentence: str, level: int = logging.INFO) -> None:
    """Log a sentence once per process, which may read a file several times."""
    logging.getLogger("kdbert").log(level, "%s", sentence)
