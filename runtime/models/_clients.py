"""The network clients of a model: one for each event loop it is used on, closed when the loop or the model goes.

A client's connections belong to the loop they were opened on, and the loop's thread starts anew after a fork, so a
client is never shared between loops. Nobody has to close it: an asynchronous generator holds it, and a loop that ends
finishes its generators first. One that is dropped is finished by its loop, from whatever thread.

The garbage collector must not find a client, for it finalises all that it finds, open sockets too, in any order. So
what holds the clients stays reachable until the model is gone, and is then emptied.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, NoReturn, Protocol, SupportsIndex, TypeAlias, TypeVar
from weakref import WeakKeyDictionary


class _Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)
_Held: TypeAlias = "WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[C, AsyncGenerator[C, Any]]]"


class Clients(Generic[C]):
    """``make`` makes a client, in another thread: it reads certificates, which takes a while. It must not refer to the
    model.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._held: _Held[C] = WeakKeyDictionary()
        weakref.finalize(self, self._held.clear).atexit = False  # by then their loops have ended

    def __deepcopy__(self, memo: object) -> Clients[C]:
        return Clients(self._make)  # the copy of a model opens connections of its own

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a model of a provider cannot be pickled, for its key would be in the pickle: name the agent for the other"
            " process, as runtime.remote.Remote(submit, 'package.module:agent') does"
        )

    async def get(self) -> C:
        """The client of the running loop. Raises what making it raises."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            keeper = _keep(self._make)
            client = await anext(keeper)
            held = self._held.setdefault(loop, (client, keeper))  # where another task was first, ours is dropped
        return held[0]

    def close(self) -> None:
        """Have all clients closed, each soon and on its own loop. Any thread."""
        self._held.clear()


async def _keep(make: Callable[[], C]) -> AsyncGenerator[C, None]:
    client = await asyncio.to_thread(make)
    try:
        yield client
    finally:
        await client.close()
