"""Commands that are forked from a process with all imports done: each is as a fresh process would be."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from in_processes import fork_server, in_place, place, processes, wait_until
from kdbert.disk.lock import FileLock
from kdbert.sweep import local
from kdbert.sweep.preloaded import UNKNOWN, Preloaded
from small_run import Setting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems start fresh processes"),
]
# A plug-in is code that a command runs. This one tells what the process is like, and its method keeps whoever lists it
# waiting.
PLUGIN = """
import json, os, signal, sys, threading, time
from pathlib import Path
import torch
from kdbert.methods.finetune import Finetune

here = Path(__file__).parent
names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
facts = {
    "pid": os.getpid(), "argv": sys.argv, "main": sys.modules["__main__"].__name__, "folder": os.getcwd(),
    "environment": dict(os.environ), "group": os.getpgrp(), "session": os.getsid(0), "path": sys.path,
    "stdin": os.readlink("/proc/self/fd/0"), "files": [os.readlink(name) for name in names if os.path.exists(name)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "wakeup": signal.set_wakeup_fd(-1),
    "handlers": {n.name: str(signal.getsignal(n)) for n in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR1)},
    "threads": torch.get_num_threads(), "running": threading.active_count(), "cuda": torch.cuda.is_initialized(),
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
}
(here / "facts.tmp").write_text(json.dumps(facts))
(here / "facts.tmp").rename(here / "facts")

class Summary(str):
    def __format__(self, how):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        (here / "waiting").touch()
        end = time.monotonic() + 120
        while (here / "wait").exists() and time.monotonic() < end:
            time.sleep(0.005)
        return "waited"

class Probe(Finetune):
    name = "probe"
    aliases = ()
    summary = Summary()
"""


class Command:
    """`kdbert methods` with the plug-in, in a folder of its own."""

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "plugin.py").write_text(PLUGIN)
        if wait:
            (folder / "wait").touch()
        self.words = ["methods", "list", "--plugin", str(folder / "plugin.py")]

    def facts(self) -> dict[str, Any]:
        """What its process is like; waits until it says so."""
        end = time.monotonic() + 120
        while not (self.folder / "facts").exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        found: dict[str, Any] = json.loads((self.folder / "facts").read_text())
        return found

    def go_on(self) -> None:
        """Let it end."""
        (self.folder / "wait").unlink()

    def start(self, server: Preloaded, keep: tuple[int, ...] = (), **environment: str) -> Any:
        """Start it; its output goes to a file in the folder."""
        with open(self.folder / "output", "ab") as output:
            return server.start(self.words, {**os.environ, **environment}, output.fileno(), keep)

    def output(self) -> list[str]:
        """Its lines."""
        return (self.folder / "output").read_text().splitlines()


@pytest.fixture(scope="module")
def server() -> Iterator[Preloaded]:
    """One for all tests. It hears a closed terminal, also where the tests do not (`nohup`)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Preloaded() as server:
        yield server
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Make commands; none waits for ever."""
    made: list[Command] = []

    def make(wait: bool = False) -> Command:
        made.append(Command(tmp_path / f"command{len(made)}", wait))
        return made[-1]

    yield make
    for one in made:
        (one.folder / "wait").unlink(missing_ok=True)


def server_of(command: Command) -> psutil.Process:
    """The server that forked a running command."""
    parent = psutil.Process(command.facts()["pid"]).parent()
    assert parent is not None
    assert "kdbert.sweep.preloaded" in " ".join(parent.cmdline())
    return parent


@pytest.mark.long
def test_a_forked_process_is_as_a_fresh_one(
    server: Preloaded,
    command: Callable[..., Command],
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What it sees of itself, and the bits of what it trains."""
    forked, fresh = command(), command()
    given = {"KDBERT_TEST_ENVIRONMENT": "a b\n\udcff", "OMP_NUM_THREADS": "2"}
    changes = {"method.name": "cka-ilg", "student.layers": 3, "memory.centroids": 6, "max_steps": 5}
    for one in (forked, fresh):
        one.words = [*setting.words(one.folder / "runs" / "run", **changes), *one.words[2:]]
    (tmp_path / "folder").mkdir()
    with open(fresh.folder / "output", "ab") as output:
        other_process = subprocess.Popen(
            [sys.executable, "-m", "kdbert", *fresh.words], env={**os.environ, **given}, cwd=tmp_path / "folder",
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command().start(server).wait() == 0  # the server is there, and was started elsewhere
    monkeypatch.chdir(tmp_path / "folder")
    process = forked.start(server, **given)
    assert process.wait() == 0, forked.output()
    assert other_process.wait() == 0, fresh.output()
    one, other = forked.facts(), fresh.facts()
    for facts in (one, other):
        assert facts.pop("pid") != os.getpid()
        assert facts.pop("argv")[1] == "distill"
        assert facts.pop("environment")["KDBERT_TEST_ENVIRONMENT"] == given["KDBERT_TEST_ENVIRONMENT"]
        assert facts["folder"] == str(tmp_path / "folder")
        files = [file for file in facts.pop("files") if file.startswith("/")]
        assert not [file for file in files if "output" not in file and "/dev/" not in file]
        assert facts.pop("path")[1:]
    assert one == other
    runs = [one.folder / "runs" / "run" for one in (forked, fresh)]
    sums = [hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest() for run in runs]
    assert sums[0] == sums[1]
    facts = [json.loads((run / "run.json").read_text()) for run in runs]
    assert [fact["threads"] for fact in facts] == [2, 2]
    assert facts[0]["metrics"] == facts[1]["metrics"]
    one, other = (fact["environment"] for fact in facts)
    assert one.pop("command")[:2] == other.pop("command")[:2] == ["kdbert", "distill"]
    assert one == other


def test_the_server_only_imports(server: Preloaded, command: Callable[..., Command]) -> None:
    waiting = command(wait=True)
    process = waiting.start(server)
    facts = waiting.facts()
    assert (facts["running"], facts["cuda"]) == (1, False)
    tasks = Path(f"/proc/{server_of(waiting).pid}/task").glob("*/comm")
    names = [task.read_text().strip() for task in tasks]
    assert len([name for name in names if name != "jemalloc_bg_thd"]) == 1, names  # pyarrow's allocator knows of forks
    waiting.go_on()
    assert process.wait() == 0


def test_the_exit_code_is_told(server: Preloaded, command: Callable[..., Command], tmp_path: Path) -> None:
    with open(tmp_path / "output", "ab") as output:
        wrong = server.start(["no-such-command"], os.environ, output.fileno())
        refused = server.start(["distill", "--method", "kdd"], os.environ, output.fileno())
    assert (wrong.wait(), refused.wait()) == (2, 2)
    assert "Traceback" not in (tmp_path / "output").read_text()
    waiting = command(wait=True)
    process = waiting.start(server)
    assert process.pid == waiting.facts()["pid"]
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # is gone: nothing happens
    assert process.poll() == process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_politely_whenever_it_comes(
    server: Preloaded, command: Callable[..., Command], number: signal.Signals
) -> None:
    running, fresh = command(wait=True), command(wait=True)
    process = running.start(server)
    wait_until((running.folder / "waiting").exists, lambda: process.poll() is None, "it waits")
    process.send_signal(number)
    assert process.wait() == 128 + number
    process = fresh.start(server)
    process.send_signal(number)  # it may not yet be so far as to end politely, but it hears it
    assert process.wait() != 0
    alive = command()
    assert alive.start(server).wait() == 0  # the server has not heard of it


def test_commands_run_side_by_side(server: Preloaded, command: Callable[..., Command]) -> None:
    commands = [command(wait=True) for _ in range(3)]
    processes = [one.start(server, KDBERT_NUMBER=str(number)) for number, one in enumerate(commands)]
    found = [one.facts() for one in commands]
    assert [facts["pid"] for facts in found] == [process.pid for process in processes]
    assert [facts["environment"]["KDBERT_NUMBER"] for facts in found] == ["0", "1", "2"]
    assert {facts["group"] for facts in found} == {os.getpgrp()}  # a Ctrl-C reaches them
    commands[1].go_on()
    assert processes[1].wait() == 0
    assert [processes[0].poll(), processes[2].poll()] == [None, None]
    processes[0].send_signal(signal.SIGKILL)  # one that is killed is one
    assert processes[0].wait() == -signal.SIGKILL
    assert processes[2].poll() is None
    commands[2].go_on()
    assert processes[2].wait() == 0


def test_a_lock_that_it_inherits_is_held_as_long_as_it_lives(
    server: Preloaded, command: Callable[..., Command], tmp_path: Path
) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    first, second = command(wait=True), command(wait=True)
    process = first.start(server, keep=(lock.fileno(),))
    other = second.start(server)
    first.facts()
    second.facts()
    with open(tmp_path / "lock", "ab"):  # let go of it here, without a word
        assert lock._file is not None
        lock._file.close()
    assert FileLock(tmp_path / "lock").taken()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert other.poll() is None
    assert not FileLock(tmp_path / "lock").taken()


@pytest.mark.long
def test_where_the_server_is_killed_commands_go_on_and_the_next_one_starts(
    server: Preloaded, command: Callable[..., Command]
) -> None:
    first, second = command(wait=True), command()
    process = first.start(server)
    server_of(first).kill()
    psutil.Process(process.pid).status()
    assert process.poll() is None  # it lives
    wait_until(lambda: server._server is not None and server._server.poll() is not None, lambda: True, "its end")
    assert second.start(server).wait() == 0
    assert process.poll() is None
    first.go_on()
    assert process.wait() == UNKNOWN  # nobody saw it end


def test_a_server_that_cannot_begin_says_why(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('broken on purpose')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    with Preloaded() as server, open(tmp_path / "output", "ab") as output:
        process = server.start(["--version"], environment, output.fileno())
        assert process.wait() == UNKNOWN
        assert process.pid == 0
    assert (tmp_path / "output").read_text().strip().splitlines()[-1] == "ImportError: broken on purpose"


def start_and_wait(words: list[str], output: Path) -> None:
    """Body of a process that starts a command by a server of its own."""
    fork_server()
    with open(output, "ab") as file:
        local.Preloaded().start(words, os.environ, file.fileno())
    time.sleep(600)


@pytest.mark.long
def test_the_server_ends_with_its_parent_and_the_command_goes_on(command: Callable[..., Command]) -> None:
    one = command(wait=True)
    parent = processes.Process(target=in_place, args=(place(), start_and_wait, one.words, one.folder / "output"))
    parent.start()
    server = psutil.Process(one.facts()["pid"]).parent()
    assert server is not None
    assert server.ppid() == parent.pid
    parent.kill()
    parent.join()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, lambda: True, "its end")
    left = psutil.Process(one.facts()["pid"])
    assert left.is_running()
    one.go_on()
    wait_until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE, lambda: True, "the command's")
    assert "to stdout" in one.output()
