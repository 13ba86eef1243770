"""The lock by which a run, a claim or a store belongs to one process at a time; files that are written whole or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from in_processes import processes, wait_until
from kdbert.disk.files import replace_folder, write_text
from kdbert.disk.lock import FileLock

HOLD = """
import sys, time
from pathlib import Path
from kdbert.disk.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes; they are gone after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, *words: object, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, words)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options))  # type: ignore[call-overload]
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The lock's file, in a folder that is not there."""
    return tmp_path / "claims" / "run.lock"


def test_a_lock_has_one_holder_and_its_file_goes_with_it(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    assert second.taken()
    assert second.holder().startswith(f"process {os.getpid()} on ")
    first.release()
    assert not path.exists()
    assert not second.taken()
    assert second.acquire()
    assert not first.acquire()
    second.release()


def test_looking_creates_nothing(path: Path) -> None:
    lock = FileLock(path)
    assert not lock.taken()
    assert lock.holder() == "unknown"
    assert not path.parent.exists()
    path.parent.mkdir()
    assert not lock.taken()
    assert list(path.parent.iterdir()) == []


def test_a_lock_of_any_bytes_names_its_holder_in_one_line(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xfe process\n 7\x1b[2J")
    assert FileLock(path).holder() == "\ufffd\ufffd process 7 [2J"
    path.write_bytes(b"x" * 10_000)
    assert len(FileLock(path).holder()) == 200


def test_a_file_that_nobody_holds_is_no_lock(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("process 1 on elsewhere, long ago")
    lock = FileLock(path)
    assert not lock.taken()
    assert lock.acquire()
    assert lock.holder().startswith(f"process {os.getpid()} on ")
    assert "long ago" not in lock.holder()
    lock.release()


def test_a_killed_holder_leaves_no_stale_lock(path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    lock = FileLock(path)
    assert not lock.acquire()
    assert lock.holder().startswith(f"process {process.pid} on ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not lock.taken()
    assert lock.acquire()
    lock.release()
    assert not path.exists()


def test_a_child_that_inherits_a_lock_holds_it_after_its_parent_is_gone(
    path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = f"""
import subprocess, sys
from pathlib import Path
from kdbert.disk.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()], stdout=subprocess.DEVNULL)
subprocess.Popen(["sleep", "0"], stdout=subprocess.DEVNULL).wait()  # has not inherited it
print(child.pid, flush=True)
import os
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    process = started(parent, path)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.wait()
    try:
        lock = FileLock(path)
        assert lock.taken()
        assert not lock.acquire()
    finally:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not lock.taken(), lambda: True, "the end of the child")
    assert lock.acquire()
    lock.release()


def test_who_waits_gets_the_lock_when_its_holder_lets_go(
    path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    waiting = started(HOLD.replace("acquire()", "acquire(wait=True)"), path)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    lock.release()  # which also removes the file that the other has opened
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "held\n"
    assert not lock.acquire()
    assert lock.holder().startswith(f"process {waiting.pid} on ")


def count_up(path: Path, counter: Path) -> None:
    """Body of a process that takes and frees the lock a hundred times, and counts meanwhile."""
    for _ in range(100):
        lock = FileLock(path)
        lock.acquire(wait=True)
        counter.write_text(str(int(counter.read_text()) + 1))
        lock.release()


def test_of_many_at_once_one_gets_the_lock(path: Path) -> None:
    counter = path.parent.parent / "counter"
    counter.write_text("0")
    counting = [processes.Process(target=count_up, args=(path, counter)) for _ in range(4)]
    for process in counting:
        process.start()
    for process in counting:
        process.join(60)
    assert [process.exitcode for process in counting] == [0] * 4
    assert counter.read_text() == "400"
    assert not path.exists()


def test_a_lock_of_a_folder_that_was_moved_leaves_the_new_folders_lock_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = FileLock(folder / "run.lock"), FileLock(folder / "run.lock")
    assert first.acquire()
    folder.rename(tmp_path / "run.old")
    assert second.acquire()  # somebody starts the run anew
    first.release()
    assert second.path.exists()
    assert not FileLock(second.path).acquire()
    second.release()


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lock = FileLock(tmp_path / "file" / "run.lock")
    with pytest.raises(OSError):
        lock.acquire()


# ---- what killed processes left beside a file that is written

WRITE = """
import os, signal, sys
from pathlib import Path
from kdbert.disk.files import atomic_write, replace_folder

def half(file: Path) -> None:
    (file / "part" if file.is_dir() else file).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

(replace_folder if sys.argv[2] == "folder" else atomic_write)(Path(sys.argv[1]), half)
"""


def write(path: Path, kind: str) -> None:
    """Write a file or a folder with a file."""
    if kind == "folder":
        replace_folder(path, lambda folder: write_text(folder / "part", "whole"))
    else:
        write_text(path, "whole")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_when_the_same_is_written(
    kind: str, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    path = tmp_path / "vocab[1]"
    assert started(WRITE, path, kind).wait(60) == -signal.SIGKILL
    (litter,) = tmp_path.iterdir()
    assert litter.name.startswith(f".vocab[1].{socket.gethostname()}.")
    write(tmp_path / "other", kind)
    assert litter.exists()
    for _ in range(2):
        write(path, kind)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "vocab[1]"]


def test_of_others_only_what_no_process_can_be_at_goes(tmp_path: Path) -> None:
    dead, here = 4194000, socket.gethostname()  # no Linux gives a process so high an id, unless it is told to
    own = tmp_path / "own"
    own.mkdir()
    (own / "part").write_text("own")
    names = [f"of-elsewhere.{dead}", f"{here}.{os.getppid()}", f"{here}.1", f"{here}.{dead}.x", str(dead)]
    stay = [tmp_path / f".model.{name}.tmp" for name in names]
    for folder in stay:
        folder.mkdir()
    go = [tmp_path / f".model.{here}.{dead}.{kind}" for kind in ("tmp", "old")]
    go[0].symlink_to(own)
    go[1].mkdir()
    with pytest.raises(NotADirectoryError):
        replace_folder(tmp_path / "model", lambda folder: (tmp_path / "own" / "part" / "x").mkdir())
    assert go[1].is_dir()  # it may be all that there is
    write(tmp_path / "model", "folder")
    assert [folder for folder in go if folder.is_symlink() or folder.exists()] == []
    assert all(folder.is_dir() for folder in stay)
    assert (own / "part").read_text() == "own"
