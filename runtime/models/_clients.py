"""The network clients of a model: one for each event loop it is used on, closed when the loop or the model goes.

A client's connections belong to the loop they were opened on, and the loop's thread starts anew after a fork, so a
client is never shared between loops. Nobody has to close it: an asynchronous generator holds it, and a loop that ends
finishes its generators first. One that is dropped is finished by its loop, from whatever thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary


class _Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Clients(Generic[C]):
    """``make`` makes a client; it is called on the loop's thread, at the first use there."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[C, AsyncGenerator[C, Any]]]
        self._held = WeakKeyDictionary()

    async def get(self) -> C:
        """The client of the running loop. Raises what making it raises."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            keeper = _keep(self._make)
            # Nothing is waited for here, so no other task of this loop comes between.
            held = self._held[loop] = (await anext(keeper), keeper)
        return held[0]

    def close(self) -> None:
        """Have all clients closed, each soon and on its own loop. Any thread."""
        self._held.clear()


async def _keep(make: Callable[[], C]) -> AsyncGenerator[C, None]:
    client = make()
    try:
        yield client
    finally:
        await client.close()
