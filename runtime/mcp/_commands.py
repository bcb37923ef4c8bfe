"""Commands for a task, from any thread.

A janus queue would do, but for its lock: a thread that puts something into it wakes the loop while it holds the lock,
and the loop's thread, which is there at once, waits for it. That took half a millisecond of each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class CommandsClosed(Exception):
    """No more commands are taken."""


class Commands(Generic[T]):
    """A queue that one task reads, and that any thread writes, also a signal handler in the middle of writing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[T] = deque()
        self._there = asyncio.Event()
        self._closed = False
        self._lock = threading.RLock()  # so that nothing is put in once it is closed

    def put(self, command: T) -> None:
        """Add a command. Does not wait. Raises `CommandsClosed`."""
        with self._lock:
            if self._closed:
                raise CommandsClosed
            self._waiting.append(command)
        with contextlib.suppress(RuntimeError):  # the loop is closed: whoever closes the queue finds the command
            self._loop.call_soon_threadsafe(self._there.set)

    async def get(self) -> T:
        """The next command, once there is one."""
        while not self._waiting:
            self._there.clear()
            if not self._waiting:  # or it came in between
                await self._there.wait()
        return self._waiting.popleft()

    def close(self) -> list[T]:
        """Take no more commands; those that nobody has taken. On the loop's thread, or when the loop is over."""
        with self._lock:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
        return left
