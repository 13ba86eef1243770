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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broken_world import MADE, inputs, result, words
from kdbert.runs import RunFolder
from kdbert.training.checkpoint import newest_checkpoint

CHAIN = ("finetune", "train-memory", "distill", "evaluate", "export", "report", "expand-vocab", "finetune-mlm", "ve-kd")
READ = ("base", "train.csv", "dev.csv", "text.txt")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain reads."""
    return inputs(tmp_path_factory.mktemp("given"))


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


def climb(place: Path, rooms: Iterator[object], kdbert: Any, expected: dict[str, Any]) -> list[str]:
    """Start the chain's commands until each has ended well, with more room after each failure; the last lines told."""
    told = []
    next(rooms)
    for command in CHAIN:
        while True:
            run = place / MADE.get(command, "-") / "checkpoints"
            before = newest_checkpoint(run)
            done = kdbert(*words(place, command))
            assert "Traceback" not in done.err
            if done.code == 0:
                assert result(place, command, done.out) == expected[command]
                break
            last = done.err.strip().splitlines()[-1]
            assert done.code == 2, done.err
            assert last.startswith("kdbert: "), done.err
            after = newest_checkpoint(run)
            assert before is None or (after is not None and after.state["step"] >= before.state["step"])
            told.append(f"{command}: {last}")
            next(rooms)
    for folder in (place / "run", place / "teacher", place / "domain", place / "mlm"):
        assert RunFolder(folder).manifest()["status"] == "finished"
        assert not (folder / "checkpoints").exists()
    litter = [path for path in place.rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))]
    assert litter == []
    return told


# File sizes just below those that the chain's files have in the end.
SIZES = (0, 20, 300, 600, 1000, 1800, 2600, 3500, 5000, 5400, 6000, 9000, 16_000, 17_000, 60_000, 110_000, 170_000,
         200_000, 300_000, 2**40)  # fmt: skip


@pytest.fixture
def size_limits() -> Iterator[Iterator[int]]:
    """Each `next` lets files of this process grow further, from no byte at all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def rooms() -> Iterator[int]:
        for size in SIZES:
            resource.setrlimit(resource.RLIMIT_FSIZE, (min(size, before[1]) if before[1] >= 0 else size, before[1]))
            yield size

    yield rooms()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_files_that_may_not_grow(
    given: Path, expected: dict[str, Any], size_limits: Iterator[int], kdbert: Any, tmp_path: Path
) -> None:
    told = climb(beside(given, tmp_path / "place"), size_limits, kdbert, expected)
    print("\n".join(told))
    assert len(told) >= 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, mounted with the options given; mounted again with more room by the next call."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        how = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "kdbert-test"]
        done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True)
        if not mounted and done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True
        return place

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # A disk on which so many more files can be made: the making of each fails in turn. (The root and the links are
        # five; a command needs a temporary file beside what it has written.)
        [f"size=64m,nr_inodes={count}" for count in (*range(7, 40), *range(40, 160, 4), 1000)],
        [
            f"size={size}k,nr_inodes=1000"
            for size in (*range(8, 64, 8), *range(64, 512, 32), *range(512, 4000, 128), 64000)
        ],
    ],
    ids=["files", "bytes"],
)
def test_a_disk_that_is_full(
    options: list[str], given: Path, expected: dict[str, Any], disk: Callable[[str], Path], kdbert: Any
) -> None:
    rooms = iter(options)
    beside(given, disk(next(rooms)))
    place = disk(options[0])
    told = climb(place, (disk(room) for room in [options[0], *rooms]), kdbert, expected)
    print("\n".join(told))
    assert len(told) >= 12
