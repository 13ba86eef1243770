"""Large generated files, and what a command takes while it works on them: memory, descriptors, seconds to a step."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from conftest import WORDS


def texts(rows: int, words: tuple[int, int] = (5, 40)) -> list[str]:
    """Sentences of so many words at least and at most; by default a file of many has some 110 bytes a row."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(*words))) for _ in range(rows)]


def write_table(path: Path, rows: int, words: tuple[int, int] = (5, 40)) -> Path:
    """A csv or tsv file of two classes; its texts come again after 10,000 rows, each with the number of its row."""
    some, mark = texts(min(rows, 10_000), words), "," if path.suffix == ".csv" else "\t"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"text{mark}label\n")
        for number in range(rows):
            file.write(f"{some[number % len(some)]} {number}{mark}{'good' if number % 2 else 'bad'}\n")
    return path


def write_json_lines(path: Path, rows: int) -> Path:
    """The same rows, an object a line."""
    some = texts(min(rows, 10_000))
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            label = "good" if number % 2 else "bad"
            file.write(json.dumps({"text": f"{some[number % len(some)]} {number}", "label": label}) + "\n")
    return path


def write_corpus(path: Path, lines: int) -> Path:
    """Plain text, made likewise."""
    some = texts(min(lines, 10_000))
    with open(path, "w", encoding="utf-8") as file:
        for number in range(lines):
            file.write(f"{some[number % len(some)]} {number}\n")
    return path


def resident(pid: int, what: str = "VmRSS") -> int:
    """Bytes of memory that a process has now, or (`VmHWM`) has had at most; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:")), 0)


def descriptors(pid: int) -> int:
    """Files, sockets and pipes that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def watch(running: Callable[[], bool], pid: int, look: Callable[[], None] = lambda: None) -> int:
    """Look at a process until it ends.

    Returns:
        The most memory that it had, in bytes; the system keeps that, so no moment is missed but the very last.
    """
    peak = 0
    while running():
        peak = max(peak, resident(pid, "VmHWM"))
        look()
        time.sleep(0.02)
    return peak


def last_step(record: Path) -> int:
    """The newest step in a metrics.jsonl; 0 before there is one."""
    try:
        with open(record, "rb") as file:
            file.seek(max(0, record.stat().st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError):  # half a line
            continue
    return 0
