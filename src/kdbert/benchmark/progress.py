"""What a benchmark has timed so far, kept in its folder, so that the same command continues where it was stopped."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbert.disk.files import write_json
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import flatten, sealed, unsealed
from kdbert.errors import RunBusy, UserError

log = logging.getLogger("kdbert")
FILE, LOCK = "progress.json", "benchmark.lock"


@dataclass
class TimedRounds:
    """The rounds of a benchmark that are done."""

    path: Path  # the benchmark's folder
    identity: Mapping[str, Any]
    rounds: int = 0
    engines: list[dict[str, Any]] = field(default_factory=list)  # what they gave, one entry for each engine
    continued: list[int] = field(default_factory=list)  # after which rounds it was

    def save(self) -> None:
        """Keep what there is."""
        write_json(self.path / FILE, sealed({name: value for name, value in vars(self).items() if name != "path"}))


@contextlib.contextmanager
def opened(output_dir: str | None, runs_dir: str, task: str, identity: Mapping[str, Any]) -> Iterator[TimedRounds]:
    """The folder of a benchmark, locked while the block runs: that of the same one which was stopped, else a new one.

    From the start the folder says what it is of, so that it is found again after a kill at any time. When the block
    ends well the benchmark is complete, and its progress is removed.

    Args:
        output_dir: the folder; by default `benchmark/<task>-<time>` below `runs_dir`.
        identity: what is timed, how, and on which machine.
    """
    identity = {key: value for key, value in sealed(identity).items() if key != "sha256"}  # as it is read back
    folder, lock = _given(Path(output_dir)) if output_dir is not None else _by_name(runs_dir, task, identity)
    try:
        found = _read(folder)
        if found and found["identity"] != identity:
            there, here = flatten(found["identity"]), flatten(identity)
            differ = ", ".join(key for key in {**there, **here} if there.get(key) != here.get(key))
            raise UserError(
                f"{str(folder)!r} holds another benchmark, which was stopped half-way ({differ} differ); choose "
                "another --output-dir, or remove that folder"
            )
        progress = TimedRounds(folder, **{"identity": identity, **found})
        if progress.rounds:
            log.info("continuing %s: %d rounds were timed before", folder, progress.rounds)
            progress.continued.append(progress.rounds)
        progress.save()
        done = False
        try:
            yield progress
            done = True
        finally:
            if done or not progress.rounds:
                (folder / FILE).unlink(missing_ok=True)
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing was written


def _given(folder: Path) -> tuple[Path, FileLock]:
    """The folder that the person named; refused if it holds anything but an unfinished benchmark."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    if names - {LOCK} and FILE not in names:
        raise UserError(f"--output-dir {str(folder)!r} is not empty; choose another")
    lock = FileLock(folder / LOCK)
    if not lock.acquire():
        raise RunBusy(f"{folder} is being written by another process ({lock.holder()})")
    return folder, lock


def _by_name(runs_dir: str, task: str, identity: Mapping[str, Any]) -> tuple[Path, FileLock]:
    """The newest folder of the same benchmark that no process is writing, or a new one."""
    root = Path(runs_dir) / "benchmark"
    for folder in sorted((path.parent for path in root.glob(f"{task}-*/{FILE}")), reverse=True):
        with contextlib.suppress(UserError):  # a damaged one is left as it is
            lock = FileLock(folder / LOCK)
            if _read(folder).get("identity") == identity and lock.acquire():
                return folder, lock
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = root / (f"{task}-{stamp}" if number == 1 else f"{task}-{stamp}-{number}")
        lock = FileLock(folder / LOCK)
        if not folder.exists() and lock.acquire():
            break
    return folder, lock


def _read(folder: Path) -> dict[str, Any]:
    """What is kept in a folder; empty where nothing is."""
    try:
        found = unsealed((folder / FILE).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("identity", "rounds", "engines", "continued")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}); remove that folder") from None
