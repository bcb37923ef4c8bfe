"""A receive that waits for a thread which does something else meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _timer
from ._channel import Channel
from ._park import NOTHING, Waiter


class _Ring:
    """What a `Standby` has in place of a lock: whoever serves it rings, and goes on. It may be in a signal handler or a
    finalizer, or hold locks, so ``release`` is C all through, and the timer thread does the rest.
    """

    __slots__ = ("release",)

    def __init__(self, wanted: Callable[[], object]) -> None:
        self.release = _timer.ringing(wanted)


class Standby(Waiter):
    """Waits for the next value of a channel, or for its close, from `begin` until `end`, while the thread that began it
    does something else. When that is there, ``wanted`` is called on the timer thread: it must not block.

    One thread uses it at a time. It has to be ended, as it may have been handed a value.
    """

    __slots__ = ("_awaited",)

    def __init__(self, wanted: Callable[[], object]) -> None:
        self.ticket = [None]
        self.done = self.ok = False
        self.value = NOTHING
        self.channel = None
        self.index = -1
        self.park = _Ring(wanted)
        self._awaited: Channel[Any] | None = None

    def begin(self, channel: Channel[Any]) -> bool:
        """Whether it waits: False where it need not, and then ``wanted`` is not called."""
        self._awaited = channel
        while not channel._enlist(self, None):
            self.ticket, self.done = [None], False  # who was about to send to it was served by another
        return not self.done

    @property
    def served(self) -> bool:
        """Whether it was handed something, or is about to be. Of one that has ended, always."""
        return not self.ticket

    def end(self) -> Any:
        """Wait no more. Returns the value that it was handed, `NOTHING` where there is none."""
        try:
            del self.ticket[0]  # type: ignore[union-attr]
            self.done = True
            self.park = None  # a dead entry may stay in a queue for a while
        except IndexError:
            if not self.done and self._awaited is not None:
                _let_finish(self._awaited)  # its server has the lock, and is between the ticket and `done`
        self.channel = self._awaited = None
        value, self.value = self.value, NOTHING
        return value


def _let_finish(channel: Channel[Any]) -> None:
    lock = channel._lock
    try:
        lock.acquire()
    finally:
        if lock._is_owned():
            lock.release()
