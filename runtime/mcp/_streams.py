"""What the SDK asks of the streams of a transport, besides `receive` and `send`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from mcp.shared.message import SessionMessage

if TYPE_CHECKING:
    from typing import Self


class Closing:
    """A stream that is closed where its ``async with`` block ends."""

    async def aclose(self) -> None:
        """Nothing has to be closed, unless a stream says otherwise."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class Reading(Closing):
    """A stream that is read in a loop, until it ends."""

    async def receive(self) -> SessionMessage | Exception:
        """The next message. Raises `anyio.EndOfStream`."""
        raise NotImplementedError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
