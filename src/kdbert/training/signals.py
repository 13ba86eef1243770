"""Stopping politely: the first signal asks the loop to save and end, a second Ctrl-C ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
        except OSError:  # the terminal was closed: what is said from now on must not keep it from saving
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def stop_request(doing: str = "saving after this step") -> Iterator[StopRequest]:
    """Listen for signals while the block runs (in the main thread; elsewhere Python allows none).

    A closed terminal is no request where it was ignored before, as under `nohup`.

    Args:
        doing: what the person is told when the first signal comes.
    """
    request = StopRequest(doing)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, request._handle) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
