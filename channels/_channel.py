"""Closable bounded channels with Go's semantics.

Invariants, true whenever the lock is free:

- If there is a live waiter in ``_receivers``, the buffer is empty and no live sender waits (except a sender that the
  same select has queued on both sides, which never receives its own value).
- If there is a live waiter in ``_senders``, the buffer is full and the channel is open.
- A closed channel has no waiters. Its buffer may hold one value more than its capacity: the final one.
- ``_room`` is 0 if the channel is closed or has an entry in ``_receivers``. Else it is the capacity, or 0 until a send
  has found out that all receivers are gone. So a send looks at one number.
- Queues are first in, first out. A value is handed over directly: a waiter that is served has its value before another
  thread can ask for it. The entries of withdrawn waiters stay until `_queue` tidies up, so that withdrawing costs
  nothing; they hold no value and no channel.
- A receive that was interrupted gives its value back, so the buffer may then hold more than its capacity. No sender is
  let in until it holds less again.

Signal handlers, finalizers and asynchronous exceptions (Ctrl-C) may come between any two lines of this file. `_rescue`
explains what follows from this, and does the cleaning up.

- The lock is an RLock only because of ``_is_owned``. With it, a nested operation of the same thread finds the channel
  busy and does not touch the lock (it raises `WouldBlock`, or `RuntimeError` if it would have to wait), and an
  interrupted operation knows whether it has to release the lock. ``acquire`` and ``release`` are called directly,
  because a ``with`` costs twice as much.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, SupportsIndex, TypeVar, final

from . import _fork
from ._errors import Cancelled, ChannelClosed, WouldBlock
from ._park import NOTHING, RLock, StandingWaiter, Waiter, deadline_after, monotonic
from ._rescue import PATIENCE, Rescue, closing, insist
from ._views import ChannelStatistics, Receiver, Sender, Sending, SupportsDone

T = TypeVar("T")

forked = False  # a copy of `_fork.forked`
_fork.looked_at.append(globals())

TIDY_AT: Final = 16  # withdrawn entries that a queue may hold before the live ones are counted


class Channel(Rescue, Generic[T]):
    """A bounded first-in-first-out channel between threads.

    ``capacity`` is the number of values that it buffers. At capacity 0 the channel is unbuffered: a send returns once a
    receiver has the value. ``name`` is shown in `repr` and in error messages. All methods may be called from any
    thread, at any time.

    Iterating receives values until the channel is closed and drained. ``with channel:`` closes it on exit. A channel is
    always true, even if it is empty. The channel itself is the receive case of a `select`. It cannot be copied or
    pickled, is compared by identity whatever ``__eq__`` says, and its operations cannot be overridden.

    Timeouts are in seconds; ``None`` waits for ever, and ``timeout=0`` tries once. ``cancel`` is an object with a
    ``done``, such as a `CancelToken`. Once it is done, operations raise `Cancelled`, even if they could have gone
    ahead.

    Semantics: https://go.dev/ref/spec#Channel_types, https://go.dev/ref/mem#chan
    """

    __slots__ = (
        "__weakref__",
        "_capacity",
        "_closed",
        "_room",
        "_tidy_at",
        "name",
    )

    def __init__(self, capacity: int = 0, *, name: str | None = None) -> None:
        if capacity.__class__ is not int or capacity < 0 or (name is not None and name.__class__ is not str):
            capacity = _checked(capacity, name)
        self.name = name
        self._capacity = self._room = capacity
        # An empty deque is 0.76 KB: queues are made when something has to wait, and are lists at first.
        self._buffer = deque() if capacity else ()
        self._receivers = ()
        self._senders = ()
        self._tidy_at = TIDY_AT
        self._closed = False
        self._attention = False  # a close is recorded in `closing`: whoever lets go of the lock completes it
        self._epoch = _fork.epoch
        self._lock = RLock()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if getattr(getattr(Channel, name, None), "__final__", False):
                raise TypeError(
                    f"{cls.__qualname__} overrides {name} of Channel, but select, merge and the views would bypass "
                    "that: keep the channel in an object of your own that has such a method"
                )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be copied or pickled: nobody would receive from the copy. Pass the channel itself, and "
            "leave it out of dataclasses.asdict and deepcopy; for processes there is multiprocessing.Queue"
        )

    # -- sending -------------------------------------------------------------------------------------------------------

    @final
    def send(self, value: T, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        """Send ``value``, waiting while the buffer is full (at capacity 0: until a receiver takes the value).

        Raises `ChannelClosed` if the channel is closed, before or during the wait; `TimeoutError`; `Cancelled`. In each
        of these cases the value was not sent. After an asynchronous exception (Ctrl-C) it is not known whether the
        value was sent. Raises `RuntimeError` in a signal handler or finalizer that interrupted an operation on this
        channel.
        """
        if timeout is not cancel:  # type: ignore[comparison-overlap]  # in one test: not both None
            if timeout is not None:
                deadline = deadline_after(timeout)
            if cancel is not None:
                _look_at(cancel)
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            raise self._reentered("send", "try_send")
        entry: Any = None  # of the queue: waiter, value
        try:
            lock.acquire()
            buffer = self._buffer
            if len(buffer) < self._room:  # the most common case
                buffer.append(value)
                lock.release()
                if self._attention:
                    self._attend()
                return
            sent = False
            if self._closed:
                pass
            elif self._receivers and self._serve_receiver(value):
                sent = True
            elif len(buffer) < self._capacity:  # all receivers are gone
                self._room = self._capacity
                buffer.append(value)
                sent = True
            elif timeout != 0:
                entry = [Waiter(None if cancel is None else [None]), value, -1]
                self._senders = self._queue(self._senders, entry)
            lock.release()
            if self._attention:
                self._attend()
            if entry is not None:
                self._wait(entry[0], "send", None if timeout is None else deadline, cancel)
        except BaseException:
            try:
                self._let_go(entry and entry[0], entry=entry)
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go(entry and entry[0], entry=entry)
            raise
        if sent:
            return
        if entry is None:
            if self._closed:
                raise ChannelClosed(f"send on {self!r}")
            raise TimeoutError(f"send on {self!r}: nobody received at once")
        waiter: Waiter = entry[0]
        served = waiter.channel
        waiter.channel = None  # a dead entry may stay in a queue for a while, and must not keep the channel alive
        if served is self:
            if waiter.ok:
                return
            raise ChannelClosed(f"send on {self!r}")
        entry[1] = None
        if served is None:
            raise TimeoutError(f"send on {self!r}: nobody received within {timeout} s")
        raise _cancelled(cancel)

    @final
    def try_send(self, value: T) -> None:
        """Send ``value`` if that is possible without waiting, else raise `WouldBlock`. Raises `ChannelClosed`.

        Safe in signal handlers and finalizers; raises `WouldBlock` if they interrupted an operation on this channel.
        """
        if not self._try_put(value):
            raise WouldBlock(f"send on {self!r}")

    @final
    def send_many(self, values: Iterable[T], timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        """Send ``values`` in order, as many at once as receivers and the buffer accept. Waits like `send`.

        While it waits, values of other senders may come in between. Raises what `send` raises. Values that were sent
        before the exception stay sent; their number is the attribute ``sent`` of the `ChannelClosed`, `TimeoutError` or
        `Cancelled`. ``timeout`` is for all values together. After an asynchronous exception (Ctrl-C) it is not known
        how many were sent.
        """
        given = list(values)
        deadline = deadline_after(timeout)
        sent = 0
        try:
            if cancel is not None:
                _look_at(cancel)
            sent = self._put_many(given, sent)
            while True:
                if sent == len(given):
                    return
                left = timeout if deadline is None or timeout == 0 else max(deadline - monotonic(), 0.0)
                try:
                    self.send(given[sent], left, cancel)
                except TimeoutError:
                    if timeout == 0:
                        raise
                    raise TimeoutError(
                        f"send on {self!r}: nobody received number {sent + 1} of {len(given)} within {timeout} s"
                    ) from None
                sent += 1
                if sent == len(given):  # a channel that has closed since has taken all of them
                    return
                sent = self._put_many(given, sent)
        except (ChannelClosed, TimeoutError, Cancelled) as error:
            error.sent = sent  # type: ignore[union-attr]
            raise

    @final
    def try_send_many(self, values: Iterable[T]) -> int:
        """Send the first of ``values``, as many as is possible without waiting. Returns their number. Raises
        `ChannelClosed`.

        Safe in signal handlers and finalizers; returns 0 if they interrupted an operation on this channel.
        """
        return self._put_many(list(values), 0)

    # -- receiving -----------------------------------------------------------------------------------------------------

    @final
    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T:
        """Receive the next value, waiting until there is one.

        Raises `ChannelClosed` once the channel is closed and drained; `TimeoutError`; `Cancelled`. None of these loses
        a value. An asynchronous exception (Ctrl-C) loses none either: a value that had been taken goes to the next
        receiver or back to the front. Raises `RuntimeError` in a signal handler or finalizer that interrupted an
        operation on this channel.
        """
        if timeout is not cancel:  # type: ignore[comparison-overlap]  # in one test: not both None
            if timeout is not None:
                deadline = deadline_after(timeout)
            if cancel is not None:
                _look_at(cancel)
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            raise self._reentered("recv", "try_recv")
        value: T = NOTHING
        waiter = None
        try:
            lock.acquire()
            buffer = self._buffer
            if buffer:  # the code of _take, inline: the most common case
                value = buffer[0]
                buffer.popleft()
                if self._senders:
                    self._refill()
                lock.release()
                if self._attention:
                    self._attend()
                return value
            if self._senders:
                value = self._take()
            if value is NOTHING and not self._closed and timeout != 0:
                waiter = Waiter(None if cancel is None else [None])
                self._room = 0
                self._receivers = self._queue(self._receivers, waiter)
            lock.release()
            if self._attention:
                self._attend()
            if waiter is not None:
                self._wait(waiter, "recv", None if timeout is None else deadline, cancel)
        except BaseException:
            try:
                self._let_go(waiter, value)
            except RecursionError:
                if lock._is_owned():
                    if value is not NOTHING:
                        buffer.appendleft(value)
                    lock.release()
            except BaseException:
                self._let_go(waiter, value)
            raise
        if value is not NOTHING:
            return value
        if waiter is None:
            if timeout != 0 or (self._closed and not self._buffer):  # a last value may have come since we looked
                raise self._failure() or ChannelClosed(f"receive from {self!r}")
            raise TimeoutError(f"receive from {self!r}: nothing was there")
        served = waiter.channel
        waiter.channel = None  # a dead entry may stay in a queue for a while, and must not keep the channel alive
        if served is self:
            if waiter.ok:
                value = waiter.value
                waiter.value = NOTHING
                return value
            raise self._failure() or ChannelClosed(f"receive from {self!r}")
        if served is None:
            raise TimeoutError(f"receive from {self!r}: nothing came within {timeout} s")
        raise _cancelled(cancel)

    @final
    def try_recv(self) -> T:
        """Receive a value if there is one, else raise `WouldBlock`. Raises `ChannelClosed` once closed and drained.

        Safe in signal handlers and finalizers; raises `WouldBlock` if they interrupted an operation on this channel.
        """
        try:
            value: T = self._try_take()
        except ChannelClosed:
            failure = self._failure()
            if failure is None:
                raise
        else:
            if value is NOTHING:
                raise WouldBlock(f"receive from {self!r}")
            return value
        raise failure  # outside of the `except`, so that it keeps its own context and cause

    @final
    def recv_many(
        self, limit: int | None = None, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> list[T]:
        """Receive the values that are available, at least one and up to ``limit``. Waits only if there is none.

        This costs as much as one `recv`. Raises what `recv` raises, and loses no value either: after an asynchronous
        exception (Ctrl-C) the values are back in the channel, in front of the others.
        """
        if limit is not None and (limit.__class__ is not int or limit < 1):
            limit = _limit(limit)
        if self._buffer or self._senders:  # a look without the lock: what comes in this moment is for `recv`
            if timeout is not None:
                deadline_after(timeout)  # a wrong timeout is an error, even if nothing has to be waited for
            if cancel is not None:
                _look_at(cancel)
            try:
                values: list[T] = self._take_many(limit)
                if values:
                    return values
            except ChannelClosed:
                pass  # `recv` says so, with the failure of a feed
        return [self.recv(timeout, cancel)]

    @final
    def try_recv_many(self, limit: int | None = None) -> list[T]:
        """Receive the values that are available, up to ``limit``. Raises `WouldBlock` if there is none, and
        `ChannelClosed` once the channel is closed and drained.

        Safe in signal handlers and finalizers; raises `WouldBlock` if they interrupted an operation on this channel.
        """
        try:
            values: list[T] = self._take_many(limit)
        except ChannelClosed:
            failure = self._failure()
            if failure is None:
                raise
        else:
            if not values:
                raise WouldBlock(f"receive from {self!r}")
            return values
        raise failure

    def __iter__(self) -> Receiver[T]:
        return Receiver(self)

    # -- closing -------------------------------------------------------------------------------------------------------

    @final
    def close(self, final: T = NOTHING) -> bool:
        """Close the channel. Returns whether this call closed it; closing twice is harmless.

        ``final`` is appended as the last value, atomically with the close, even if the buffer is full. At capacity 0 it
        goes to the first waiting receiver, or else to the next one. Waiting senders get `ChannelClosed`; waiting
        receivers get the values that are left, then `ChannelClosed`.

        Never waits for another thread's send or receive. Safe in signal handlers and finalizers: if they interrupted an
        operation on this channel, that operation completes the close. An asynchronous exception leaves the channel
        closed.
        """
        if self._closed:
            return False
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        record = [final, False, self]
        try:
            first = closing.setdefault(id(self), record) is record
            self._attention = True  # even if another call was first: it may have been interrupted before this line
            self._attend()
        except BaseException:
            try:
                insist(self._resume_close)
            except BaseException:
                insist(self._resume_close)
            raise
        return first and (not self._closed or record[1])  # not closed yet: recorded on a busy channel

    def __enter__(self) -> Channel[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the channel is closed. There may still be values to receive."""
        # A recorded close has not happened yet, except for the handler in this thread that has recorded it.
        return self._closed or (self._attention and self._lock._is_owned())

    @property
    def capacity(self) -> int:
        """The number of values that the channel buffers; 0 if it is unbuffered."""
        return self._capacity

    def statistics(self) -> ChannelStatistics:
        """A snapshot of the buffer and the waiting threads, for monitoring. It tells what was true a moment ago."""
        return ChannelStatistics(
            len(self._buffer),
            self._capacity,
            sum(not entry[0].done for entry in _snapshot(self._senders)),
            # A waiter without a ticket is being served, or belongs to a merge whose consumer is busy.
            sum(not waiter.done and waiter.ticket != [] for waiter in _snapshot(self._receivers)),
            self.closed,
        )

    def __len__(self) -> int:
        return len(self._buffer)

    def __bool__(self) -> bool:
        return True  # `if channel:` asks whether there is a channel, not whether it has values

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r:.80}"
        state = "closed" if self.closed else "open"
        now = self.statistics()
        waiting = "".join(
            f", {n} {what}{'s' if n > 1 else ''} waiting"
            for n, what in ((now.waiting_to_receive, "receiver"), (now.waiting_to_send, "sender"))
            if n
        )
        return f"<Channel{name} {len(self._buffer)}/{self._capacity} {state}{waiting}>"

    # -- views ---------------------------------------------------------------------------------------------------------

    @property
    def sender(self) -> Sender[T]:
        """The view that can only send and close (Go's ``chan<-``)."""
        return Sender(self)

    @property
    def receiver(self) -> Receiver[T]:
        """The view that can only receive (Go's ``<-chan``)."""
        return Receiver(self)

    def sending(self, value: T) -> Sending[T]:
        """The case of a `select` that sends ``value``."""
        return Sending(self, value)

    def receiving(self) -> Receiver[T]:
        """The case of a `select` that receives: the channel's receiver, for code that wants to name the operation."""
        return Receiver(self)

    # -- inside, without the lock --------------------------------------------------------------------------------------

    @property
    def _channel(self) -> Channel[T]:
        return self  # the views have the same attribute

    def _failure(self) -> BaseException | None:
        """The exception that receivers get at the end in place of `ChannelClosed`."""
        return None

    def _try_put(self, value: T) -> bool:
        """Send ``value`` if that is possible without waiting. Returns whether it was."""
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            return False
        sent = False
        try:
            if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
                return False
            buffer = self._buffer
            if len(buffer) < self._room:  # the most common case
                buffer.append(value)
                lock.release()
                if self._attention:
                    self._attend()
                return True
            closed = self._closed
            if not closed:
                sent = self._put(value)
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            try:
                self._let_go()
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go()
            raise
        if closed:
            raise ChannelClosed(f"send on {self!r}")
        return sent

    def _try_take(self) -> Any:
        """Take the next value, or return NOTHING if a receive would have to wait."""
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            return NOTHING
        value: Any = NOTHING
        try:
            if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
                return NOTHING
            buffer = self._buffer
            if buffer:  # the code of _take, inline
                value = buffer[0]
                buffer.popleft()
                if self._senders:
                    self._refill()
                lock.release()
                if self._attention:
                    self._attend()
                return value
            if self._senders:
                value = self._take()
            closed = self._closed
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            try:
                self._let_go(None, value)
            except RecursionError:
                if lock._is_owned():
                    if value is not NOTHING:
                        buffer.appendleft(value)
                    lock.release()
            except BaseException:
                self._let_go(None, value)
            raise
        if value is NOTHING and closed:
            raise ChannelClosed(f"receive from {self!r}")
        return value

    def _put_many(self, values: list[T], sent: int) -> int:
        """Send the values from number ``sent`` on, as far as that needs no waiting: the number of the next."""
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            return sent
        try:
            if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
                return sent
            closed = self._closed
            if not closed:
                if self._receivers:
                    sent = self._serve_receivers(values, sent)
                buffer: Any = self._buffer
                room = self._capacity - len(buffer)
                if room > 0 and sent < len(values):
                    fitting = values[sent : sent + room]
                    buffer += fitting
                    sent += len(fitting)
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            try:
                self._let_go()
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go()
            raise
        if closed:
            raise ChannelClosed(f"send on {self!r}")
        return sent

    def _take_many(self, limit: int | None) -> list[Any]:
        """The values that are there, up to ``limit``, which may be none. Raises `ChannelClosed`."""
        if limit is not None and (limit.__class__ is not int or limit < 1):
            limit = _limit(limit)
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            return []
        taken: list[Any] = [()]  # of one item: the values that have left the channel
        fresh: Any = deque() if self._capacity else ()
        try:
            if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
                return []
            if limit is None or len(self._buffer) <= limit:
                taken[0], self._buffer = self._buffer, fresh
            else:
                taken[0] = []
                self._take_some(taken[0], limit)
            if self._senders:
                self._let_in()
                if not self._capacity:
                    taken[0] = list(taken[0])
                    self._take_from_senders(taken[0], limit)
            closed = self._closed
            lock.release()
            if self._attention:
                self._attend()
            values = list(taken[0])
            if values or not closed:
                return values
        except BaseException:
            try:
                self._let_go_of_many(taken)
            except RecursionError:
                if lock._is_owned():
                    for value in reversed(taken[0]):
                        self._buffer.appendleft(value)
                    lock.release()
            except BaseException:
                self._let_go_of_many(taken)
            raise
        raise ChannelClosed(f"receive from {self!r}")

    def _wait(self, waiter: Waiter, operation: str, deadline: float | None, cancel: SupportsDone | None) -> None:
        """Park. Afterwards ``waiter.channel`` is this channel, the channel of ``cancel``, or None after a timeout."""
        if cancel is not None:
            cancel.done._channel._await_close(waiter)
        if waiter.done or waiter.wait(deadline, operation, self):
            return
        self._withdraw(waiter)

    def _withdraw(self, waiter: Waiter) -> None:
        if waiter.ticket is not None:
            waiter.withdraw()
            return
        lock = self._lock
        lock.acquire()
        waiter.done = True
        lock.release()
        if self._attention:
            self._attend()

    def _await_close(self, waiter: Waiter) -> None:
        """Let the close of this channel serve ``waiter`` too, which has a ticket."""
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        try:
            lock.acquire()
            if not self._closed:
                self._room = 0
                self._receivers = self._queue(self._receivers, waiter)
            elif waiter.ticket:
                try:
                    del waiter.ticket[0]
                    waiter.channel = self
                    waiter.done = True
                except IndexError:
                    pass
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            try:
                self._let_go()
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go()
            raise

    def _enlist(self, waiter: Waiter, entry: list[Any] | None) -> bool:
        """Queue a select's case (a receive where ``entry`` is None), or carry it out if it is ready by now.

        False: it looked ready, but its partner was taken by another channel meanwhile; the select starts anew.
        """
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            raise self._reentered("select", "block=False")
        mine = False
        ticket: Any = waiter.ticket
        try:
            lock.acquire()
            if entry is None:
                ready = self._closed or self._buffer or self._another_sender(waiter)
                if not ready:
                    self._room = 0
                    self._receivers = self._queue(self._receivers, waiter)
            else:
                ready = self._closed or len(self._buffer) < self._capacity or self._another_receiver(waiter)
                if not ready:
                    self._senders = self._queue(self._senders, entry)
            if ready:
                try:
                    del ticket[0]
                    mine = True
                except IndexError:
                    pass  # served by another channel
                if not mine:
                    pass
                elif entry is None:
                    value = self._take()
                    if value is not NOTHING or self._closed:
                        waiter.value = value
                        waiter.ok = value is not NOTHING
                        waiter.channel = self
                elif self._closed or self._put(entry[1]):
                    waiter.ok = not self._closed
                    waiter.index = entry[2]
                    waiter.channel = self
                if mine:
                    waiter.done = True
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            if mine:
                waiter.done = True
            try:
                self._let_go()
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go()
            raise
        return not mine or waiter.channel is not None

    def _stand(self, waiter: StandingWaiter) -> bool:
        """Queue the waiter of a `merge`, which does not wait yet. False: it is not queued, a receive need not wait."""
        if forked and self._epoch is not _fork.epoch:
            self._refresh()
        lock = self._lock
        if lock._is_owned():
            raise self._reentered("merge", "try_recv")
        try:
            lock.acquire()
            ready = bool(self._closed or self._buffer or self._another_sender(waiter))
            if not ready:
                self._room = 0
                self._receivers = self._queue(self._receivers, waiter)
            lock.release()
            if self._attention:
                self._attend()
        except BaseException:
            try:
                self._let_go()
            except RecursionError:
                if lock._is_owned():
                    lock.release()
            except BaseException:
                self._let_go()
            raise
        return not ready

    def _reentered(self, operation: str, instead: str) -> RuntimeError:
        return RuntimeError(
            f"{operation} on {self!r} in a signal handler or finalizer that interrupted an operation on it: "
            f"waiting would never end, use {instead}"
        )

    # -- inside, with the lock held ------------------------------------------------------------------------------------

    def _put(self, value: T) -> bool:
        """Send on the open channel: whether there was a receiver, or room."""
        if self._receivers and self._serve_receiver(value):
            return True
        if len(self._buffer) < self._capacity:
            self._buffer.append(value)
            return True
        return False

    def _take(self) -> Any:
        """The next value, or NOTHING."""
        value: Any = NOTHING
        try:
            buffer = self._buffer
            if buffer:
                value = buffer[0]
                del buffer[0]
                if self._senders:
                    self._refill()
            elif self._senders and (entry := self._first_sender(True)) is not None:
                value = entry[1]
                entry[0].park.release()
            return value
        except BaseException:
            if value is not NOTHING:
                try:
                    self._let_go(None, value)
                except RecursionError:
                    buffer.appendleft(value)
                except BaseException:
                    self._let_go(None, value)
            raise

    def _refill(self) -> None:
        """After a value left the full buffer: let the first parked sender's value in."""
        buffer = self._buffer
        if len(buffer) < self._capacity and (entry := self._first_sender(True)) is not None:
            buffer += (entry[1],)  # not append(): an interrupt at its end would leave the sender parked
            entry[0].park.release()

    # Loops are in functions of their own, because the jump back of a loop may be outside of the `try` around it.

    def _let_in(self) -> None:
        """After values left the full buffer: let the values of parked senders in, as far as there is room."""
        while len(self._buffer) < self._capacity and (entry := self._first_sender(True)) is not None:
            buffer: Any = self._buffer
            buffer += (entry[1],)
            entry[0].park.release()

    def _take_some(self, taken: list[Any], limit: int) -> None:
        """Move ``limit`` values of the buffer to ``taken``."""
        buffer: Any = self._buffer
        while limit > 0 and buffer:
            taken += (buffer[0],)  # not a call, between which and the `del` an exception could come
            del buffer[0]
            limit -= 1

    def _take_from_senders(self, taken: list[Any], limit: int | None) -> None:
        """At capacity 0: take from the hands of parked senders, until there are ``limit`` values."""
        while (limit is None or len(taken) < limit) and (entry := self._first_sender(True)) is not None:
            taken += (entry[1],)
            entry[0].park.release()

    def _serve_receivers(self, values: list[Any], sent: int) -> int:
        """Hand the values from number ``sent`` on to the receivers that wait: the number of the next."""
        while sent < len(values) and self._serve_receiver(values[sent]):
            sent += 1
        return sent

    def _serve_receiver(self, value: Any) -> bool:
        waiter = self._first_receiver()
        if waiter is None:
            return False
        waiter.value = value
        waiter.ok = True
        waiter.channel = self
        waiter.done = True
        waiter.park.release()
        return True

    def _first_receiver(self) -> Waiter | None:
        """The first live receiver, out of the queue and bound to be served by the caller in its next steps."""
        queue = self._receivers
        while queue:
            waiter: Waiter = queue[0]
            left = waiter.left
            if left is not None:
                left.append(self)  # before it looks for the ticket (StandingWaiter)
            if not waiter.done:
                if waiter.ticket is None:
                    del queue[0]
                    return waiter
                try:
                    del waiter.ticket[0]
                    del queue[0]
                    return waiter
                except IndexError:
                    pass  # another channel is serving it
            del queue[0]
        return None

    def _first_sender(self, ok: bool) -> list[Any] | None:
        """The first live sender's entry, out of the queue and marked as served; the caller moves the value."""
        queue = self._senders
        while queue:
            entry: list[Any] = queue[0]
            waiter: Waiter = entry[0]
            if not waiter.done:
                try:
                    if waiter.ticket is not None:
                        del waiter.ticket[0]
                    del queue[0]
                    waiter.ok = ok
                    waiter.channel = self
                    waiter.index = entry[2]
                    waiter.done = True
                    return entry
                except IndexError:
                    pass
            del queue[0]
        return None

    # In functions of their own: Python 3.14 inlines `any(...)`, and its jump back is outside of a `try` around it.

    def _another_sender(self, waiter: Waiter) -> bool:
        """Whether somebody else waits to send."""
        queue = self._senders
        while queue and queue[0][0].done:
            del queue[0]
        return any(entry[0] is not waiter and not entry[0].done for entry in queue)

    def _another_receiver(self, waiter: Waiter) -> bool:
        """Whether somebody else waits to receive, or did until a moment ago, which shows when it is to be served."""
        queue = self._receivers
        while queue and queue[0].done and queue[0].left is None:
            del queue[0]
        return any(other is not waiter and not other.done for other in queue)

    def _queue(self, queue: Any, entry: Any) -> deque[Any] | list[Any]:
        """``queue``, or a new one in its place, with ``entry`` at its end: a list as long as it is short, as one or two
        are what mostly wait, and a deque takes as much memory as eight lists of them.
        """
        if queue == ():
            return [entry]
        if len(queue) >= self._tidy_at:
            queue = deque(e for e in queue if not (w := e[0] if e.__class__ is list else e).done or w.left is not None)
            self._tidy_at = 2 * len(queue) + TIDY_AT
        queue.append(entry)
        return queue  # type: ignore[no-any-return]

    def _complete_close(self) -> None:
        """Do what `closing` has on record. Interrupted anywhere, it can be done again."""
        record = closing.get(id(self))
        if record is not None and not self._closed:
            while (entry := self._first_sender(False)) is not None:
                entry[0].park.release()
            if record[0] is not NOTHING:
                buffer: Any = self._buffer if self._buffer != () else deque()
                buffer += record[:1]
                self._buffer = buffer
            record[1] = True
            self._room = 0
            self._closed = True
            del closing[id(self)]
        elif record is not None:
            del closing[id(self)]  # this close came after another one was complete
        if self._closed:
            while (waiter := self._first_receiver()) is not None:
                buffer = self._buffer
                if buffer:
                    waiter.value = buffer[0]
                    waiter.ok = True
                    del buffer[0]
                waiter.channel = self
                waiter.done = True
                waiter.park.release()
            self._receivers = self._senders = ()
        self._attention = False
        if id(self) in closing:  # a close was recorded meanwhile, and its flag may just have been cleared
            self._attention = True


def _look_at(cancel: SupportsDone) -> None:
    """Raise `Cancelled` if ``cancel`` is done, and an error if it cannot be waited for."""
    try:
        channel: Channel[Any] = cancel.done._channel  # type: ignore[assignment] # there is no other
    except AttributeError:
        channel = _done_of(cancel)  # which says what is wrong with it
    if channel._closed:
        raise _cancelled(cancel)
    if channel._lock._is_owned():
        if channel._attention:
            raise _cancelled(cancel)
        raise channel._reentered("cancel=", "try_send or try_recv")


def _whole(what: str, value: Any, least: int, otherwise: str = "") -> int:
    """The whole number, of whatever type. Raises `TypeError` and `ValueError`."""
    said = f"{what} must be a whole number, {least} or more{otherwise}, not {value!r:.200}"
    if isinstance(value, bool):
        raise TypeError(said)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(said) from None
    if number < least:
        raise ValueError(said)
    return number


def _limit(limit: Any) -> int:
    return _whole("limit", limit, 1, ", or None for all")


def _checked(capacity: Any, name: Any) -> int:
    """The capacity of a channel. Raises `TypeError` and `ValueError`, for its name too."""
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"the name of a channel must be text, or None, not {name!r:.200}")
    return _whole("capacity", capacity, 0)


def _done_of(cancel: SupportsDone) -> Channel[Any]:
    """The channel that closes when ``cancel`` is done."""
    try:
        return cancel.done._channel  # type: ignore[return-value] # there is no other
    except AttributeError:
        hint = ""
        if hasattr(cancel, "_channel"):
            hint = ": pass the token, not its done"
        elif hasattr(getattr(cancel, "token", None), "done"):
            hint = ": pass its token"
        raise TypeError(
            f"cancel= takes a CancelToken, or an object whose done is a receiver, not {cancel!r:.200}{hint}"
        ) from None


def _cancelled(cancel: SupportsDone | None) -> Cancelled:
    return Cancelled(getattr(cancel, "cause", None))


def _snapshot(queue: Any) -> list[Any]:
    """The queue as it was at some moment, for `repr`, which takes no lock."""
    while True:
        try:
            return list(queue)
        except RuntimeError:  # it changed meanwhile
            continue
