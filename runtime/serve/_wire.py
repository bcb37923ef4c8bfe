"""Standard input and output as the wire of a server.

The SDK reads and writes them on threads that cannot be interrupted: a server that is told to end would wait for its
client to write something. Here the threads are daemons, and nobody waits for them for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final

LONGEST: Final = 64 << 20  # bytes of a line
LAST: Final = 2.0  # seconds that a client has to read what was written last


class Wire:
    """What the client says, line by line, and what it is told. Used on the thread of one event loop."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(256)  # lines that may be read ahead
        self._writer = threading.Thread(target=self._write, name="MCP client, out", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="MCP client, in", daemon=True).start()

    def _read(self) -> None:
        held = bytearray()
        with contextlib.suppress(OSError, RuntimeError):  # the loop is closed
            while data := os.read(self._source, 1 << 16):
                held += data
                *lines, rest = held.split(b"\n")
                held = bytearray(rest)
                for line in lines:
                    self._room.acquire()
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, _whole(line.decode("utf-8", "replace")))
                if len(held) > LONGEST:
                    break
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lines.put_nowait, None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._out.get()) is not None:
                while data:
                    data = data[os.write(self._sink, data) :]

    async def __aiter__(self) -> AsyncIterator[str]:
        while (line := await self._lines.get()) is not None:
            self._room.release()
            if line.strip():
                yield line

    async def write(self, text: str) -> None:
        self._out.put(text.encode())

    async def flush(self) -> None:
        pass

    def close(self) -> None:
        """Let what was written last arrive."""
        self._out.put(None)
        self._writer.join(LAST)


def _whole(line: str) -> str:
    """A message without halves of characters, which JavaScript writes where a text was cut: the SDK would not read it,
    and the request would never be answered.
    """
    if "\\ud" not in line and "\\uD" not in line:
        return line
    from ..mcp._messages import written  # which needs the extra

    try:
        return written(json.loads(line))
    except (ValueError, RecursionError):
        return line


@contextlib.contextmanager
def standard_streams() -> Iterator[tuple[int, int]]:
    """The descriptors of standard input and output, for the wire alone: what else is read meets an end, and what else
    is printed goes to standard error.
    """
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield source, sink
    finally:
        os.close(nothing)
        os.dup2(source, 0)
        os.dup2(sink, 1)  # the duplicates stay: a thread may still read from one
