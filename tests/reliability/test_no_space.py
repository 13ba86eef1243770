"""No space at any write: one sentence, exit code 2, what was there stays; with more room the same command goes on to
the result that it always had.

A chain of commands is started with almost no room and started again each time with a little more, so that each kind of
write fails in turn: the lock, run.json, the record, a checkpoint, the memory, the model, predictions, …
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broken_world import MADE, inputs, result, words
from kdbert.runs.folder import RunFolder
from kdbert.training.checkpoint import newest_checkpoint

CHAIN = ("train-memory", "distill", "evaluate", "export", "report", "expand-vocab", "ve-kd")
READ = ("base", "train.csv", "dev.csv", "text.txt", "teacher", "mlm")
# What the chain writes, and the words by which a message names it.
WRITTEN = {
    "the record of a run": r"/\.?run\.json", "its recipe": r"/\.?recipe\.yaml", "a checkpoint": "/checkpoints",
    "its model": r"/(\.model\.|model\b)", "its answers": "/predictions", "a memory": "/memory/",
    "teacher outputs": "/.teacher-outputs/", "a corpus": "/runs/corpus/", "a tokenizer": "/vocab",
}  # fmt: skip


@pytest.fixture(scope="module")
def given(kdbert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain reads."""
    place = inputs(tmp_path_factory.mktemp("given"))
    for command in ("finetune", "finetune-mlm"):
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
    return place


@dataclass(frozen=True)
class Ended:
    """What a command of the chain finds where there is room, and how large the files are that it writes."""

    result: dict[str, Any]
    sizes: list[int]


@pytest.fixture(scope="module")
def expected(given: Path, kdbert: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Of each command."""
    place = beside(given, tmp_path_factory.mktemp("expected") / "place")
    found = {}
    for command in CHAIN:
        before = files(place)
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
        sizes = {len(content) for file, content in files(place).items() if before.get(file) != content}
        found[command] = Ended(result(place, command, done.out), sorted(sizes))
    return found


def files(place: Path) -> dict[str, bytes]:
    """The content of every file, but for those that tell how the last attempt went, and checkpoints (see `climb`)."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
        and not path.name.startswith("events.")
        and not path.name.endswith(".lock")
        and path.parent.parent.name != "checkpoints"
    }


def beside(given: Path, place: Path) -> Path:
    """A place whose inputs lie elsewhere, where there is room."""
    place.mkdir(exist_ok=True)
    for name in READ:
        (place / name).symlink_to(given / name)
    return place


def climb(
    place: Path, chain: Iterable[str], give: Callable[[str, int], None], kdbert: Any, expected: dict[str, Ended]
) -> dict[str, list[str]]:
    """Start each command of a chain until it ends well, with more room after each failure.

    Args:
        give: grants a command room of a size, from 0 on.

    Returns:
        What each command has said when it failed, and when it went on without keeping something.
    """
    told: dict[str, list[str]] = {}
    for command in chain:
        told[command] = []
        for size in range(100):
            give(command, size)
            run = place / MADE.get(command, "-") / "checkpoints"
            before, there = newest_checkpoint(run), files(place)
            done = kdbert(*words(place, command))
            assert "Traceback" not in done.err
            told[command] += [line.replace(str(place), "") for line in done.err.splitlines() if "not kept" in line]
            if done.code == 0:
                break
            last = done.err.strip().splitlines()[-1]
            assert done.code == 2, done.err
            assert last.startswith("kdbert: "), done.err
            after = newest_checkpoint(run)
            assert before is None or (after is not None and after.state["step"] >= before.state["step"])
            assert str(place) in last
            left = files(place)
            lost = [file for file, content in there.items() if left.get(file) != content]
            assert {Path(file).name for file in lost} <= {"run.json", "metrics.jsonl"}  # which say what was tried
            assert all(file in left for file in lost)
            told[command].append(last.replace(str(place), ""))
        if command != "report":  # which tells how long runs took
            assert result(place, command, done.out) == expected[command].result
    for folder in (place / "run", place / "domain"):
        assert RunFolder(folder).manifest()["status"] == "finished"
        assert not (folder / "checkpoints").exists()
    assert [path for path in place.rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))] == []
    return told


def show(told: dict[str, list[str]]) -> None:
    """Print what was said."""
    for command, lines in told.items():
        print(f"{command}: {len(lines)} failures", *dict.fromkeys(lines), sep="\n  ")
    assert all(told.values())


def named(told: dict[str, list[str]]) -> set[str]:
    """What of `WRITTEN` is named in something that was said."""
    lines = [line for said in told.values() for line in said]
    return {what for what, words in WRITTEN.items() if any(re.search(words, line) for line in lines)}


@pytest.mark.slow
@pytest.mark.long
def test_files_that_may_not_grow(given: Path, expected: dict[str, Ended], kdbert: Any, tmp_path: Path) -> None:
    place, before = beside(given, tmp_path / "place"), resource.getrlimit(resource.RLIMIT_FSIZE)

    def give(command: str, size: int) -> None:
        """First nothing, then a byte too few for each file that the command writes, the smallest first."""
        limits = [0]
        for whole in expected[command].sizes:
            if whole > 1.25 * limits[-1] + 1:  # not each of many that are nearly as large
                limits.append(whole - 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, ([*limits, before[0]][size], before[1]))

    try:
        told = climb(place, CHAIN, give, kdbert, expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    show(told)
    # What a run writes before these is larger: run.json, a checkpoint.
    assert named(told) == WRITTEN.keys() - {"its recipe", "its model"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    done = subprocess.run(["mount", "-t", "tmpfs", "kdbert-test", str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # what was mapped of the store may be so still


@pytest.mark.slow
@pytest.mark.parametrize("of", ["files", pytest.param("bytes", marks=pytest.mark.long)])
@pytest.mark.long
def test_a_disk_that_is_full(of: str, given: Path, expected: dict[str, Ended], disk: Path, kdbert: Any) -> None:
    """With room for so many more files the making of each fails in turn; with so many bytes, writing into one."""
    beside(given, disk)

    def give(command: str, size: int) -> None:
        now = os.statvfs(disk)
        if of == "files":
            option = f"nr_inodes={now.f_files - now.f_ffree + size}"
        else:
            option = f"size={(now.f_blocks - now.f_bfree) * now.f_bsize + 4096 * 2**size}"
        subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)

    told = climb(disk, ("distill", "expand-vocab", "ve-kd"), give, kdbert, expected)
    show(told)
    # A model has more files than the answers that are written after it.
    in_files = WRITTEN.keys() - {"its answers"}
    assert named(told) >= (in_files if of == "files" else {"a checkpoint", "teacher outputs", "a tokenizer"})
