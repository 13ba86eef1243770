"""Starts `kdbert` commands by forking a process that has imported the program: a start takes no seconds of imports.

The server imports and does nothing else: no tensor operation, no CUDA, no thread of its own. So a process that it forks
is as good as a fresh one. It ends when its parent ends, however that ends; the commands that it has started go on.

A command is also told the checksums of files that its parent has read, so that a sweep reads each model once (as long
as size and time of change stay the same). It ends without tearing down what it shares with the server, which would
first copy it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import kdbert.methods
from kdbert.disk.files import known_sha256
from kdbert.signals import SIGNALS

# What a run imports, also the parts that it imports late.
MODULES = (
    "kdbert.cli",
    "kdbert.runs.commands",
    "kdbert.runs.execute",
    "kdbert.reporting.summary",
    *(f"kdbert.methods.{module.name}" for module in pkgutil.iter_modules(kdbert.methods.__path__)),
    "sklearn.metrics",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.optimization",
)
THREADS = "OMP_NUM_THREADS"
MOST_FILES = 16
UNKNOWN = 255  # the exit code where the server was killed before it could tell


class Started:
    """A command that the server was asked to start, with what `subprocess.Popen` has of a process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._told = b""
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its process id, or 0 if it never began; waits while the server is still importing."""
        while b"\n" not in self._told and self.returncode is None:
            self._listen(None)
        return int(self._told.partition(b"\n")[0] or 0)

    def poll(self) -> int | None:
        """Its exit code, minus a signal's number if one ended it; None: it runs."""
        self._listen(0)
        return self.returncode

    def wait(self) -> int:
        """The same, at its end."""
        while (code := self.poll()) is None:
            self._listen(None)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _listen(self, seconds: float | None) -> None:
        """Wait so long for what the server tells: first the process id, at last the exit code."""
        if self.returncode is not None:
            return
        self._connection.settimeout(seconds)
        try:
            told = self._connection.recv(64)
        except (BlockingIOError, TimeoutError):
            return
        except ConnectionResetError:  # a server that ended before it took the request
            told = b""
        self._told += told
        if self._told.count(b"\n") == 2:
            self.returncode = int(self._told.split(b"\n")[1])
        elif not told:  # the server has ended, and so has the command, which holds the other end too
            self.returncode = UNKNOWN
        if self.returncode is not None:
            self._connection.close()


class Preloaded:
    """The server's client: starts it when the first command is to be started, and ends it."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], output: int, keep: Sequence[int] = ()
    ) -> subprocess.Popen[bytes] | Started:
        """Start a `kdbert` command in the current folder; OSError if it cannot be started.

        Args:
            words: what follows `kdbert`.
            environment: all of its environment. What libraries read of it when they are imported is what the first
                command was given.
            output: the file that gets its output, both streams.
            keep: further open files that it inherits, such as a lock's.
        """
        if sys.platform != "linux":  # elsewhere, system libraries that are loaded may not survive a fork
            return subprocess.Popen(
                [sys.executable, "-m", "kdbert", *words], env=dict(environment), pass_fds=keep,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        control = self._running(environment, output)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(control, [b"."], [theirs.fileno(), output, *keep])
            request = {
                "words": list(words), "environment": dict(environment), "folder": os.getcwd(),
                "checksums": [[*key, digest] for key, digest in known_sha256.items()],
            }  # fmt: skip
            ours.sendall(json.dumps(request).encode())
            ours.shutdown(socket.SHUT_WR)
        except BaseException:
            ours.close()
            raise
        return Started(ours)

    def close(self) -> None:
        """End the server; what it has started goes on, and nobody hears how it ends."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.wait()
            self._server = None

    def _running(self, environment: Mapping[str, str], output: int) -> socket.socket:
        """The connection to the server, which is started if it does not run (any more)."""
        if self._control is not None and self._server is not None and self._server.poll() is None:
            return self._control
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from kdbert.sweep.preloaded import run; run({theirs.fileno()})"
            self._server = subprocess.Popen(
                [sys.executable, "-c", code], env=dict(environment), pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self._control = ours
        return ours


def run(control: int) -> None:
    """The server's process; and in each process that it forks: the command."""
    # A signal to the whole group is for the commands. It is held back, not ignored, so that none is lost on one that
    # has just been forked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # what is never collected is not copied by the commands
    words = serve(socket.socket(fileno=control))
    if words is None:
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    sys.argv[1:] = words
    try:
        runpy.run_module("kdbert", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        _leave(end.code or 0)
    _leave(0)


def _leave(code: int) -> None:
    """What Python does at the end of a process, but for freeing all that was imported."""
    for number in SIGNALS:  # the command is done
        signal.signal(number, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(control: socket.socket) -> list[str] | None:
    """Fork a process for every request, and tell how each ends. Returns in a forked process, with the words of its
    command; and in the server when its parent has ended, with None.
    """
    heard, woken = os.pipe()
    for end in (heard, woken):
        os.set_blocking(end, False)
    handler = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([control.fileno(), heard], [], [])[0]
        if heard in ready:
            os.read(heard, 4096)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            with running.pop(pid) as connection:
                _tell(connection, os.waitstatus_to_exitcode(status))
        if control.fileno() not in ready:
            continue
        message, files, _, _ = socket.recv_fds(control, 1, MOST_FILES)
        if not message:
            return None
        for file in files:
            os.set_inheritable(file, False)
        connection, output = socket.socket(fileno=files[0]), files[1]
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, no memory
            os.write(output, f"cannot start: {error.strerror}\n".encode())
            _tell(connection, 0)
            _tell(connection, 1)
            connection.close()
            pid = 0
        else:
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, handler)
                for other in (control, *running.values()):
                    other.close()
                os.close(heard)
                os.close(woken)
                return _take_over(connection, output)
            running[pid] = connection
            _tell(connection, pid)
        for file in files[1:]:
            os.close(file)


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.send(f"{number}\n".encode(), socket.MSG_NOSIGNAL)


def _take_over(connection: socket.socket, output: int) -> list[str]:
    """Give this process the output, environment and folder of a command; returns its words."""
    for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, stream)
    request: dict[str, Any] = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    before = os.environ.get(THREADS)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    threads = os.environ.get(THREADS, "")
    if threads != before and threads.isdecimal():
        import torch

        torch.set_num_threads(int(threads))
    known_sha256.update({(path, *status): digest for path, *status, digest in request["checksums"]})
    connection.detach()  # stays open as long as this process lives: its end is the process's
    return list(request["words"])
