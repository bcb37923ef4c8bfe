"""Sockets that a forked child has copies of, and closes: as long as one is open, the peer of a process that has died
sees no end, and a listener that was closed still has a place where others queue."""

from __future__ import annotations

import os
import socket
import weakref
from typing import Final

sockets: Final[weakref.WeakSet[socket.socket]] = weakref.WeakSet()


def ours(sock: socket.socket) -> socket.socket:
    """Note a socket of this process, which shall not outlive it in a child."""
    sockets.add(sock)
    return sock


def _in_child() -> None:
    for sock in list(sockets):
        sock.close()
    sockets.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
