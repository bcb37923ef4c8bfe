"""`to_async`: waiting for a channel in a task, without blocking its loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from .._channel import Channel
from .._errors import ChannelClosed, WouldBlock
from .._park import NOTHING
from .._views import Receiver
from ._wake import LoopWaiter

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

BURST: Final = 64  # values taken or fed in one go before the other tasks of the loop have their turn


class AsyncReceiver(Generic[T_co]):
    """Receives from a channel in asyncio tasks. Made by `to_async`."""

    __slots__ = ("_burst", "_channel", "_closed", "_receiver", "_waiting")

    def __init__(self, receiver: Channel[Any] | Receiver[Any]) -> None:
        self._channel: Channel[T_co] = receiver._channel  # type: ignore[assignment]
        self._receiver: object = receiver  # to be dropped with this, not before: that may end what sends
        self._closed = False
        self._burst = 0
        self._waiting: set[LoopWaiter] = set()

    def __aiter__(self) -> AsyncReceiver[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """The next value. Raises what a `Feed` failed with. A task that is cancelled has taken none."""
        channel = self._channel
        self._burst += 1
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        if self._closed:
            raise StopAsyncIteration
        try:
            return channel.try_recv()
        except WouldBlock:
            pass
        except ChannelClosed:
            raise StopAsyncIteration from None
        self._burst = 0
        waiter = LoopWaiter(channel, "recv")
        while not channel._enlist(waiter, None):
            waiter = LoopWaiter(channel, "recv")
        self._waiting.add(waiter)
        try:
            await waiter.served()
        finally:
            self._waiting.discard(waiter)
        if waiter.ok:
            value = waiter.value
            waiter.value = NOTHING
            return cast(T_co, value)
        if waiter.channel is None:  # aclose
            raise StopAsyncIteration
        return await self.__anext__()  # closed: drained, or failed

    async def aclose(self) -> None:
        """End the iteration, also for tasks that wait in it. No value is lost. Idempotent."""
        self._closed = True
        self._receiver = None
        for waiter in list(self._waiting):
            waiter.end()

    async def __aenter__(self) -> AsyncReceiver[T_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncReceiver of {self._channel!r}>"


def to_async(receiver: Channel[T] | Receiver[T]) -> AsyncReceiver[T]:
    """Iterate over a channel with ``async for``, in any event loop, without blocking it.

    The iterator holds a reference to ``receiver`` until it is dropped or closed. So dropping the iterator over the
    stream of a run cancels the run, if nothing else holds the stream.

    A value is taken only when a task asks for it, so `aclose`, dropping the iterator and closing the loop lose no
    value. If a task is cancelled while it is being handed a value, the value goes back to the front of the channel (if
    others receive too, the order may change). Several tasks, also of several loops, may share the iterator. It needs no
    thread.
    """
    if not hasattr(receiver, "_channel") or not hasattr(receiver, "recv"):
        raise TypeError(f"to_async takes a channel or its receiver, not {receiver!r}")
    return AsyncReceiver(receiver)
