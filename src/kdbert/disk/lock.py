"""A lock that the system lets go of when its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from kdbert.disk.files import no_link


class FileLock:
    """An exclusive lock on a file (flock), held by the processes that have this very opening of it.

    The system lets go of it when the last of them ends, however it ends, so no lock is ever stale. A child
    process that inherits `fileno` holds it too. On a shared file system it works between machines where the mount
    passes flock on (NFSv4, Lustre and GPFS mounted with flock).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; False if somebody else has it (with `wait`: wait for it).

        Raises:
            OSError: the file cannot be written, or its file system has no locks.
        """
        tries = 0
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a holder has just removed the file, or the folder
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
                    time.sleep(0.02)  # it may be a mere look by `taken`
                except OSError:
                    file.close()
                    raise
                file.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return True

    def fileno(self) -> int:
        """The descriptor by which a child process holds the lock too."""
        assert self._file is not None
        return self._file.fileno()

    def holder(self) -> str:
        """Who wrote their name into the file."""
        try:
            told = self.path.read_text(encoding="utf-8", errors="replace")[:200]
            return " ".join("".join(letter if letter.isprintable() else " " for letter in told).split()) or "unknown"
        except OSError:
            return "unknown"

    def taken(self) -> bool:
        """Whether somebody has the lock; creates nothing."""
        try:
            with open(self.path, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Remove the file and let go."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            if os.fstat(self._file.fileno()).st_ino == self.path.stat().st_ino:  # the folder may have been moved
                self.path.unlink()
        self._file.close()
        self._file = None
