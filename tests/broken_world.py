"""A place with one of everything that kdbert writes, small; the commands that read it, and what they find."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import WORDS, make_bert, make_custom_files
from in_processes import manifest, saved_steps, start, wait_until

STEPS, CUT = 12, 6  # of the student's run; the other copy of it was killed behind this one
# What a command makes anew, relative to the place; of the others what counts is what they print.
MADE = {"distill": "run", "short": "short", "given": "given", "finetune": "teacher", "ve-kd": "domain"}
RESULTS = ("model/model.safetensors", "model/config.json", "model/tokenizer.json", "predictions/dev.jsonl")


def words(place: Path, command: str) -> list[str]:
    """The words of a command."""
    small = [
        "--runs-dir", place / "runs", "--max-length", 32, "train.batch_size=16", "train.logging_steps=1",
        "train.precision=fp32", "train.epochs=2",
    ]  # fmt: skip
    task = ["--task", "custom", "--train-file", place / "train.csv", "--dev-file", place / "dev.csv", *small]
    student = ["distill", *task, "--teacher", place / "teacher", "--method", "cka-ilg", "--student-layers", 2]
    text = [*small, "--corpus", place / "text.txt", "train.max_steps=2"]
    found: dict[str, list[Any]] = {
        "finetune": [
            "finetune-teacher", *task, "--model", place / "base", "train.max_steps=4", "train.learning_rate=1e-3",
            "--output-dir", place / "teacher",
        ],
        "distill": [
            *student, "memory.centroids=4", f"train.max_steps={STEPS}", "train.checkpoint_steps=3",
            "train.selection=best", "train.learning_rate=1e-3", "--diagnose", "--output-dir", place / "run",
        ],
        "short": [*student, "memory.centroids=4", "train.max_steps=2", "--output-dir", place / "short"],
        "given": [
            *student, "train.max_steps=2", "--output-dir", place / "given", "--memory", place / "memory.safetensors",
        ],
        "train-memory": [
            "train-memory", *task, "memory.centroids=4", "--teacher", place / "teacher", "--output",
            place / "memory.safetensors",
        ],
        "expand-vocab": [
            "expand-vocab", "--tokenizer", place / "base", "--corpus", place / "text.txt", "--add", 20, "--out",
            place / "vocab",
        ],
        "finetune-mlm": ["finetune-teacher", *text, "--model", place / "base", "--output-dir", place / "mlm"],
        "ve-kd": [
            "distill", "--method", "ve-kd", *text, "--teacher", place / "mlm", "--student-layers", 2, "--tokenizer",
            place / "vocab", "--output-dir", place / "domain",
        ],
        "evaluate": ["evaluate", place / "run", "--precision", "fp32"],
        "table": ["table", place / "run", "--rows", "method"],
        "report": ["report", place / "run", place / "teacher", "-o", place / "report.html"],
        "benchmark": ["benchmark", place / "run"],
        "export": ["export", place / "run"],
    }  # fmt: skip
    return list(map(str, found[command]))


def inputs(place: Path) -> Path:
    """A pretrained model, a task and a text."""
    make_bert(place / "base")
    for file, rows in zip(make_custom_files(place), (90, 30), strict=True):
        file.write_text("\n".join(file.read_text().splitlines()[: rows + 1]) + "\n")
    draw = random.Random(0)
    text = [" ".join([*draw.choices(WORDS, k=8), "interleukin"]) for _ in range(120)]
    (place / "text.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    return place


def make(place: Path, kdbert: Callable[..., Any]) -> Path:
    """Everything, whole; `cut` is the run of `distill` as it was when it was killed, `run` when it had ended."""
    for command in ("finetune", "train-memory", "expand-vocab", "finetune-mlm"):
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
    process = start(words(place, "distill"), place / "output")
    try:
        wait_until(lambda: max(saved_steps(place / "run"), default=0) >= CUT, process.is_alive, f"step {CUT}")
    finally:
        process.kill()
        process.join()
    for litter in [*(place / "run").rglob(".*.tmp"), place / "run" / "run.lock"]:
        shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
    for old in saved_steps(place / "run")[:-2]:
        shutil.rmtree(place / "run" / "checkpoints" / f"step-{old}")
    shutil.copytree(place / "run", place / "cut")
    for command in ("distill", "short", "given", "ve-kd"):
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
    assert (
        manifest(place / "run")["best"]["step"] == STEPS
    )  # else its weights would say nothing of the steps behind CUT
    return place


def result(place: Path, command: str, out: str) -> dict[str, str | bytes]:
    """What a command has found, without the place and the time at which it did."""
    if command in MADE:
        folder = place / MADE[command]
        return {name: (folder / name).read_bytes() for name in (*RESULTS, "metrics.jsonl")}
    if command == "report":
        out = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", (place / "report.html").read_text(encoding="utf-8"))
    return {"told": out.replace(str(place), "")}


_FREE_READING = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: with them root reads what a file's mode forbids


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Within it, this thread may read what a file's mode allows and nothing else, also where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    system = ctypes.CDLL(None, use_errno=True)
    header, kept = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert system.capget(header, kept) == 0, os.strerror(ctypes.get_errno())
    fewer = (ctypes.c_uint32 * 6)(*kept)
    for number in _FREE_READING:
        fewer[0] &= ~(1 << number)  # of those in effect; they stay permitted, so that they can be taken up again
    assert system.capset(header, fewer) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert system.capset(header, kept) == 0, os.strerror(ctypes.get_errno())
