"""Waiting for a channel in a task, without blocking its loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

import janus

from .. import _timer
from .._channel import Channel
from .._errors import ChannelClosed, WouldBlock
from .._park import NOTHING, Waiter
from .._views import Receiver

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

BURST: Final = 64  # values taken or fed in one go before the other tasks of the loop have their turn


class Ear:
    """Where a task of the running loop hears that its waiter was served. One wait at a time."""

    __slots__ = ("loop", "queue")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: janus.Queue[LoopWaiter] = janus.Queue()

    async def wait(self, waiter: LoopWaiter) -> None:
        """Until ``waiter`` is done. If this raises, it was withdrawn, and a value it had been served given back."""
        try:
            if not waiter.done:
                while await self.queue.async_q.get() is not waiter:
                    pass  # the late ring of a wait that was cancelled
            waiter.sever()
        except GeneratorExit:  # the garbage collector may be at it, in the middle of anything
            _timer.call_soon(waiter.give_up)
            raise
        except BaseException:
            waiter.give_up()
            raise


class LoopWaiter(Waiter):
    """A waiter that wakes a task instead of a thread.

    Who serves it may be in a signal handler or finalizer, or be hit by Ctrl-C wherever it runs Python code. Hence
    ``park.release`` is C all through: it puts the waiter on the queue of the timer thread, which calls it.
    """

    __slots__ = ("ear",)

    def __init__(self, channel: Channel[Any], ear: Ear) -> None:
        super().__init__([None])
        self.ear = ear
        _timer.start()
        self.park = _Park(channel._lock, functools.partial(_timer._clock._inbox.put, self))

    def __call__(self) -> None:
        try:
            if not self.ear.loop.is_closed():
                self.ear.queue.sync_q.put_nowait(self)
                return
        except RuntimeError:  # closed meanwhile
            pass
        self.give_back()

    def give_up(self) -> None:
        """Withdraw; if it was served already, give the value back."""
        self.withdraw()
        self.sever()
        self.give_back()

    def give_back(self) -> None:
        if self.channel is not None and self.value is not NOTHING:
            self.channel._put_back(self)

    def sever(self) -> None:
        """Break the cycle, now that the waiter is done and once its server has let go of it."""
        if self.park is not None:
            self.park.acquire()
            self.park = None


class _Park:
    """What a `LoopWaiter` has in place of a lock."""

    __slots__ = ("_lock", "release")

    def __init__(self, lock: Any, release: Callable[[], None]) -> None:
        self._lock = lock
        self.release = release

    def acquire(self) -> None:
        """Wait for who is serving: it holds the lock of the channel."""
        try:
            self._lock.acquire()
        finally:
            if self._lock._is_owned():
                self._lock.release()


class AsyncReceiver(Generic[T_co]):
    """Receives from a channel in asyncio tasks. Made by `to_async`."""

    __slots__ = ("_burst", "_channel", "_closed", "_ears", "_receiver", "_waiting")

    def __init__(self, receiver: Channel[Any] | Receiver[Any]) -> None:
        self._channel: Channel[T_co] = receiver._channel
        self._receiver = receiver  # to be dropped with this, not before: that may end what sends
        self._closed = False
        self._burst = 0
        self._ears: list[Ear] = []
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
        ear = self._ears.pop() if self._ears else None
        if ear is None or ear.loop is not asyncio.get_running_loop():
            ear = Ear()
        waiter = LoopWaiter(channel, ear)
        while not channel._enlist(waiter, None):
            waiter = LoopWaiter(channel, ear)
        self._waiting.add(waiter)
        try:
            await ear.wait(waiter)
        finally:
            self._waiting.discard(waiter)
            self._ears.append(ear)
        if waiter.ok:
            value = waiter.value
            waiter.value = NOTHING
            return cast(T_co, value)
        if waiter.channel is None:  # aclose
            raise StopAsyncIteration
        return await self.__anext__()  # closed: drained, or failed

    async def aclose(self) -> None:
        """End the iteration, also for tasks that wait in it. Nothing was taken that was not delivered. Idempotent."""
        self._closed = True
        for waiter in list(self._waiting):
            waiter.withdraw()
            if waiter.channel is None:
                waiter()

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

    A value is taken when a task asks for it, and none before: `aclose`, dropping the iterator and closing the loop lose
    nothing. A task that is cancelled gives back, to the front, what it was just being handed (order may suffer if
    others receive too). Several tasks, also of several loops, may share the iterator. It holds no thread.
    """
    if not hasattr(receiver, "_channel") or not hasattr(receiver, "recv"):
        raise TypeError(f"to_async takes a channel or its receiver, not {receiver!r}")
    return AsyncReceiver(receiver)
