"""The record of a run on a worker. The worker makes its lines, without secrets, and sends them over a lane of their own
as they are made; the caller writes them to the file. So the record of a worker that is lost ends where that was lost.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Final

from channels import Channel, ChannelClosed
from channels._lazy import lazy_logger
from channels.net import Codec, LaneSender

from .._errors import describe
from ..execution._threads import start
from ..recording._recorder import close, write_all

PIECES: Final = 16  # that may be under way
_PIECE: Final = 65_536  # bytes

_logger = lazy_logger("runtime.remote")


def codec() -> Codec:
    """That of the lane: bytes as they are."""
    return Codec(bytes, bytes)


class SentFile(io.RawIOBase):
    """What the worker writes to. Not thread-safe."""

    def __init__(self, sender: LaneSender[Any]) -> None:
        self._sender = sender

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(memoryview(data)[:_PIECE])
        try:
            self._sender.send(piece)
        except ChannelClosed as error:
            raise OSError(f"the caller takes no more of the record: {error}") from None
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._sender.close()
        super().close()


class Writing:
    """Writes what comes into the file, on a thread of its own, until the lane has ended."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        #: Closes when it is done.
        self.done: Channel[None] = Channel(name="record written")
        self._begun = False

    def begin(self, pieces: Channel[Any]) -> None:
        """Start the thread."""
        self._begun = True
        try:
            start(functools.partial(self._write, pieces), "lockgate-record")
        except BaseException:
            self._begun = False
            raise

    def discard(self) -> None:
        """Close the file, where nothing comes. Twice is harmless."""
        if not self._begun:
            close(self._file)
            self.done.close()

    def _write(self, pieces: Channel[Any]) -> None:
        try:
            for piece in pieces:
                if not self._file.closed:
                    try:
                        write_all(self._file, piece)
                    except Exception as error:  # the rest is taken and dropped: the run goes on
                        _logger.error("the record %r ends before its run: %s", self._file.name, describe(error))
                        close(self._file)
        except (OSError, ChannelClosed):
            pass  # the worker was lost, or none has come, which its stream tells
        finally:
            close(self._file)
            self.done.close()
