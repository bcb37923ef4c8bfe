"""How a thread wakes a task that waits for a channel.

Who serves a waiter may be in a signal handler or finalizer, or be hit by Ctrl-C wherever it runs Python code. Hence
what it calls is C all through: it notes the waiter in a dict, and sends a byte that the loop watches for, unless one is
on its way. A loop that cannot watch a socket (the one of Windows) hears through janus; what speaks to that is the timer
thread, for who serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import socket
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import janus

from .. import _parked, _timer
from .._channel import Channel
from .._park import NOTHING, Waiter, get_ident, monotonic


class LoopWaiter(Waiter):
    """A waiter that wakes a task of the running loop instead of a thread."""

    __slots__ = ("_future", "_waker", "awaited", "operation")

    def __init__(self, channel: Channel[Any], operation: str) -> None:
        super().__init__([None])
        self.operation = operation  # this and the next are for `channels.parked`
        self.awaited = weakref.ref(channel)  # the task must not keep alive what it feeds
        self._waker = _waker()
        self._future: asyncio.Future[None] | None = None
        self.park = _Park(channel._lock, self._waker.release_of(self))

    async def served(self) -> None:
        """Wait until the waiter is served. If this raises, it was withdrawn, and a value it was served given back."""
        try:
            if self.done:  # its server may not have let go of it yet
                self.sever()
            else:
                await self._waker.wait(self)
                self.park = None
        except GeneratorExit:  # the garbage collector may be at it, in the middle of anything
            _timer.call_soon(self.let_go)
            raise
        except BaseException:
            self.let_go()
            raise

    def wake(self) -> None:
        """Wake the task. On the loop's thread."""
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def let_go(self) -> None:
        """Withdraw; if it was served already, put the value back."""
        self.withdraw()
        self.sever()
        self.put_back()

    def put_back(self) -> None:
        if self.channel is not None and self.value is not NOTHING:
            self.channel._put_back(self)

    def end(self) -> bool:
        """Withdraw and wake the task; whether it had not been served. Any thread."""
        park = self.park  # before the waiter is served: then its task goes on, and severs it
        try:
            del self.ticket[0]  # type: ignore[union-attr]
            self.done = True
        except IndexError:
            return False
        park.release()
        return True

    def sever(self) -> None:
        """Break the cycle, now that the waiter is done and once its server has let go of it."""
        park = self.park
        if park is not None:
            park.acquire()  # first: its server looks for `park` after it has set `done`, without the GIL even later
            self.park = None


class _Park:
    """What a `LoopWaiter` has in place of a lock. ``release`` may be called once."""

    __slots__ = ("_lock", "release")

    def __init__(self, lock: Any, release: Callable[[], object]) -> None:
        self._lock = lock
        self.release = release

    def acquire(self) -> None:
        """Wait for who is serving: it holds the lock of the channel."""
        try:
            self._lock.acquire()
        finally:
            if self._lock._is_owned():
                self._lock.release()


class _Bell:
    """Wakes the tasks of one loop.

    Invariants: a waiter that was served is in ``_served`` until it has been woken; while one is there, a byte lies in
    the socket or its sender is about to send it. ``_armed`` has its key unless a byte is on its way.
    """

    __slots__ = ("__weakref__", "_armed", "_ears", "_loop", "_mouth", "_ring", "_served", "_watch", "waiting")

    # Held here until a bell is gone. Where it is part of a cycle, the garbage collector may come to the sockets before
    # it comes to the bell (without the GIL it does), and they complain that nobody has closed them.
    _open: ClassVar[set[socket.socket]] = set()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: dict[LoopWaiter, _Wait] = {}  # until their tasks have gone on
        self._served: dict[LoopWaiter, bool] = {}
        self._armed = {"bell": True}
        self._ears, self._mouth = socket.socketpair()
        self._ears.setblocking(False)
        self._mouth.setblocking(False)
        self._ring = (functools.partial(self._armed.pop, "bell", None), functools.partial(self._mouth.send, b"\0"))
        self._open.update((self._ears, self._mouth))
        self._loop = weakref.ref(loop)
        watch = _Watch(self)
        loop.add_reader(self._ears, watch)
        # Closing the loop drops what it watches for with: then nobody hears any more.
        self._watch = weakref.ref(watch, functools.partial(_loop_closed, weakref.ref(self)))
        with contextlib.suppress(RuntimeError):  # the interpreter is ending
            _timer.start()

    def release_of(self, waiter: LoopWaiter) -> Callable[[], object]:
        """Note the waiter; if no byte is on its way (`all` ends where that is so), send one."""
        note = functools.partial(self._served.setdefault, waiter, True)
        steps: tuple[Callable[[], object], ...] = (note, *self._ring)
        return functools.partial(all, map(_call, steps))

    async def wait(self, waiter: LoopWaiter) -> None:
        waiter._future = future = asyncio.get_running_loop().create_future()
        self.waiting[waiter] = (monotonic(), get_ident(), asyncio.current_task())
        try:
            await future
        finally:
            waiter._future = None
            self.waiting.pop(waiter, None)

    def hear(self) -> None:
        """On the loop's thread. Interrupted anywhere, the byte is still there, and it is called again."""
        self._armed["bell"] = True  # first: who serves from now on sends a byte of its own
        for waiter in list(self._served):
            waiter.wake()
            self._served.pop(waiter, None)
        with contextlib.suppress(BlockingIOError):
            self._ears.recv(1)

    def abandon(self) -> None:
        """The loop is closed: whatever its tasks were or would be handed belongs to others."""
        loop = self._loop()
        if loop is not None and _bells.get(loop) is self:
            del _bells[loop]
        for waiter in list(self.waiting):
            waiter.let_go()

    def __del__(self) -> None:  # no waiter is left that might ring
        for each in (self._ears, self._mouth):
            each.close()
            self._open.discard(each)


class _Watch:
    """What a loop calls when there is a byte. Nobody but the loop holds it."""

    __slots__ = ("__weakref__", "_bell")

    def __init__(self, bell: _Bell) -> None:
        self._bell = bell

    def __call__(self) -> None:
        self._bell.hear()


def _loop_closed(ref: weakref.ref[_Bell], _: object) -> None:
    bell = ref()
    if bell is not None:
        _timer.call_soon(bell.abandon)


class _Ear:
    """Wakes one task of a loop that cannot watch a socket."""

    __slots__ = ("__weakref__", "_loop", "_queue", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: janus.Queue[None] = janus.Queue()
        self.waiting: dict[LoopWaiter, _Wait] = {}
        _ears[self] = None
        _timer.start()

    def release_of(self, waiter: LoopWaiter) -> Callable[[], object]:
        return _timer.ringing(functools.partial(self._tell, waiter))

    def _tell(self, waiter: LoopWaiter) -> None:
        try:
            if not self._loop.is_closed():
                self._queue.sync_q.put_nowait(None)
                return
        except RuntimeError:  # closed meanwhile
            pass
        waiter.put_back()

    async def wait(self, waiter: LoopWaiter) -> None:
        self.waiting[waiter] = (monotonic(), get_ident(), asyncio.current_task())
        try:
            await self._queue.async_q.get()
        finally:
            self.waiting.pop(waiter, None)


_Wait: TypeAlias = "tuple[float, int, asyncio.Task[Any] | None]"  # since when, on which thread, which task

_call: Callable[[Callable[[], object]], object] = operator.call
_ears: weakref.WeakKeyDictionary[_Ear, None] = weakref.WeakKeyDictionary()
_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = weakref.WeakKeyDictionary()


def _waker() -> _Bell | _Ear:
    """Of the running loop."""
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        try:
            bell = _bells[loop] = _Bell(loop)
        except NotImplementedError:
            return _Ear(loop)
    return bell


def _notes() -> list[_parked.Note]:
    """The tasks that are parked, for `channels.parked`. Any thread."""
    loops = [loop for ref in _bells.keyrefs() if (loop := ref()) is not None]
    wakers: list[_Bell | _Ear] = [bell for loop in loops if (bell := _bells.get(loop)) is not None]
    wakers += [ear for ref in _ears.keyrefs() if (ear := ref()) is not None]
    notes: list[_parked.Note] = []
    for waker in wakers:
        for waiter, (since, ident, task) in waker.waiting.copy().items():
            channel = waiter.awaited()
            if channel is not None and not waiter.done:
                name = "" if task is None else task.get_name()
                notes.append((waiter.operation, channel, ident, since, name))
    return notes


_parked.sources.append(_notes)
