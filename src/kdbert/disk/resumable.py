"""A text file that is written over several calls of a command, and is whole or not there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbert.disk.files import fsync, full_disk, read_sha256, write_json
from kdbert.disk.sealed import sealed, unsealed
from kdbert.errors import UserError

log = logging.getLogger("kdbert")
SAVED_EVERY = 30.0  # seconds
_BYTES = "bytes"


class ResumableFile:
    """Until it is finished, its lines are in `<name>.part`.

    `<name>.about.json` says what it is made of and how much of it is done; what `.part` holds beyond that is cut off.

    Args:
        about: what the file is made of. One that is there and was made of anything else is refused.
        counts: names of what is counted along; the first is the inputs that are done, the command's own to say.
        overwrite: begin anew, whatever is there.

    Attributes:
        counts: how much is done, by name; and `bytes`, the size of the lines.
        finished: whether an earlier call has finished it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], counts: Sequence[str], overwrite: bool) -> None:
        self.path, self.about = path, json.loads(json.dumps(about))
        self.part, self.record = (path.with_name(path.name + end) for end in (".part", ".about.json"))
        self._names = counts
        state = {} if overwrite else self._state()
        self.counts: dict[str, int] = dict.fromkeys((*counts, _BYTES), 0)
        digest = state.get("digest")
        if digest and self.part.exists() and not path.exists():  # stopped just before its last step
            os.replace(self.part, path)
        self.finished = digest is not None and path.exists()
        if path.exists() and not overwrite and (not self.finished or read_sha256(path) != digest):
            what = "was changed since it was made" if self.finished else "is there already"
            raise UserError(f"{path} {what}: choose another --output, or pass --overwrite to replace it")
        if self.finished:
            self.counts = state["counts"]
        elif state and self.part.exists() and self.part.stat().st_size >= state["counts"][_BYTES]:
            self.counts = state["counts"]
            log.info("%s: continued after %s %s", path, f"{self.counts[counts[0]]:,}", counts[0])

    def _state(self) -> dict[str, Any]:
        """What was noted of a file that is begun or finished; {} if there is none."""
        try:
            state = unsealed(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.record} is damaged ({error}); pass --overwrite to begin anew") from None
        known = state["about"]
        differ = ", ".join(key for key in {**known, **self.about} if known.get(key) != self.about.get(key))
        if differ:
            raise UserError(
                f"{self.path} was made or begun in another way ({differ} differ): choose another --output, or pass "
                "--overwrite to replace it"
            )
        return state

    def _note(self, digest: str | None) -> None:
        write_json(self.record, sealed({"about": self.about, "counts": self.counts, "digest": digest}))

    def lines(self) -> Iterator[bytes]:
        """The lines that are done."""
        if self.counts[_BYTES]:
            with open(self.part, "rb") as stream:
                left = self.counts[_BYTES]
                while left > 0:
                    yield (line := stream.readline())
                    left -= len(line)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[..., None]]:
        """Gives `write(lines, *more)`, which writes lines and adds to each count, in their order.

        What was written is noted now and then, and however the block ends.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with full_disk(self.part), open(self.part, "ab") as stream:
            stream.truncate(self.counts[_BYTES])
            self._note(None)
            self.path.unlink(missing_ok=True)  # only now: until here a command may have been refused
            saved = time.monotonic()

            def save() -> None:
                nonlocal saved
                stream.flush()
                os.fsync(stream.fileno())
                self._note(None)
                saved = time.monotonic()

            def write(lines: Sequence[str], *more: int) -> None:
                block = "".join(lines).encode()
                stream.write(block)
                added = dict(zip((*self._names, _BYTES), (*more, len(block)), strict=True))
                self.counts = {name: self.counts[name] + added[name] for name in added}  # at once: a signal may come
                if time.monotonic() - saved > SAVED_EVERY:
                    save()

            try:
                yield write
            finally:
                save()

    def finish(self) -> None:
        """Put the file in its place."""
        self._note(read_sha256(self.part))
        os.replace(self.part, self.path)
        fsync(self.path.parent)

    def discard(self) -> None:
        """Remove the file and all that belongs to it."""
        for file in (self.path, self.part, self.record):
            file.unlink(missing_ok=True)
