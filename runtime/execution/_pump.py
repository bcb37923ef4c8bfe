"""A pump: what one thread produces, such as the deltas of a model, is taken by another.

Invariant: the consumer gets what was put before the end, in order, and then the end, once: the producer is through, or
the exception that it failed with, whichever was said first (`Pump.end`). The end is the last value of the channel,
which is closed with it: it comes with the items before it, and costs no exception. A channel that is closed before an
end was said is no end: it raises `ChannelClosed`.

Up to ``ahead`` items wait for the consumer, in the channel or, taken from there together, in its hand. A producer that
is further ahead is parked.

How it ends, other than by the producer's end:

- The consumer leaves: it closes the iterator, its token is cancelled, it has waited too long, or Ctrl-C comes into its
  wait. Leaving `Pump.take` closes the channel. The producer, parked or not, learns so from its next `put`
  (`ChannelClosed`), closes its source and ends; what it says from then on is dropped.
- A producer that stands still in foreign code learns nothing until it puts again. A pump has no thread: whoever has
  given it one tells that code by its own means, such as a token, and waits for the thread as long as it wants to.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from channels import CancelToken, Channel, ChannelClosed, SupportsDone
from channels._park import handed_over

if TYPE_CHECKING:
    from channels.aio import LoopThread

T = TypeVar("T")

_END: Final[Any] = object()


class Pump(Generic[T]):
    """Takes items from one thread to another. See the top of this file for what holds, and how it ends."""

    def __init__(self, ahead: int, name: str) -> None:
        self._batch = max(ahead // 2, 1)  # so many are taken at once, of which the first does not wait any more
        self._items: Channel[T] = Channel(max(ahead + 1 - self._batch, 0), name=name)
        self._error: BaseException | None = None
        self._ended = False
        #: For the producer: `channels.Channel.send`. Raises `ChannelClosed` where nobody takes items any more.
        self.put = self._items.send

    # -- for the producer ----------------------------------------------------------------------------------------------

    def feed(
        self,
        source: AbstractContextManager[Iterator[T]],
    ) -> bool:
        """Put what ``source`` brings, until nobody takes it any more; whether that was all. Raises what the source
        raises.
        """
        put, channel, last = self.put, self._items, 0.0
        with source as items:
            for item in items:
                try:
                    put(item)
                except ChannelClosed:
                    return False
                if not channel._buffer:  # the consumer has waited for it, and has it
                    last = handed_over(last)
        return True

    def run(self, source: AbstractContextManager[Iterator[T]]) -> None:
        """The function of a thread that is the producer: `feed`, then `end`. Raises nothing."""
        error: BaseException | None = None
        try:
            self.feed(source)
        except BaseException as caught:
            error = caught
        try:
            self.end(error)
        finally:
            del error  # it holds this frame

    def end(self, error: BaseException | None = None) -> bool:
        """No more items. With ``error``, that is raised where they are taken. Any thread; never waits. The first end
        counts, and none does once the consumer has left. Returns whether this one does.
        """
        if not self._ended and not self._items.closed:
            self._error = error
        self._ended = True
        return self._items.close(final=_END)

    def close(self) -> None:
        """Nobody takes items any more. Any thread; never waits."""
        self._items.close()

    @property
    def channel(self) -> Channel[T]:
        """Through which the items go, for reports."""
        return self._items

    @property
    def waiting(self) -> int:
        """How many items have not been taken."""
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether there will be no more items, or nobody takes them any more."""
        return self._items.closed

    # -- for the consumer ----------------------------------------------------------------------------------------------

    def take(
        self,
        cancel: SupportsDone | None = None,
        *,
        timeout: float | None = None,
        late: Callable[[], BaseException] = TimeoutError,
    ) -> Generator[T, None, None]:
        """The items, then the error of the producer, if there is one. Raises `Cancelled` when ``cancel`` is done first,
        and ``late()`` when the next item takes longer than ``timeout`` seconds.
        """
        batches = self.batches(cancel, timeout=timeout, late=late)
        try:
            for items in batches:
                yield from items
        finally:
            batches.close()

    def batches(
        self,
        cancel: SupportsDone | None = None,
        *,
        timeout: float | None = None,
        late: Callable[[], BaseException] = TimeoutError,
        most: int | None = None,
    ) -> Generator[list[T], None, None]:
        """What `take` yields, in lists: each has the items that have come by then, at least one, and ``most``. None of
        them waits for another.
        """
        recv_many, limit = self._items.recv_many, self._batch
        most = most or limit
        try:
            while True:
                try:
                    items = recv_many(limit, timeout, cancel)
                except TimeoutError:
                    raise late() from None
                ended = items[-1] is _END
                if ended:
                    del items[-1]
                if 0 < len(items) <= most:
                    yield items
                elif items:
                    for first in range(0, len(items), most):
                        yield items[first : first + most]
                if ended:
                    break
        finally:
            self._items.close()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame

    def __repr__(self) -> str:
        return f"<Pump {self._items!r}>"


class reading:  # used as a function is; `contextlib.contextmanager` takes three times as long
    """Call ``source``, and read the iterator, or asynchronous iterator, that it returns in this thread. Leaving the
    block closes it.
    """

    __slots__ = ("_cancel", "_loop", "_opened", "_source")

    def __init__(self, source: Callable[[], Any], loop: Callable[[], LoopThread], cancel: CancelToken) -> None:
        self._source = source
        self._loop = loop
        self._cancel = cancel
        self._opened: Any = None

    def __enter__(self) -> Iterator[Any]:
        opened = self._source()
        if hasattr(opened, "__aiter__"):
            opened = self._loop().iterate(opened, cancel=self._cancel)
        self._opened = opened
        try:
            return iter(opened)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        opened, self._opened = self._opened, None
        close = getattr(opened, "close", None)
        if close is not None:
            close()
