"""A lane: a channel in each direction over a connection, with a bound of its own.

The bound holds end to end. Of a capacity of N, a quarter is the buffer at the sender, the rest is what may be under way
or wait at the receiver; each value there has cost a credit. The receiver gives credits back when values have been
received: many at a time, unless the sender has none left for a moment, and says so. A send that waits goes on when a
single value is received, as with any channel, and a stream of values does not pay for a credit with each.

Once the sender has closed the lane, what its buffer still holds is sent without credits: closing never waits, and the
receiver then has N values, and the final one, at most.

Values are made frames in the thread that sends them, so that a value which cannot be sent is an error there.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from .._channel import Channel
from .._errors import ChannelClosed
from .._park import NOTHING, monotonic
from .._views import Receiver, Sender, Sending, SupportsDone
from ._bell import Bell, BellWaiter
from ._errors import ProtocolError
from ._frames import CLOSE, CREDIT, DATA, HEADER, NUMBER, STOP, WANT, frame

T = TypeVar("T")

STARVED: Final = 0.001  # seconds without credits, after which they are asked for

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: Any) -> bytes:
    """The body of a frame: ``value`` as JSON. Raises `TypeError` and `ValueError` for what JSON cannot say."""
    return _encoder.encode(value).encode("utf-8", "surrogatepass")


def from_json(body: bytes) -> Any:
    """The value that `to_json` wrote."""
    return json.loads(body.decode("utf-8", "surrogatepass"))


class Last(NamedTuple):
    """The last values of a lane, as its reader knows them to be."""

    values: Sequence[Any]


class Codec:
    """How the values of a lane are written and read; JSON, unless told otherwise.

    ``decode`` is called on the thread of the connection, and must not wait. A value for which it returns `NOTHING` is
    dealt with; a `Last` closes the lane for its receivers, who are not told of what may go wrong afterwards.

    ``last`` is called on the thread of the connection when nothing more comes: with None after the peer's `CLOSE`, or
    with the exception that has ended the connection. It returns values to be received at the end in place of the
    exception, or None. It is called once, and must not wait.
    """

    def __init__(
        self,
        encode: Callable[[Any], bytes] = to_json,
        decode: Callable[[bytes], Any] = from_json,
        last: Callable[[BaseException | None], Sequence[Any] | None] | None = None,
    ) -> None:
        self.encode = encode
        self.decode = decode
        self.last = last


class Inbound(Channel[Any]):
    """What has arrived on a lane and was not received.

    The thread of the connection puts values in, never waits, and has to learn that values were received, by whichever
    operation: `recv`, `select`, `merge`, a task. So where many are waiting, it holds the last one back, as a sender
    that is parked: by the invariants of a channel, that one is let in as soon as fewer wait than the capacity of this
    channel, a low-water mark, and it rings the bell. The buffer may hold more than the capacity; nobody else sends.
    """

    __slots__ = ("_error", "_held", "_mark", "_most", "_traceback")

    def __init__(self, mark: int, most: int, name: str) -> None:
        super().__init__(mark, name=name)
        self._mark = mark
        self._most = most
        self._held: list[Any] | None = None  # the entry of the parked value
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def __len__(self) -> int:
        held = self._held
        return len(self._buffer) + (1 if held is not None and not held[0].done else 0)

    @property
    def capacity(self) -> int:
        """The number of values between the two ends: buffered there, under way, or waiting here."""
        return self._most

    def deliver(self, values: list[Any], bell: Bell | None) -> None:
        """Put values in. Without a bell, none is held back. On the thread of the connection."""
        lock = self._lock
        lock.acquire()
        try:
            if not self._closed:
                self._put_all(values, bell)
        finally:
            lock.release()
        if self._attention:
            self._attend()

    def _put_all(self, values: list[Any], bell: Bell | None) -> None:
        held, self._held = self._held, None
        if held is not None and not held[0].done:
            held[0].done = True
            self._senders = ()
            values = [held[1], *values]
            held[1] = None
        sent = self._serve_receivers(values, 0) if self._receivers else 0
        rest = values[sent:]
        self._capacity = self._mark
        if rest and bell is not None and len(self._buffer) + len(rest) > self._capacity:
            self._held = [BellWaiter(bell, None), rest.pop(), -1]
            self._senders = deque((self._held,))
        if rest:
            buffer: Any = self._buffer if self._buffer != () else deque()
            buffer += rest
            self._buffer = buffer

    def unreceived(self) -> int:
        """How many values wait here."""
        with self._lock:  # a value that is let in counts once
            return len(self)

    def ring_at_next(self) -> None:
        """Let the bell ring when the next value is received, if it is to ring at all."""
        with self._lock:
            held = self._held
            if held is not None and not held[0].done:
                self._capacity = len(self._buffer)

    def finish(self, values: Sequence[Any], error: BaseException | None) -> None:
        """Close it, after the last values. Receivers then get the error, where there is one."""
        self.deliver(list(values), None)
        if not self.closed:
            if error is not None:
                self._traceback = error.__traceback__
            self._error = error
            self.close()

    def drop(self) -> None:
        """Close it, without what nobody has received."""
        self.close()
        try:
            while self._try_take() is not NOTHING:
                pass
        except ChannelClosed:
            pass

    def _failure(self) -> BaseException | None:
        error = self._error
        return None if error is None else error.with_traceback(self._traceback)  # each receiver adds its own to it


class LaneSender(Sender[T]):
    """The sending end of a lane, as `channels.Sender`. A value that JSON cannot say, or that is longer than a frame may
    be, raises `TypeError` or `ValueError` in the call that sends it. Once the connection is lost, the cause of
    `ChannelClosed` says why.

    A send returns when the value is in the buffer of the lane: a connection that is lost afterwards may lose it.
    """

    __slots__ = ("_connection", "_lane")

    def __init__(self, lane: Lane, connection: object = None) -> None:
        super().__init__(lane.out)
        self._lane = lane
        self._connection = connection  # not to be dropped as long as this is there

    def send(self, value: T, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        body = self._lane.framed(value)
        try:
            self._target.send(body, timeout, cancel)
        except ChannelClosed as closed:
            raise self._lane.explained(closed) from self._lane.link.error

    def try_send(self, value: T) -> None:
        body = self._lane.framed(value)
        try:
            self._target.try_send(body)
        except ChannelClosed as closed:
            raise self._lane.explained(closed) from self._lane.link.error

    def send_many(self, values: Iterable[T], timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        bodies = [self._lane.framed(value) for value in values]
        try:
            self._target.send_many(bodies, timeout, cancel)
        except ChannelClosed as closed:
            raise self._lane.explained(closed) from self._lane.link.error

    def try_send_many(self, values: Iterable[T]) -> int:
        bodies = [self._lane.framed(value) for value in values]
        try:
            return self._target.try_send_many(bodies)
        except ChannelClosed as closed:
            raise self._lane.explained(closed) from self._lane.link.error

    def sending(self, value: T) -> Sending[Any]:
        return Sending(self._target, self._lane.framed(value))

    def close(self, final: T = NOTHING) -> bool:
        body = NOTHING if final is NOTHING else self._lane.framed(final)
        try:
            return self._target.close(body)
        finally:
            self._lane.link.bell.ring()

    @property
    def capacity(self) -> int:
        """How many values may be between the two ends."""
        return self._lane.send_capacity

    def __enter__(self) -> LaneSender[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sender of {self._lane!r}>"


class LaneReceiver(Receiver[T]):
    """The receiving end of a lane, as `channels.Receiver`: a case of `select` and `merge`, an iterator. If the
    connection is lost before the peer has closed the lane, receivers get the values that have arrived, then
    `ConnectionLost`; a `select` sees a closed channel.
    """

    __slots__ = ("_connection", "_lane")

    def __init__(self, lane: Lane, connection: object = None) -> None:
        super().__init__(lane.into)
        self._lane = lane
        self._connection = connection  # not to be dropped as long as this is there

    def __repr__(self) -> str:
        return f"<receiver of {self._lane!r}>"


def buffered(capacity: int) -> int:
    """How much of a capacity is the buffer at the sender. The rest is what may be on its way: little of it, and the
    sender waits for credits while the receiver waits for values."""
    return capacity // 4


class Owner(Protocol):
    """The connection of a lane, as far as the lane knows it."""

    name: str
    bell: Bell
    limit: int
    error: BaseException | None


class Lane:
    """One lane, as the thread of its connection knows it. What is below the line is for that thread alone."""

    def __init__(self, link: Owner, number: int, codec: Codec, capacities: tuple[int, int]) -> None:
        self.link = link
        self.number = number
        self.codec = codec
        self.send_capacity, capacity = capacities
        name = f"{link.name} lane {number}"
        self.out: Channel[bytes] = Channel(buffered(self.send_capacity), name=f"{name} out")
        window = capacity - buffered(capacity)
        self._step = max(window // 3, 1)  # credits that are given back at a time
        self.into = Inbound(window - self._step, capacity, f"{name} in")
        # -- of the thread -------------------------------------------------------------------------------------------
        self._credit = self.send_capacity - buffered(self.send_capacity)
        self._source: Channel[Any] = self.out  # where values come from
        self._frame_of: Callable[[Any], bytes | None] | None = None  # makes frames of them
        self._given_up: Callable[[], bool] | None = None
        self._given: tuple[Channel[Any], Callable[[Any], bytes | None], Callable[[], bool]] | None = None
        self._ready: list[bytes] = []  # frames that wait for credits
        self._ahead = 0  # how many frames are made before there are credits for them
        self._flushing = False  # what is left is sent without credits
        self._unheard = False  # nobody receives there any more
        self._waiter: BellWaiter | None = None  # in the queue of the source
        self._received = 0
        self._returned = 0  # credits
        self._wanted = False  # by the peer, which has none
        self._used_up: float | None = None  # since when this side has none, and has not asked for any
        self.sent_close = False
        self.got_close = False
        self.sent_stop = False

    # -- of the threads that send --------------------------------------------------------------------------------------

    def framed(self, value: Any) -> bytes:
        """The frame of a value."""
        body = self.codec.encode(value)
        if len(body) > self.link.limit:
            raise ValueError(f"a value of {len(body):,} bytes is longer than a frame may be, {self.link.limit:,} bytes")
        return HEADER.pack(len(body), DATA, self.number) + body

    def send_from(
        self, source: Receiver[Any], frame_of: Callable[[Any], bytes | None], given_up: Callable[[], bool]
    ) -> None:
        """From now on, send the values of ``source``, and close the lane when that ends. This spares a thread which
        receives them only to send them. Nobody may use the sender of the lane from now on.

        ``frame_of`` is called on the thread of the connection, must not wait nor raise, and returns None for a value
        that is not sent. When the source is closed and ``given_up()``, what is left of it is sent as far as there is
        room, and the last value; else all of it is sent. Whoever closes it when there are no credits rings the bell.
        """
        channel = source._channel
        assert isinstance(channel, Channel)
        self._given = channel, frame_of, given_up
        self.link.bell.ring()

    def explained(self, closed: ChannelClosed) -> ChannelClosed:
        """The exception of a send that came too late."""
        error = self.link.error
        return closed if error is None else ChannelClosed(f"{closed}: {error}")

    # -- of the thread of the connection -------------------------------------------------------------------------------

    def take(self, frames: list[bytes]) -> None:
        """Add what may be sent now to ``frames``."""
        if self.sent_close:
            return
        ended = self._collect()
        count = len(self._ready) if ended and self._flushing else min(self._credit, len(self._ready))
        if count > 0:
            frames += self._ready[:count]
            del self._ready[:count]
            self._credit -= count
        if ended and not self._ready:
            self.sent_close = True
            frames.append(frame(CLOSE, self.number))
        elif self._credit <= 0 and self._used_up is None:
            self._used_up = monotonic()

    def _collect(self) -> bool:
        """Take values from the source, as many as may be sent or made ready to be. Whether it is closed and drained."""
        given, self._given = self._given, None
        waiter = self._waiter
        if waiter is not None:
            if given is not None:
                waiter.withdraw()
            elif not waiter.done:
                return False  # whoever sends or closes next rings
            self._waiter = None
            if waiter.ok:
                self._add([waiter.value])
        if given is not None:
            self._source, self._frame_of, self._given_up = given
            self._ahead = buffered(self.send_capacity)
        try:
            while True:
                if self._source.closed and not self._flushing:
                    self._flushing = self._flushes()
                wanted = self._credit + self._ahead - len(self._ready)
                if wanted <= 0 and not self._flushing and not self._unheard:
                    return False
                found = self._source._take_many(None if self._flushing or self._unheard else wanted)
                if self._flushing and len(self._ready) + len(found) > self._room > 0:
                    found[max(self._room - 1 - len(self._ready), 0) :] = found[-1:]
                self._add(found)
                if not found and not (self._source.closed and self._flushing):
                    waiter = BellWaiter(self.link.bell, [None], self._source._lock)
                    if not self._source._enlist(waiter, None) or waiter.done:
                        if waiter.done and waiter.ok:
                            self._add([waiter.value])
                        continue
                    self._waiter = waiter
                    return False
        except ChannelClosed:
            return True

    def _add(self, values: list[Any]) -> None:
        if self._frame_of is not None:
            values = [made for value in values if (made := self._frame_of(value)) is not None]
        if not self._unheard:
            self._ready += values

    @property
    def _room(self) -> int:
        """How many values the receiver has room for, the final one included: what is buffered here counts as there."""
        return buffered(self.send_capacity) + self._credit + 1

    def _flushes(self) -> bool:
        """Whether all that is left is sent now, or what there is room for: the source is closed."""
        if self._given_up is None or self._given_up():
            return True
        return len(self._source) + len(self._ready) <= self._room

    def give_back(self, frames: list[bytes]) -> None:
        """Add the credits for what was received."""
        if self.got_close:
            return
        due = self._received - self._returned - self.into.unreceived()
        if due >= self._step or (due and self._wanted):
            self._returned += due
            self._wanted = False
            frames.append(frame(CREDIT, self.number, NUMBER.pack(due)))

    def ask(self, now: float, frames: list[bytes]) -> float | None:
        """Ask for credits, if there were none for a moment; when that will be, if it has to be looked at again."""
        if self._used_up is None or self._used_up == math.inf or self.sent_close:
            return None
        if now - self._used_up < STARVED:
            return self._used_up + STARVED
        self._used_up = math.inf
        frames.append(frame(WANT, self.number))
        return None

    def stop(self, frames: list[bytes]) -> None:
        """Receive no more: what has come is dropped, and what comes."""
        if not self.sent_stop:
            self.sent_stop = True
            self.into.drop()
            if not self.got_close:
                frames.append(frame(STOP, self.number))

    def got(self, kind: int, body: bytes, values: list[Any]) -> None:
        """A frame has come for the lane; ``values`` are those that came before, and were not delivered yet."""
        if kind == DATA:
            if self.got_close:
                raise ProtocolError("the peer sent a value on a lane that it had closed")
            self._received += 1
            if not self.sent_stop:
                try:
                    value = self.codec.decode(body)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    raise ProtocolError(f"the peer sent a value that cannot be read: {error}") from error
                if value.__class__ is Last:
                    self.deliver(values)
                    self.into.finish(value.values, None)
                elif value is not NOTHING:
                    values.append(value)
        elif kind == CREDIT:
            if len(body) != NUMBER.size:
                raise ProtocolError("the peer sent a number of credits that is none")
            self._credit += NUMBER.unpack(body)[0]
            self._used_up = None
            if self._credit > self.send_capacity:
                raise ProtocolError("the peer gave more credits than the lane has")
        elif kind == WANT:
            self.deliver(values)
            self._wanted = True
            self.into.ring_at_next()
        elif kind == CLOSE:
            if self.got_close:
                raise ProtocolError("the peer closed a lane twice")
            self.got_close = True
            self.deliver(values)
            self._finish(None)
        elif kind == STOP:
            self.out.close()
            self._unheard = True

    def deliver(self, values: list[Any]) -> None:
        """Let receivers have the values that have come."""
        if values and not self.sent_stop:
            self.into.deliver(values, self.link.bell)
            if self.into.unreceived() > self.into.capacity + 1:
                raise ProtocolError("the peer sent more than it had credits for")
        values.clear()

    def end(self, error: BaseException) -> None:
        """The connection has ended."""
        if not self.got_close:
            self.got_close = True
            self._finish(error)
        self.out.close()

    def _finish(self, error: BaseException | None) -> None:
        last = None if self.codec.last is None else self.codec.last(error)
        self.into.finish(last or (), error if last is None else None)

    def __repr__(self) -> str:
        return f"<lane {self.number} of {self.link.name}>"
