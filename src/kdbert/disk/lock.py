"""A lock that the system releases when its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdbert.disk.files import no_link

log = logging.getLogger("kdbert")


class FileLock:
    """An exclusive lock on a file (flock).

    The system releases it when the holder ends, however it ends, so no lock is ever stale. A child process that
    inherits `fileno` holds it too. Between machines it works if the mount of their shared file system supports flock
    (NFSv4, Lustre and GPFS mounted with flock).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, *, wait: bool = False, sign: bool = True) -> bool:
        """Take the lock; returns False if another process has it (with `wait`: waits instead).

        Args:
            sign: write into the file which process has it, for `holder`.

        Raises:
            OSError: the file cannot be written, or its file system has no locks.
        """
        tries = 0
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its holder has just removed the file or the folder
                file = open(self.path, "a+", encoding="utf-8", opener=no_link)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                        break
                except BlockingIOError:
                    tries += 1
                    if tries == 3:
                        file.close()
                        return False
                    time.sleep(0.02)  # `taken` may be looking, which takes no time
                except OSError:
                    file.close()
                    raise
                file.close()
        if sign:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        self._file = file
        return True

    def wait_for(self, what: str) -> None:
        """Take the lock; if another process has it, log that this one waits for `what`."""
        if not self.acquire():
            log.info("waiting for %s, which %s makes", what, self.holder())
            self.acquire(wait=True)

    def fileno(self) -> int:
        """The descriptor that a child process inherits to hold the lock too."""
        assert self._file is not None
        return self._file.fileno()

    def holder(self) -> str:
        """Which process holds it, as that wrote into the file."""
        try:
            told = self.path.read_text(encoding="utf-8", errors="replace")[:200]
            return " ".join("".join(letter if letter.isprintable() else " " for letter in told).split()) or "unknown"
        except OSError:
            return "unknown"

    def taken(self) -> bool:
        """Whether some process has the lock; creates nothing."""
        try:
            with open(self.path, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Remove the file and release the lock, if it is held."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if os.fstat(self._file.fileno()).st_ino == self.path.stat().st_ino:  # the folder may have been moved
                self.path.unlink()
        self._file.close()
        self._file = None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process of this machine works on `path`; they wait. Without effect if the file system has no
    locks.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    made = [folder for folder in lock.path.parents if not folder.exists()]
    try:
        lock.acquire(wait=True, sign=False)
    except OSError as error:
        if error.filename is not None:  # the file cannot be made
            raise
        lock.path.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # an empty folder is not left behind
            for folder in made:
                folder.rmdir()
