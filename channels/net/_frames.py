"""The wire format: frames of a length, a kind, the number of a lane, and a body.

====== ========================= ====================================================================
kind   body                      meaning
====== ========================= ====================================================================
DATA   the value                 a value of the lane; costs a credit
CREDIT number, 4 bytes           so many values more may be sent
CLOSE  empty                     the lane is closed: no more values come (the ``bye`` of one direction)
STOP   empty                     nobody receives any more: close your side of the lane
WANT   empty                     the credits are used up: give back also a single one, as soon as there is one
ALIVE  empty                     nothing else was sent for a while
====== ========================= ====================================================================

The length is that of the body, four bytes, the first of them first. A frame that is longer than the limit is refused
before its body is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ._errors import ProtocolError

DATA: Final = 1
CREDIT: Final = 2
CLOSE: Final = 3
STOP: Final = 4
WANT: Final = 5
ALIVE: Final = 6
KINDS: Final = range(1, 7)

HEADER: Final = struct.Struct("!IBB")
NUMBER: Final = struct.Struct("!I")
LONGEST: Final = 0xFFFF_FFFF


def frame(kind: int, lane: int = 0, body: bytes = b"") -> bytes:
    """A frame, as it is sent."""
    return HEADER.pack(len(body), kind, lane) + body


class Parser:
    """Cuts what arrives into frames."""

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are complete: kind, lane, body. Raises `ProtocolError`."""
        source: bytes | bytearray = data
        if self._rest:
            self._rest += data
            source = self._rest
        at, end = 0, len(source)
        while end - at >= 6:
            length, kind, lane = HEADER.unpack_from(source, at)
            if kind not in KINDS:
                raise ProtocolError(f"the peer sent a frame of the kind {kind}, which does not exist")
            if length > self._limit:
                raise ProtocolError(f"the peer sent a frame of {length:,} bytes, more than {self._limit:,}")
            begin = at + 6
            if end - begin < length:
                break
            at = begin + length
            yield kind, lane, bytes(source[begin:at])
        if source is data:
            self._rest += data[at:]
        elif at:  # not where a long frame is still coming: that would be copied with each piece
            del self._rest[:at]
