"""How a thread that sends or receives wakes the thread of a connection, which waits for its socket.

Whoever rings may be in a signal handler, or be hit by Ctrl-C wherever it runs Python code, and it holds the lock of a
channel. Hence a ring is C all through, as in `channels.aio`: one byte for the socket that the connection watches,
unless one is on its way.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import socket
from collections.abc import Callable
from typing import Any, Final

from .._park import Waiter
from ._inherited import ours

_LAST: Final = 1.0  # seconds that the byte of a thread which is about to ring is waited for
_call: Callable[[Any], object] = operator.call


class Bell:
    """Invariant: ``_armed`` has its key unless a byte is in the socket or about to be, or the bell is retired."""

    __slots__ = ("_armed", "_mouth", "_steps", "ears")

    def __init__(self) -> None:
        self._armed = {"bell": True}
        self.ears, self._mouth = map(ours, socket.socketpair())
        self.ears.setblocking(False)
        self._mouth.setblocking(False)
        self._steps = (functools.partial(self._armed.pop, "bell", None), functools.partial(self._mouth.send, b"\0"))

    def ringer(self) -> Callable[[], object]:
        """A function that rings once. (`all` ends at a key that is not there.)"""
        return functools.partial(all, map(_call, self._steps))

    def ring(self) -> None:
        """Wake the thread of the connection. Any thread; harmless after `retire`."""
        self.ringer()()

    def hear(self) -> None:
        """On the thread of the connection, when there is a byte, and before it looks at what there is to do."""
        self._armed["bell"] = True  # first: whoever rings from now on sends a byte of its own, which stays there
        with contextlib.suppress(BlockingIOError):
            self.ears.recv(1)

    def retire(self) -> None:
        """Nobody hears any more. A thread that is about to send its byte is waited for: the socket shall be there."""
        if self._armed.pop("bell", None) is None:
            with contextlib.suppress(OSError):
                self.ears.settimeout(_LAST)
                self.ears.recv(1)
        self.ears.close()
        self._mouth.close()


class BellWaiter(Waiter):
    """A waiter that rings a bell when it is served."""

    __slots__ = ()

    def __init__(self, bell: Bell, ticket: list[None] | None, lock: Any = None) -> None:
        super().__init__(ticket)
        self.park = _Park(bell.ringer(), lock)


class _Park:
    """What a `BellWaiter` has in place of a lock. ``lock`` is that of the channel."""

    __slots__ = ("_lock", "release")

    def __init__(self, release: Callable[[], object], lock: Any) -> None:
        self.release = release
        self._lock = lock

    def acquire(self) -> None:
        """Wait for who is serving: it holds the lock of the channel."""
        with self._lock:
            pass
