"""Reading what foreign code brings item by item: the deltas of a model."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from channels import Cancelled, Channel, ChannelClosed
from channels._lazy import lazy
from channels._park import give_way, handed_over, monotonic

from ._calls import NOBODY, Call, Calls, Finished, plain_function
from ._driver import Carrier
from ._pump import Pump, reading

if TYPE_CHECKING:
    import inspect
else:
    inspect = lazy("inspect")

DELTAS: Final = 256  # how far a model may run ahead of the worker
#: The most items in a batch. What the worker does with the last of a batch, the first has to wait for; and one step for
#: so many costs each of them next to nothing.
BATCH: Final = 32
ALONE: Final = 0.0002  # seconds after the last one: an item that comes sooner is one of many, which go faster together

Batches: TypeAlias = Generator[Sequence[Any], None, None]

_ASYNC_GENERATOR: Final = 0x200  # `inspect.CO_ASYNC_GENERATOR`, a flag of the code of a function


def read(
    calls: Calls,
    what: str,
    function: Callable[..., Any],
    /,
    *args: Any,
    within: Context | None = None,
    **kwargs: Any,
) -> Reading:
    """Read what ``function`` returns, an iterator or an asynchronous one, in a copy of ``within``, by default of the
    stream's context.
    """
    source = functools.partial(function, *args, **kwargs)
    if _is_async_generator_function(function):
        return ReadOnLoop(calls, what, source, within)
    return ReadHere(calls, what, source, within)


class Reading:
    """Items that come one after the other. In ``batches``, an item comes with those that have come with it, and never
    waits for another. As an errand of the worker, it gives them to ``take``, and the batches have what is left.
    """

    __slots__ = ("_failure", "batches", "call", "take")

    def __init__(self, call: Call, batches: Batches) -> None:
        self.call = call
        self.batches = batches
        self.take: Callable[[Any], object] = _nothing
        self._failure: BaseException | None = None

    def raise_failure(self) -> None:
        """After the errand: raise what ``take`` has raised."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it holds this frame

    def next_batch(self) -> Sequence[Any]:
        """The next of the batches, none at the end. Raises what the source raises, and `Cancelled`."""
        return next(self.batches, ())

    def close(self) -> None:
        """Let go of the source. Harmless when it is said again."""
        self.batches.close()


class ReadHere(Reading):
    """Items that the thread of the worker can read itself, as an errand: then ``take`` is called with each of them, as
    by the worker. The batches have what comes after the worker was taken over. Without an errand, a helper reads.

    Invariant: what the reading thread cannot give to ``take`` goes into a pump, which is made when it is needed. The
    end is noted first, and then told to the pump if there is one; the worker looks for the end after it has made the
    pump. So the end is told to every pump, and where it was noted before there was one, no item is left.
    """

    __slots__ = (
        "_calls",
        "_cancelled",
        "_end",
        "_last",
        "_pumps",
        "_source",
        "_within",
    )

    def __init__(self, calls: Calls, what: str, source: Callable[[], Any], within: Context | None) -> None:
        super().__init__(Call(what, self), self._batches())
        self._calls = calls
        self._within = within
        self._source = reading(source, calls._loop, calls.token)
        self._cancelled: Channel[None] = calls.token.done._channel  # type: ignore[assignment]  # there is no other
        self._pumps: dict[None, Pump[Any]] = {}
        self._end: tuple[BaseException | None] | None = None
        self._last = 0.0  # when an item was handed over through the pump

    @property
    def may_be_errand(self) -> bool:
        """Whether no other thread has to read."""
        return self._calls.may_make_here

    @property
    def channel(self) -> Channel[Any] | None:
        """What the worker waits for, if it was taken over."""
        pump = self._pumps.get(None)
        return None if pump is None else pump.channel

    # -- on the thread that reads --------------------------------------------------------------------------------------

    def run(self, carrier: Carrier) -> None:
        calls, call = self._calls, self.call
        if not call.claim():
            return
        try:
            calls._live.add(call)
            carrier.leave()
            if not self._cancelled._closed:  # looked at when the worker rests: who cancels it from now on sees that
                context = (self._within or calls._context).copy()
                value, error = calls._make(call, context, functools.partial(self._read, carrier))
                if error is None:
                    self._ended(None)
                else:
                    calls._done(call, value, error)
        finally:
            calls._live.discard(call)
            call.end()

    def taken_over(self) -> None:
        return

    def _read(self, carrier: Carrier | None = None) -> None:
        """On a ``carrier``, be the worker for each item, until another thread takes it over. From then on the items go
        through the pump.
        """
        with self._source as items:
            for item in items:
                if carrier is not None and carrier.is_back():
                    try:
                        self.take(item)
                    except BaseException as error:
                        self._failure = error
                    carrier.leave()
                    if self._failure is not None or self._cancelled._closed:
                        carrier.ask_for_relief()  # what is left to do is to close the source, which may take its time
                        return
                else:
                    carrier = None
                    try:
                        self._put(item)
                    except ChannelClosed:  # nobody takes the items any more
                        return

    def _put(self, item: Any) -> None:
        pump = self._pump()
        pump.put(item)
        if not pump.waiting:  # the worker has waited for it, and has it
            self._last = handed_over(self._last)

    def send(self, finished: Finished) -> None:
        """There are no more items. By the call, whose inbox this is."""
        self._ended(finished.error)

    def _ended(self, error: BaseException | None) -> None:
        if self._end is None:
            self._end = (error,)
        pump = self._pumps.get(None)
        if pump is not None:
            pump.end(error)

    # -- for the worker ------------------------------------------------------------------------------------------------

    def _batches(self) -> Batches:
        if not self.call.claimed:
            self._calls.begin_or_withdraw(self.call, self._read, self._within)
        end = self._end
        if end is None or self._pumps:
            pump = self._pump()
            end = self._end
            if end is not None:
                pump.end(end[0])
            yield from pump.batches(self._calls.token, most=BATCH)
        elif self._calls.token.cancelled:  # as a wait for the next would say: the end may have come because of that
            raise Cancelled(self._calls.token.cause)
        elif end[0] is not None:
            try:
                raise end[0]
            finally:
                del end  # it holds this frame

    def next_batch(self) -> Sequence[Any]:
        batch = super().next_batch()
        if not batch and ((end := self._end) is None or end[0] is not None):
            # An exception that was thrown into the thread that reads has closed this: what has come is not all.
            try:
                raise (end and end[0]) or RuntimeError(f"{self.call.what} was broken off")
            finally:
                del end  # it holds this frame
        return batch

    def close(self) -> None:
        super().close()
        if self._end is None or self._pumps:
            self._pump().close()
        self.call.inbox, self.take = NOBODY, _nothing  # they hold this

    def _pump(self) -> Pump[Any]:
        return self._pumps.get(None) or self._pumps.setdefault(None, Pump(DELTAS, self.call.what))


def _nothing(item: Any) -> None:
    """Before the worker has said what it does with an item."""


class ReadOnLoop(Reading):
    """Items of an asynchronous source. They come through a channel; but if the worker waits for the next one, and that
    comes alone, ``take_now`` is called with it on the event loop. It never waits: where it cannot take an item, it
    returns False. As an errand, ``take`` is called with each batch; the worker does not rest, but the stack of its
    thread is low while it waits.

    Invariant: the loop counts the items that it puts into the channel, and the worker those that it is through with. So
    where both have counted the same, the worker waits, and takes the lock before it does anything but wait again.
    """

    __slots__ = ("_broken", "_calls", "_context", "_lock", "_source", "_through", "put", "take_now")

    def __init__(
        self, calls: Calls, what: str, source: Callable[[], AsyncIterator[Any]], within: Context | None
    ) -> None:
        super().__init__(Call(what, Channel(name=what)), self._batches())
        self.take_now: Callable[[Any], bool] | None = None
        self._broken: BaseException | None = None  # what the source has raised
        self._calls = calls
        self._source = source
        self._context = (within or calls._context).copy()
        self._lock = threading.Lock()
        self.put = 0
        self._through = 0

    def run(self, carrier: Carrier) -> None:
        try:
            while batch := next(self.batches, ()):
                try:
                    self.take(batch)
                except BaseException as error:
                    self._failure = error
                    return
        except BaseException as error:
            self._broken = error

    def taken_over(self) -> None:
        return

    def next_batch(self) -> Sequence[Any]:
        broken, self._broken = self._broken, None
        if broken is not None:
            try:
                raise broken
            finally:
                del broken  # it holds this frame
        return super().next_batch()

    def take_first(self, item: Any) -> bool:
        """On the loop. Whether the item does not have to go through the channel."""
        calls, now = self._calls, monotonic()
        before, calls.heard = calls.heard, now
        if self.put == self._through and now - before > ALONE:
            with self._lock:
                taken = self.take_now is not None and self.take_now(item)
            if taken:
                give_way()  # to the consumer, which was woken, and cannot run while the loop has the GIL
                return True
        self.put += 1
        return False

    def _batches(self) -> Batches:
        from channels.aio._feed import start_feed  # slow, and loaded by now: there is a loop

        calls, call = self._calls, self.call
        loop = calls._loop()
        made = self._source, DELTAS, calls.token, self._context, self
        with start_feed(loop, loop._alive_for(self._source), *made) as items:
            call.done, call.feed = items.done._channel, items  # type: ignore[assignment]  # there is no other
            calls._live.add(call)  # leaving the block cancels the task; `join` waits for its end
            try:
                for batch in _small(items.batches()):
                    yield batch
                    self._through += len(batch)
            finally:
                with self._lock:  # the worker goes on to something else
                    self.take_now = None
        if call.over:
            calls._live.discard(call)

    def close(self) -> None:
        super().close()
        self.take, self.take_now = _nothing, None  # they hold this


def _small(batches: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """The same items, in batches of one and more, up to `BATCH`."""
    for batch in batches:
        if 0 < len(batch) <= BATCH:
            yield batch
        else:
            for first in range(0, len(batch), BATCH):
                yield batch[first : first + BATCH]


def _is_async_generator_function(function: Any) -> bool:
    """`inspect.isasyncgenfunction`, likewise."""
    plain = plain_function(function)
    return inspect.isasyncgenfunction(function) if plain is None else bool(plain.__code__.co_flags & _ASYNC_GENERATOR)
