"""What a channel does after an asynchronous exception, and in a forked child: nothing is lost, nobody waits in vain.

Signal handlers, finalizers and asynchronous exceptions (Ctrl-C) come between any two lines of `Channel` and of this
file. CPython looks for them when a call begins or returns and when a loop jumps back, not between plain loads, stores
and ``del q[0]``. What must be one step is written without a call in it: mark a waiter and then unlock it, return a
value (hence no ``typing.cast``). A value is ``buffer[0]`` first, and popped then: at the end of a ``popleft()`` that
returned it, an exception would lose it. ``tests/`` has an explorer that throws one at every such point.

The words of cleaning up, here and in what waits for channels:

- **withdraw**: stop waiting. Afterwards the waiter tells whether it was served before that.
- **put back**: give a value that was taken to the next receiver, or to the front of the buffer.
- **attend**: complete a close that was recorded while the channel was busy.
- **let go**: all that an exception in the middle of an operation asks for: free the lock, withdraw, put back, attend.
- **refresh**: in a forked child, forget the threads that are gone.
- **insist**: call one of these again until it comes to its end. Each may be done twice.

Every operation that takes the lock ends like this, spelt out because no function could do it for another one::

    except BaseException:
        try:
            self._let_go(waiter, value)
        except RecursionError:  # at the end of the stack every call of a Python function fails: C alone frees the lock
            if lock._is_owned():
                lock.release()
        except BaseException:  # a second exception, before the first line of `_let_go`
            self._let_go(waiter, value)
        raise

`_let_go` and `_attend` have loops of their own in place of `insist`, which would need more of the stack than there may
be left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from . import _fork
from ._park import NOTHING, RLock, Waiter, get_ident

TRIES: Final = 100  # exceptions in a row that cleaning up survives: more come from a full stack, not from signals
PATIENCE: Final = 1.0  # seconds a finalizer may wait for a lock: two threads, two channels, two finalizers deadlock

# Closes under way: id of the channel -> [final value, whether it closed the channel, the channel]. By identity: a
# subclass may have an ``__eq__`` of its own.
closing: dict[int, list[Any]] = {}


def insist(function: Callable[..., object], *args: Any) -> None:
    """Call a function that may be called twice, until it comes to its end. What came into it is raised then."""
    interrupted = None
    for _ in range(TRIES):
        try:
            function(*args)
            break
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        try:
            raise interrupted
        finally:
            del interrupted  # its traceback holds this frame


class Rescue:
    """The base of `Channel`: its cleaning up. Nothing here is called with the lock held, but by who was interrupted."""

    __slots__ = ("_attention", "_buffer", "_epoch", "_lock", "_receivers", "_senders")

    _attention: bool  # a close is recorded in `closing`
    _buffer: Any  # deque or ()
    _epoch: object  # of the process that its lock and queues belong to
    _lock: Any  # RLock: typeshed does not know _is_owned
    _receivers: Any  # list of Waiter, deque where there are many, or ()
    _senders: Any  # of [Waiter, value, index of the case], likewise

    def _first_receiver(self) -> Waiter | None:
        raise NotImplementedError

    def _complete_close(self) -> None:
        raise NotImplementedError

    def _let_go(self, waiter: Waiter | None = None, value: Any = NOTHING, entry: Any = None) -> None:
        """After an asynchronous exception: free the lock, withdraw the waiter, give back what was taken.

        A second exception in here must not leave the work half done; the first is on its way up. `_withdraw` is spelt
        out, so that there is room on the stack for all of this where there was for `_queue`.
        """
        lock = self._lock
        for _ in range(TRIES):
            try:
                if lock._is_owned():
                    lock.release()
                if waiter is None and value is not NOTHING:
                    taken = Waiter()
                    taken.channel, taken.value = self, value
                    taken.done = True
                    waiter = taken
                if waiter is not None:
                    if waiter.done:
                        pass
                    elif waiter.ticket is None:
                        lock.acquire()
                        waiter.done = True
                        lock.release()
                    else:
                        try:
                            del waiter.ticket[0]
                            waiter.done = True
                        except IndexError:
                            if not waiter.done:
                                waiter.park.acquire()  # its server is between the ticket and the unlock
                    if waiter.channel is None:
                        if entry is not None:
                            entry[1] = None
                    elif waiter.value is not NOTHING:
                        waiter.channel._put_back(waiter)
                    waiter.channel = None
                    waiter, value = None, NOTHING
                if self._attention:
                    self._attend()
                return
            except BaseException:
                continue

    def _let_go_of_many(self, taken: list[Any]) -> None:
        """The same for many values: ``taken`` has one item, the values, which come back in front of the others."""
        lock = self._lock
        for _ in range(TRIES):
            try:
                if not lock._is_owned():
                    lock.acquire()
                if taken[0]:
                    room = deque(taken[0])
                    room.extend(self._buffer)
                    self._buffer = room  # and not taken any more, in the same step
                    taken[0] = ()
                self._hand_out()
                lock.release()
                if self._attention:
                    self._attend()
                return
            except BaseException:
                continue

    def _hand_out(self) -> None:
        """Serve the receivers that have come while the values were away."""
        while self._buffer and (waiter := self._first_receiver()) is not None:
            buffer = self._buffer
            waiter.value = buffer[0]
            waiter.ok = True
            del buffer[0]
            waiter.channel = self
            waiter.done = True
            waiter.park.release()

    def _put_back(self, holder: Waiter) -> None:
        """Give the value that ``holder`` was served to the next receiver, or put it back in front."""
        lock = self._lock
        try:
            if not lock._is_owned():  # by an attempt that was interrupted in its last line
                lock.acquire()
            value = holder.value
            if value is not NOTHING:
                room: deque[Any] = self._buffer if self._buffer != () else deque()
                receiver = None if room else self._first_receiver()
                holder.value = NOTHING
                if receiver is not None:
                    receiver.value, receiver.ok, receiver.channel = value, True, self
                    receiver.done = True
                    receiver.park.release()
                else:
                    self._buffer = room
                    room.appendleft(value)
        finally:
            for _ in range(TRIES):
                try:
                    if lock._is_owned():
                        lock.release()
                    break
                except BaseException:
                    continue
        if self._attention:
            self._attend()

    def _attend(self) -> None:
        """Complete a close that was recorded while the channel was busy."""
        lock = self._lock
        while self._attention and not lock._is_owned():
            try:
                if not (lock.acquire(False) or lock.acquire(True, PATIENCE)):
                    return  # whoever holds it attends when it lets go
                self._complete_close()
                lock.release()
            except BaseException:
                for _ in range(TRIES):  # a waiter that is not woken now may never be
                    try:
                        if lock._is_owned():
                            self._complete_close()
                            lock.release()
                        break
                    except BaseException:
                        continue
                else:
                    if lock._is_owned():
                        lock.release()
                raise

    def _resume_close(self) -> None:
        """A close on record is completed, though an exception came into the call that recorded it."""
        if id(self) in closing:
            self._attention = True
            self._attend()

    def _refresh(self) -> None:
        """In a forked child: threads that are gone hold no lock and wait for nothing."""
        lock = RLock()
        with _fork.refreshing:
            recorded = id(self) in closing
            ghosts = self._receivers, self._senders  # kept until the end: dropping them may run anything
            # A handler forked in the middle of an operation, which goes on here. (A new thread may have the identity of
            # one that is gone, and seem to own its locks.)
            busy = self._lock._is_owned() and get_ident() == _fork.survivor
            if self._epoch is not _fork.epoch and not busy:
                self._lock = lock
                self._receivers = self._senders = ()
                self._epoch = _fork.epoch
                if recorded:
                    self._attention = True
        del ghosts
        if self._attention:
            self._attend()
