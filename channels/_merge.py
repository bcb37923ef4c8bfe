"""Many channels as one.

A `merge` tries the channels that may have something, and stands in the queues of the others (`StandingWaiter`). What a
value costs does not depend on how many channels there are. Invariant between two values: every open channel is in
``ready``, or in the waiter's ``left``, or has the waiter in its queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

from . import _fork
from ._channel import Channel, _done_of, _look_at
from ._errors import ChannelClosed
from ._park import NOTHING, StandingWaiter
from ._rescue import insist
from ._select import random
from ._views import Receiver, Sending, SupportsDone

T = TypeVar("T")


@overload
def merge(*receivers: Channel[T] | Receiver[T], cancel: SupportsDone | None = ...) -> Iterator[tuple[int, T]]: ...
@overload  # where they differ in type
def merge(*receivers: Channel[Any] | Receiver[Any], cancel: SupportsDone | None = ...) -> Iterator[tuple[int, Any]]: ...
def merge(*receivers: Channel[Any] | Receiver[Any], cancel: SupportsDone | None = None) -> Iterator[tuple[int, Any]]:
    """Iterate over many receivers as one: ``(index, value)`` pairs in the order of their arrival, until all receivers
    are closed and drained.

    If several receivers have a value, one is chosen at random. The cost of a value does not grow with their number. If
    the source of a feed (`channels.aio`) has failed, its exception is raised once, after the values before it; the next
    step goes on with the other receivers. Waiting raises `Cancelled` once ``cancel`` is done. Every value that is taken
    from a channel is delivered.

    Threads may share the iterator, and it stays usable after a Ctrl-C. It keeps its places in the queues of the
    channels while its consumer is busy with a value.
    """
    if cancel is not None:
        _done_of(cancel)
    return _Merge(receivers, cancel)


def _receiving(receiver: Any) -> Channel[Any]:
    channel = getattr(receiver, "_channel", None)
    if not isinstance(channel, Channel) or isinstance(receiver, Sending):
        raise TypeError(f"merge takes receivers and channels, each as an argument of its own, not {receiver!r}")
    return channel


class _Merge(Generic[T]):
    """The iterator of a `merge`. The state of one thread at a time is in a `_Place`; threads beside it have others."""

    def __init__(self, receivers: tuple[Any, ...], cancel: SupportsDone | None) -> None:
        self._receivers = receivers  # dropping one may end what feeds it
        self._cancel = cancel
        self._open: dict[int, Channel[Any]] = {}  # by identity
        self._indices: dict[int, list[int]] = {}
        for index, receiver in enumerate(receivers):
            channel = _receiving(receiver)
            self._open[id(channel)] = channel
            self._indices.setdefault(id(channel), []).append(index)
        self._places: list[_Place] = []  # of threads that have what they wanted

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def __next__(self) -> tuple[int, T]:
        cancel = self._cancel
        if cancel is not None:
            _look_at(cancel)
        places = self._places
        place = None
        try:
            place = self._place()
            found = _find(place, self._open, cancel)
            if found:
                indices = self._indices[id(place.channel)]
                index = indices[int(random() * len(indices))] if len(indices) > 1 else indices[0]
        except BaseException as error:
            if place is not None:
                if error is place.failure:  # of a source: an end like others, for this iterator
                    place.failure = None
                    places += [place]
                else:
                    try:
                        insist(_let_go, place)
                    except BaseException:
                        insist(_let_go, place)
            raise
        # No call from here on: an exception at its end would lose the value.
        value = place.value
        place.value = NOTHING
        places += [place]
        if not found:
            raise StopIteration
        return index, value

    def _place(self) -> _Place:
        try:
            place = self._places.pop()
            if place.epoch is _fork.epoch:
                return place
        except IndexError:
            pass
        return _Place(list(self._open.values()))

    def __repr__(self) -> str:
        return f"<merge of {len(self._open)} open channels>"


class _Place:
    """The state of one thread in the iterator."""

    __slots__ = ("channel", "epoch", "failure", "ready", "value", "waiter", "watches")

    def __init__(self, ready: list[Channel[Any]]) -> None:
        self.epoch = _fork.epoch  # a forked child has no queues to stand in
        self.waiter = StandingWaiter()
        self.ready = ready  # channels that may have something
        self.watches = False  # whether the waiter is in the queue of ``cancel``
        self.channel: Any = None  # what ``value`` came from
        self.value: Any = NOTHING
        self.failure: BaseException | None = None

    def __del__(self) -> None:
        waiter = getattr(self, "waiter", None)  # none where making it was interrupted
        if waiter is not None:
            waiter.retire()


def _find(place: _Place, open_: dict[int, Channel[Any]], cancel: SupportsDone | None) -> bool:
    """Wait for a value, and lay it down at ``place``. False: all channels are closed and drained."""
    while True:
        _gather(place, open_, cancel)
        while place.ready:
            if _try_one(place, open_):
                break
        else:
            if not open_:
                return False
            if not _wait(place, open_, cancel):
                continue
        return True


def _gather(place: _Place, open_: dict[int, Channel[Any]], cancel: SupportsDone | None) -> None:
    """The channels that took the waiter out of their queues may have something."""
    left: Any = place.waiter.left
    while left:
        channel = left.popleft()
        if cancel is not None and channel is cancel.done._channel:
            place.watches = False
        if id(channel) in open_:
            place.ready.append(channel)


def _try_one(place: _Place, open_: dict[int, Channel[Any]]) -> bool:
    """Try one of those that may have something, each as likely. What has nothing is stood at."""
    ready = place.ready
    drained = False
    at = int(random() * len(ready)) if len(ready) > 1 else 0
    channel = place.channel = ready[at]
    try:
        if channel._buffer or channel._senders or channel._closed:  # a look without the lock: `_stand` looks again
            place.value = channel._try_take()
            if place.value is not NOTHING:
                return True
        if not channel._stand(place.waiter):
            return False  # it has something by now
    except ChannelClosed:
        drained = True
    ready[at] = ready[-1]
    del ready[-1]
    if drained:
        _end(place, channel, open_)
    return False


def _end(place: _Place, channel: Channel[Any], open_: dict[int, Channel[Any]]) -> None:
    """The channel is closed and drained. Whoever takes it out tells of its failure."""
    failure = channel._failure()
    key = id(channel)
    try:
        del open_[key]
    except KeyError:  # another thread did
        return
    if failure is not None:
        place.failure = failure
        raise failure


def _wait(place: _Place, open_: dict[int, Channel[Any]], cancel: SupportsDone | None) -> bool:
    """Wait until something happens; whether that was a value."""
    waiter = place.waiter
    if cancel is not None:
        if not place.watches:
            cancel.done._channel._await_close(waiter)
            place.watches = True
        _look_at(cancel)
    waiter.arm()
    if waiter.left:  # somebody came before it waited
        waiter.disarm()
    else:
        waiter.collect(open_)
    channel = waiter.channel
    if channel is None or not waiter.ok:
        return False  # nothing, or a channel was closed: it is among those that may have something
    if cancel is not None and channel is cancel.done._channel:  # a value, where only the end is waited for
        channel._put_back(waiter)
        return False
    place.channel = channel
    place.value = waiter.value
    waiter.value = NOTHING
    return True


def _let_go(place: _Place) -> None:
    """After an exception: stand nowhere any more, and put back what was taken."""
    waiter = place.waiter
    if waiter.armed:
        waiter.withdraw()
        waiter.armed = False
    if place.value is not NOTHING:
        waiter.channel, waiter.value = place.channel, place.value
        place.value = NOTHING
    if waiter.channel is not None and waiter.value is not NOTHING:
        waiter.channel._put_back(waiter)
    waiter.channel = None
    waiter.retire()
