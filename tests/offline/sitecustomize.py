"""No network: every Python process that finds this file on its path may reach this machine and no other.

The interpreter imports it at its start (`tests/conftest.py` puts its folder on PYTHONPATH), and an audit hook, which
nothing can take off again, refuses to look up or to talk to any other machine.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

REFUSED = "no test may reach the network"
_HERE = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}


def _here(host: Any) -> bool:
    """Whether a host is this machine: by name, or by an address of its own."""
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in _HERE:
        return True
    try:
        address = ipaddress.ip_address(str(name).partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _refuse(event: str, given: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = given[0]
    elif event in ("socket.gethostbyaddr", "socket.getnameinfo"):
        host = given[0][0] if isinstance(given[0], tuple) else given[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = given[1]
        if not isinstance(address, tuple) or given[0].family not in (socket.AF_INET, socket.AF_INET6):
            return  # a socket of this machine's file system, or one that is connected
        host = address[0]
    else:
        return
    if not _here(host):
        raise PermissionError(f"{REFUSED}: {event} {host!r}")


if not getattr(sys, "_kdbert_offline", False):  # once, where this is imported by another name, too
    sys._kdbert_offline = True  # type: ignore[attr-defined]
    sys.addaudithook(_refuse)
