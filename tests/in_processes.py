"""The command in processes of its own that tests kill, stop and signal, and what they look at meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from small_run import run_command

# Every process is forked from one that has imported the program, so that starting it takes no seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "kdbert.runs.execute",
        "kdbert.cli",
        "sklearn.metrics",
        "torch.utils.tensorboard",
        "transformers.models.bert.modeling_bert",
    ]
)


def start(words: list[str], output: Path, file_limit: int | None = None, group: bool = False) -> BaseProcess:
    """The command in a process of its own.

    Args:
        words: what stands behind `kdbert`.
        output: where its output goes, both streams.
        file_limit: see `run_command`.
        group: give it a process group of its own, as a shell does.
    """
    target = run_in_group if group else run_command
    process = processes.Process(target=target, args=(words, output, file_limit))
    process.start()
    return process


def run_in_group(words: list[str], output: Path, file_limit: int | None) -> None:
    """Body of a process that leads a process group and runs the command."""
    os.setsid()
    run_command(words, output, file_limit)


def wait_until(ready: Callable[[], bool], running: Callable[[], bool], what: str) -> None:
    """Look every few milliseconds; fail if the process ends first."""
    end = time.monotonic() + 120
    while not ready():
        assert running(), f"ended before {what}"
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.003)


def saved_steps(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))


def manifest(run: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))
