"""Stopping politely: the first signal asks the loop to save and end, a second Ctrl-C ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kdbert.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Set by a signal; read by the loop after every step."""

    def __init__(self, doing: str) -> None:
        self.number = 0
        self.doing = doing

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        try:
            os.write(2, f"\nstopping: {self.doing} (Ctrl-C again: at once)\n".encode())  # a handler may not print
        except OSError:  # the terminal was closed
            _silence()


def _silence() -> None:
    """Nobody reads what is said from now on, and that must not be an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal end the block by `Interrupted`: nothing stays half-written, and what was ended says so. Inside,
    `stop_request` may listen instead.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _silence()
        raise Interrupted(f"stopped by {signal.Signals(number).name}; run the same command again to continue", number)

    with _handled(handle):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals in the block (in the main thread; elsewhere Python allows none).

    A closed terminal is left alone where it was ignored before, as under `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stop_request(doing: str = "saving after this step") -> Iterator[StopRequest]:
    """Listen for signals while the block runs; `doing` is what the person is told when the first one comes."""
    request = StopRequest(doing)
    with _handled(request._handle):
        yield request
