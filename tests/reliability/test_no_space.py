"""No space at any write: one sentence, exit code 2, what was there stays; with more room the same command goes on to
the result that it always had.

A chain of commands is started with almost no room and started again each time with a little more, so that each kind of
write fails in turn: the lock, run.json, the record, a checkpoint, the memory, the model, predictions, …
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broken_world import MADE, inputs, result, words
from kdbert.runs import RunFolder
from kdbert.training.checkpoint import newest_checkpoint

CHAIN = ("train-memory", "distill", "evaluate", "export", "report", "expand-vocab", "ve-kd")
READ = ("base", "train.csv", "dev.csv", "text.txt", "teacher", "mlm")


@pytest.fixture(scope="module")
def given(kdbert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain reads."""
    place = inputs(tmp_path_factory.mktemp("given"))
    for command in ("finetune", "finetune-mlm"):
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
    return place


@pytest.fixture(scope="module")
def expected(given: Path, kdbert: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the chain's commands find where there is room."""
    place = beside(given, tmp_path_factory.mktemp("expected") / "place")
    found = {}
    for command in CHAIN:
        done = kdbert(*words(place, command))
        assert done.code == 0, done.err
        found[command] = result(place, command, done.out)
    return found


def beside(given: Path, place: Path) -> Path:
    """A place whose inputs lie elsewhere, where there is room."""
    place.mkdir(exist_ok=True)
    for name in READ:
        (place / name).symlink_to(given / name)
    return place


def climb(
    place: Path, chain: Iterable[str], give: Callable[[int], None], kdbert: Any, expected: dict[str, Any]
) -> dict[str, list[str]]:
    """Start each command of a chain until it ends well, with more room after each failure.

    Args:
        give: grants room of a size, from 0 on.

    Returns:
        What each command has said when it failed.
    """
    told: dict[str, list[str]] = {}
    for command in chain:
        told[command] = []
        for size in range(100):
            give(size)
            run = place / MADE.get(command, "-") / "checkpoints"
            before = newest_checkpoint(run)
            done = kdbert(*words(place, command))
            assert "Traceback" not in done.err
            if done.code == 0:
                break
            last = done.err.strip().splitlines()[-1]
            assert done.code == 2, done.err
            assert last.startswith("kdbert: "), done.err
            after = newest_checkpoint(run)
            assert before is None or (after is not None and after.state["step"] >= before.state["step"])
            assert str(place) in last
            told[command].append(last.replace(str(place), ""))
        if command != "report":  # which tells how long runs took
            assert result(place, command, done.out) == expected[command]
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


# File sizes below and between those that the chain's files have in the end; all fit within the last.
SIZES = (0, 300, 1000, 2600, 5400, 9000, 60_000, 180_000, 2**40)


@pytest.mark.slow
def test_files_that_may_not_grow(given: Path, expected: dict[str, Any], kdbert: Any, tmp_path: Path) -> None:
    place, before = beside(given, tmp_path / "place"), resource.getrlimit(resource.RLIMIT_FSIZE)

    def give(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZES[size] if size < len(SIZES) - 1 else before[0], before[1]))

    try:
        told = climb(place, CHAIN, give, kdbert, expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    show(told)


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
@pytest.mark.parametrize("of", ["files", "bytes"])
def test_a_disk_that_is_full(of: str, given: Path, expected: dict[str, Any], disk: Path, kdbert: Any) -> None:
    """With room for so many more files the making of each fails in turn; with so many bytes, writing into one."""
    beside(given, disk)

    def give(size: int) -> None:
        now = os.statvfs(disk)
        if of == "files":
            option = f"nr_inodes={now.f_files - now.f_ffree + size}"
        else:
            option = f"size={(now.f_blocks - now.f_bfree) * now.f_bsize + 4096 * 2**size}"
        subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)

    show(climb(disk, ("distill", "expand-vocab", "ve-kd"), give, kdbert, expected))
