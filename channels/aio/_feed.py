"""Feeding a channel from a task: an asynchronous iterable, for a thread to iterate over."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from .. import _timer
from .._channel import Channel, _done_of
from .._errors import Cancelled, ChannelClosed
from .._lazy import lazy_logger
from .._park import NOTHING, handed_over
from .._rescue import insist
from .._views import Receiver, SupportsDone
from ._life import Life
from ._task import GRACE, Run, discard, named
from ._wait import BURST
from ._wake import LoopWaiter

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_logger = lazy_logger("channels")

Source: TypeAlias = (
    "AsyncIterable[T] | Awaitable[AsyncIterable[T]] | Callable[[], AsyncIterable[T] | Awaitable[AsyncIterable[T]]]"
)


class First(Protocol):
    """Takes values of a feed on its loop, before they go through its channel."""

    put: int  # how many were put into the channel

    def take_first(self, value: Any, /) -> bool:
        """Take the value, which would be the only one in the channel, or else count it in ``put``. Never waits."""


class _Fed(Channel[T]):
    """The channel of a `Feed`. The task holds it weakly, and ends when nobody can receive from it any more."""

    __slots__ = ("_error", "_traceback")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, name="feed")
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def fail(self, error: BaseException | None) -> None:
        """Close it; after the values that are there, receivers get the error."""
        if not self.closed:
            if error is not None:
                self._traceback = error.__traceback__
            self._error = error
            self.close()

    def failed_with(self, error: BaseException) -> bool:
        return error is self._error

    def take_all(self) -> list[T]:
        """All values that are there, which may be none. An asynchronous exception puts them back."""
        if not (self._buffer or self._senders):
            return []  # not by an exception, which says what the channel is like
        try:
            return self._take_many(None)
        except ChannelClosed:
            return []

    def _failure(self) -> BaseException | None:
        error = self._error
        return None if error is None else error.with_traceback(self._traceback)  # each receiver adds its own to it


class _FeedRun(Run):
    """The run of `_pump`."""

    __slots__ = ()

    def ending(self) -> None:
        """On the loop's thread: the task cleans up by itself, no cancel shall come into that."""
        self._asked = True

    def discard(self) -> None:
        for arg in self._args:
            discard(arg)  # the source may be a coroutine
        super().discard()

    def forked(self) -> None:
        self.finish(None, Cancelled("the task stayed in the parent process"))


class Feed(Receiver[T_co]):
    """The values of an asynchronous iterable. Made by `LoopThread.iterate` and `from_async`.

    A feed is a receiver, an iterator and a context manager. If the source raises, the exception is raised after the
    values that came before it: once by iterating, and by every `recv`. A `select` sees a closed channel; `recv` then
    raises the exception. If the task of the feed was cancelled on its loop, or the loop was closed, the feed ends with
    `Cancelled`.

    `close` cancels the task and waits a moment for its end. Leaving a ``with`` block does the same, but does not wait
    if the ``cancel`` of the feed is done. Dropping the last reference cancels the task in the background. All methods
    may be called from any thread; threads that iterate over the same feed share its values.
    """

    __slots__ = ("_cancel", "_over", "_run", "done")

    def __init__(self, channel: _Fed[Any], run: Run, cancel: SupportsDone | None) -> None:
        super().__init__(channel)
        self._run = run
        self._cancel = cancel
        self._over = False
        #: A receiver that closes when the task has ended.
        self.done: Receiver[None] = Receiver(run.done)

    def __iter__(self) -> Feed[T_co]:
        return self

    def __next__(self) -> T_co:
        """The next value. Raises `Cancelled` once ``cancel`` is done; a Ctrl-C loses nothing and leaves it usable."""
        if self._over:
            raise StopIteration
        channel: Any = self._channel
        if channel._closed and not channel._buffer and channel._error is None and not self._is_cancelled():
            self._over = True  # without the exception that `recv` would raise, and its text
            raise StopIteration
        self._run.life.refuse("iterating")
        try:
            return super().recv(None, self._cancel)
        except ChannelClosed as error:
            self._over = True
            if cast("_Fed[Any]", self._channel).failed_with(error):
                raise  # the source's own
            raise StopIteration from None
        except BaseException as error:
            if isinstance(error, Cancelled) or cast("_Fed[Any]", self._channel).failed_with(error):
                self._over = True
                insist(self._run.cancel)
            raise

    def _is_cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.done.closed

    def batches(self) -> Iterator[Sequence[T_co]]:
        """Iterate over lists of values: each step waits for one value and returns all values that have arrived.

        No value is delayed. For many values this is faster, because a batch is handed over in one step. Raises what
        iterating raises. If you stop in the middle of a batch, the rest of the batch is lost.
        """
        for value in self:
            yield (value,)
            yield cast("_Fed[T_co]", self._channel).take_all()

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T_co:
        """As `Channel.recv`. Raises `RuntimeError` on the loop's own thread, which the wait would block."""
        if timeout != 0:
            self._run.life.refuse("receiving")
        return super().recv(timeout, cancel)

    def recv_many(
        self, limit: int | None = None, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> list[T_co]:
        """`Channel.recv_many`. Raises `RuntimeError` on the loop's own thread, which waiting would stall."""
        if timeout != 0:
            self._run.life.refuse("receiving")
        return super().recv_many(limit, timeout, cancel)

    def stack(self) -> str:
        """Where the task that runs the source is suspended, as `TaskHandle.stack`."""
        return self._run.stack()

    def close(self, timeout: float = GRACE) -> None:
        """Cancel the task, drop the values that nobody received, and wait up to ``timeout`` seconds for the task to
        end.

        Calling it twice is harmless. On the loop's own thread it does not wait.
        """
        self._over = True
        insist(self._drop)
        if self._run.life.thread is not threading.current_thread() and not self.done.closed:
            with contextlib.suppress(ChannelClosed, TimeoutError):
                self.done.recv(timeout)

    def _drop(self) -> None:
        channel = cast("_Fed[Any]", self._channel)
        channel.close()
        self._run.cancel()
        with contextlib.suppress(ChannelClosed):
            while channel._buffer and channel._try_take() is not NOTHING:
                pass

    def __enter__(self) -> Feed[T_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cancel = self._cancel
        self.close(0 if cancel is not None and cancel.done.closed else GRACE)  # who cancelled wants to be gone

    def __repr__(self) -> str:
        return f"<Feed of {self._channel!r}>"


def start_feed(
    owner: object,
    life: Life,
    source: Any,
    capacity: int,
    cancel: SupportsDone | None,
    context: contextvars.Context | None,
    first: First | None = None,
) -> Feed[Any]:
    """`LoopThread.iterate`. What ``first`` takes does not go through the channel."""
    try:
        channel: _Fed[Any] = _Fed(capacity)
        if not (hasattr(source, "__aiter__") or callable(source) or inspect.isawaitable(source)):
            raise TypeError(
                f"expected an asynchronous iterable, or a function or coroutine that gives one, not {source!r:.200}"
            )
        if cancel is not None:
            _done_of(cancel)
    except BaseException:
        discard(source)
        raise
    ref = weakref.ref(channel)
    ending: list[Callable[[], None]] = []
    dropped: list[weakref.finalize[Any, Any]] = []
    over = functools.partial(_end_feed, ref, dropped)
    run = _FeedRun(owner, life, _pump, (source, ref, ending, first), over, context)
    ending.append(run.ending)
    run.name = f"feed of {named(source)}"
    _timer.start()
    finalizer = weakref.finalize(channel, _timer.call_soon, run.cancel)
    finalizer.atexit = False
    dropped.append(finalizer)
    feed: Feed[Any] = Feed(channel, run, cancel)
    run.begin()
    return feed


def _end_feed(
    ref: weakref.ref[_Fed[Any]],
    dropped: list[weakref.finalize[Any, Any]],
    result: Any,
    error: BaseException | None,
) -> None:
    while dropped:  # there is nothing to cancel any more, for which the timer thread would be woken
        dropped.pop().detach()
    channel = ref()
    if channel is not None and not channel.closed:
        channel.fail(error)
    elif error is not None and not isinstance(error, Cancelled):
        _logger.warning("the source of a feed failed after nobody listened any more", exc_info=error)


async def _pump(
    source: Any,
    ref: weakref.ref[_Fed[Any]],
    ending: list[Callable[[], None]],
    first: First | None,
) -> None:
    """Send the values of ``source``, until it ends or the channel is closed or gone."""
    iterator: Any = None
    channel: _Fed[Any] | None
    entry: list[Any] | None
    burst = 0
    last = 0.0
    try:
        if not hasattr(source, "__aiter__"):
            if not inspect.isawaitable(source):
                source = source()
            if inspect.isawaitable(source):
                source = await source
        iterator = aiter(source)
        source = None
        async for value in iterator:
            channel = ref()
            if channel is None:
                return
            if first is not None:
                if channel._buffer:
                    first.put += 1
                elif not channel._closed and first.take_first(value):
                    burst += 1
                    if burst >= BURST:
                        burst = 0
                        await asyncio.sleep(0)
                    channel = value = None
                    continue
            if channel._try_put(value):
                if not channel._buffer:  # who has waited has it
                    last = handed_over(last)
                burst += 1
                if burst >= BURST:
                    burst = 0
                    await asyncio.sleep(0)
                channel = value = None  # not to be kept alive while the source makes the next one
                continue
            burst = 0
            waiter = LoopWaiter(channel, "send")
            entry = [waiter, value, 0]
            while not channel._enlist(waiter, entry):
                waiter = entry[0] = LoopWaiter(channel, "send")
            channel = value = None
            await waiter.served()
            entry = None
            if not waiter.ok:
                return
    except ChannelClosed:
        if (channel := ref()) is not None and not channel.closed:
            raise  # the source's own
    except GeneratorExit:
        iterator = None  # the loop is gone: nothing can be awaited
        raise
    finally:
        channel = value = entry = None
        ending.pop()()
        if (close := getattr(iterator, "aclose", None)) is not None:
            await close()
