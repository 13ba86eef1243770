"""The command in processes of its own that tests kill, stop and signal, and what they look at meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kdbert.sweep import local, preloaded

# Every process is forked from one that has imported the program, so that starting it takes no seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([*preloaded.MODULES])


def start(words: list[str], output: Path, file_limit: int | None = None, group: bool = False) -> BaseProcess:
    """The command in a process of its own, in the folder and with the environment that the test has now.

    Args:
        words: what follows `kdbert`.
        output: where its output goes, both streams.
        file_limit: no file may grow beyond so many bytes, as on a full disk.
        group: give it a process group of its own, as a shell does.
    """
    process = processes.Process(target=in_place, args=(place(), run_command, words, output, file_limit, group))
    process.start()
    return process


def place() -> tuple[str, dict[str, str]]:
    """Folder and environment of this process."""
    return os.getcwd(), dict(os.environ)


def in_place(place: tuple[str, dict[str, str]], target: Callable[..., None], *given: object) -> None:
    """Body of a process that does something in a folder and an environment."""
    os.chdir(place[0])
    os.environ.clear()
    os.environ.update(place[1])
    target(*given)


def run_command(words: list[str], output: Path, file_limit: int | None = None, group: bool = False) -> None:
    """Body of a process that runs the command."""
    if group:
        os.setsid()
    into_files(output, output)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if words[0] == "sweep":
        fork_server()
    command(words)


def into_files(output: Path, errors: Path) -> None:
    """Let what this process prints go to files, or to one."""
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in dict.fromkeys((output, errors))]
    os.dup2(files[0], 1)
    os.dup2(files[-1], 2)


def fork_server() -> None:
    """Fork the server of a sweep from this process, which has imported the program too and done nothing else. (Where a
    sweep is started as a program, it starts its server as one.)
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        preloaded.run(theirs.detach())  # returns, or raises SystemExit, in the processes of the commands
        sys.exit()
    theirs.close()

    class Forked(preloaded.Preloaded):
        """Its client."""

        def _running(self, environment: Mapping[str, str], output: int) -> socket.socket:
            return ours

        def close(self) -> None:
            ours.close()
            os.waitpid(pid, 0)

    local.Preloaded = Forked  # type: ignore[misc]


@dataclass(frozen=True)
class Ended:
    """How two processes ended: with which exit codes, and what both have printed."""

    codes: tuple[int | None, ...]
    out: str
    err: str


class Two:
    """Two processes that work together as those that torchrun starts: each has a rank, and they meet at a port.

    Where torchrun itself is not what is tested: it imports the program three times, which takes a quarter of a minute.
    """

    def __init__(self, folder: Path, target: Callable[..., None], *given: object) -> None:
        """Start them; `target(*given)` runs in each."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [(folder / f"out-{rank}", folder / f"err-{rank}") for rank in (0, 1)]
        self.processes = [
            processes.Process(target=in_place, args=(place(), run_rank, rank, port, *self.files[rank], target, given))
            for rank in (0, 1)
        ]
        for process in self.processes:
            process.start()

    @classmethod
    def command(cls, folder: Path, words: list[str]) -> Two:
        """The `kdbert` command in two processes."""
        return cls(folder, command, words)

    def running(self) -> bool:
        """Whether both run."""
        return all(process.is_alive() for process in self.processes)

    def join(self) -> Ended:
        """Wait for them; as torchrun does, end one whose fellow has failed."""
        end = time.monotonic() + 300
        while any(process.is_alive() for process in self.processes) and time.monotonic() < end:
            if any(process.exitcode for process in self.processes):
                break
            time.sleep(0.01)
        for process in self.processes:
            process.terminate()
            process.join()
        texts = [[file.read_text(encoding="utf-8") for file in pair] for pair in zip(*self.files, strict=True)]
        return Ended(tuple(process.exitcode for process in self.processes), *("".join(text) for text in texts))


def run_rank(
    rank: int, port: int, output: Path, errors: Path, target: Callable[..., None], given: tuple[object, ...]
) -> None:
    """Body of one of two processes."""
    import torch

    into_files(output, errors)
    torch.set_num_threads(1)  # as torchrun has it
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    target(*given)


def command(words: list[str]) -> None:
    """The command in this process."""
    from kdbert.cli import main

    sys.argv = ["kdbert", *words]
    main()


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
