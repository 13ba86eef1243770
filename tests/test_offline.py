"""The tests themselves are kept off the network, here and in every process that they start."""

from __future__ import annotations

import http.server
import multiprocessing
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from offline.sitecustomize import REFUSED

ELSEWHERE = "192.0.2.1"  # of a net that is nobody's (RFC 5737)
TRIES = (
    f"import socket; socket.create_connection(('{ELSEWHERE}', 80), 0.2)",
    f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{ELSEWHERE}', 53))",
    "import socket; socket.getaddrinfo('huggingface.co', 443)",
    "import socket; socket.gethostbyname('huggingface.co')",
    f"import socket; socket.gethostbyaddr('{ELSEWHERE}')",
    f"import socket; socket.getnameinfo(('{ELSEWHERE}', 80), 0)",
    f"import urllib.request; urllib.request.urlopen('http://{ELSEWHERE}/', timeout=0.2)",
)


@pytest.mark.parametrize("words", TRIES)
def test_nothing_outside_this_machine_is_reached(words: str) -> None:
    with pytest.raises(OSError, match=REFUSED):
        exec(words, {})


def test_nor_by_a_process_that_a_test_starts() -> None:
    ended = subprocess.run([sys.executable, "-c", TRIES[0]], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert REFUSED in ended.stderr
    with multiprocessing.get_context("forkserver").Pool(1) as pool, pytest.raises(OSError, match=REFUSED):
        pool.apply(exec, (TRIES[0],))


def test_this_machine_is_reached() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with urllib.request.urlopen(f"http://localhost:{server.server_port}/", timeout=10) as answer:
            assert answer.status == 200
    assert socket.getaddrinfo(socket.gethostname(), 80)
