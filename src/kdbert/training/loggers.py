"""Where a run's numbers go while it runs: metrics.jsonl, TensorBoard, and accelerate's trackers."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from kdbert.disk.files import full_disk, sha256

log = logging.getLogger("kdbert")


def progress_bar(batches: Iterable[Any] | None, about: str | None, unit: str, main: bool, **options: Any) -> Any:
    """A progress bar on stderr; there is none with --quiet, and in a log file it moves every half minute."""
    shown = main and log.isEnabledFor(logging.INFO)
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(batches, about, unit=unit, disable=not shown, mininterval=interval, **options)


def _unless_tensorboard(failed: threading.ExceptHookArgs) -> None:
    """Do not print a disk error of TensorBoard's thread: the next call of the writer raises it."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failed)


class MetricsLog:
    """Append-only record of a run. On resuming it is cut back to the checkpoint, so that no step is in it twice.

    Only the main process writes.

    Args:
        trackers: further ones of accelerate.
        resume_at: of the checkpoint: its step, and length in bytes and digest of metrics.jsonl then.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, *, trackers: list[str], resume_at: tuple[int, int, str | None]
    ) -> None:
        self.accelerator = accelerator
        self.trackers = trackers
        self.active = accelerator.is_main_process
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        step, length, digest = resume_at
        self.path = folder / "metrics.jsonl"
        self.path.touch()
        kept = self.path.read_bytes()[:length]
        os.truncate(self.path, kept.rfind(b"\n") + 1)  # after a whole line, should the file be shorter than it was
        self.file = open(self.path, "a", encoding="utf-8")
        if digest not in (None, self.digest()):
            log.warning("%s is damaged: its lines of steps up to %d are not those that the run wrote", self.path, step)
        threading.excepthook = _unless_tensorboard
        self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the values of a step under their names."""
        if not self.active:
            return
        with full_disk(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()  # so that others can follow the run
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        for key, value in numbers.items():
            self.board.add_scalar(key, value, step)
        if self.trackers:
            self.accelerator.log(numbers, step=step)

    def length(self) -> int:
        """Bytes of metrics.jsonl so far, flushed to the disk."""
        if not self.active:
            return 0
        with full_disk(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.path.stat().st_size

    def digest(self) -> str:
        """Hex digest of metrics.jsonl so far."""
        return sha256(self.path) if self.active else ""

    def close(self) -> None:
        """Flush and close everything."""
        if self.active:
            self.length()
            self.file.close()
            self.board.close()
