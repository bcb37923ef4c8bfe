"""Parking: how a blocked operation waits. This is the only file that uses ``_thread``, so that a test can replace it
and decide every thread switch.

Invariants of a `Waiter` (Go's sudog):

- ``park`` is locked from the beginning. A thread that serves the waiter writes ``value``, ``ok``, ``channel`` and
  ``index``, then ``done``, and unlocks ``park`` last; the woken thread takes no other lock. ``channel`` is the channel
  that served it.
- A waiter that is queued on one channel is served under that channel's lock. A waiter that is queued on several
  channels has a ``ticket``; the thread that claims the ticket serves it.
- ``done`` without a ``channel`` means that the waiter was withdrawn. Queues skip waiters that are done, and drop them
  when they tidy up next.

**Claiming once.** A ticket is a list with one element. The thread that deletes the element has claimed the ticket; any
other thread gets ``IndexError``. This decides who serves a waiter, runs a cancel callback, or ends a task. ``del
ticket[0]`` is a single step, which no other thread, signal handler or asynchronous exception can split. A call of
``lock.acquire`` or of a function ``claim(ticket)`` can be split, so ``del ticket[0]`` is written out wherever a ticket
is claimed.

A `StandingWaiter` stays in the queues of many channels while it is served again and again.
"""

from __future__ import annotations

import _thread
import os
import time
from _frozen_importlib import BuiltinImporter  # as in importlib.machinery, but without the import of importlib
from _thread import RLock, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import Protocol

    class Served(Protocol):
        done: bool


__all__ = [
    "NOTHING",
    "RLock",
    "StandingWaiter",
    "Waiter",
    "deadline_after",
    "get_ident",
    "give_way",
    "handed_over",
    "monotonic",
    "parked_waiters",
    "refuse_greenlets",
    "refuse_patched",
    "yielded",
]


def _own_clock() -> Callable[[], float]:
    """`time.monotonic` from a private copy of the module `time`.

    freezegun and mocks replace the function wherever they find it, even if they start before this file is imported.
    With their clock, which stands still, timeouts would never end.
    """
    try:
        spec = BuiltinImporter.find_spec("time")
        if spec is not None and (own := BuiltinImporter.create_module(spec)) is not None:
            BuiltinImporter.exec_module(own)
            return own.monotonic  # type: ignore[no-any-return]
    except Exception:  # no CPython
        pass
    return time.monotonic


monotonic: Callable[[], float] = _own_clock()


class _Nothing:
    """The marker for "no value", because every Python object, including ``None``, may be sent through a channel."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<nothing>"


NOTHING: Final[Any] = _Nothing()

# The waiters that are parked: what they do, on which channels or cases, in which thread, since when. For people
# (`_parked`): nothing in here decides by it.
parked_waiters: dict[Waiter, tuple[str, Any, int, float]] = {}

# The partner is often about to run: giving the processor away a few times is far cheaper than two futex wake-ups.
# (Not time.sleep(0), which costs ten times as much. Windows has no such call and goes straight to the park.)
_YIELDS = 10
_yield: Callable[[], None] | None = getattr(os, "sched_yield", None)
# Where other programs want the processor too, it is gone for milliseconds when it is given away, while a thread that
# wakes up is let in at once. One look at the clock tells: then all threads park at once, for a while.
_GONE: Final = 0.0002  # seconds; the partner, if it was that, would have served this waiter meanwhile
_CROWDED: Final = 0.05  # seconds
_ALONE: Final = 0.001  # seconds after the last value
_FOREVER: Final = float("inf")  # seconds
_yield_from: float = 0.0  # of `monotonic`; a hint, which threads may overwrite for each other


def yielded(waiter: Served) -> bool:
    """Give the processor away a few times, where that helps. Returns whether the waiter was served."""
    global _yield_from
    if _yield is not None:
        now = monotonic()
        if now >= _yield_from:
            for _ in range(_YIELDS):
                _yield()
                if waiter.done:
                    return True
                began, now = now, monotonic()
                if now - began > _GONE:
                    _yield_from = now + _CROWDED
                    break
    return False


def give_way() -> None:
    """Give the processor away once, where that helps: a thread that was just woken cannot run while this one has the
    GIL, and is woken twice where it has to wait for it.
    """
    global _yield_from
    if _yield is not None:
        began = monotonic()
        if began >= _yield_from:
            _yield()
            now = monotonic()
            if now - began > _GONE:
                _yield_from = now + _CROWDED


def handed_over(before: float) -> float:
    """A thread that waited was given a value, as the one ``before`` was: give way to it if this value comes alone, and
    is not the first of many, which are read faster together. Returns the time.
    """
    now = monotonic()
    if now - before > _ALONE:
        give_way()
    return now


class Waiter:
    """One blocked operation."""

    __slots__ = ("channel", "done", "index", "ok", "park", "ticket", "value")

    park: Any
    ticket: list[None] | None  # None: queued on one channel only
    done: bool
    ok: bool
    value: Any
    channel: Any  # the channel that served it
    index: int  # which case of a select was served; -1 for a receive, found by its channel
    left: Any = None  # see `StandingWaiter`

    def __init__(self, ticket: list[None] | None = None) -> None:
        if _thread.allocate_lock is not allocate_lock:
            refuse_patched()
        self.park = park = allocate_lock()
        park.acquire()
        self.ticket = ticket
        self.done = self.ok = False
        self.value = NOTHING
        self.channel = None
        self.index = -1

    def wait(self, deadline: float | None, operation: str, where: Any) -> bool:
        """Park until served, and return True; return False once the deadline (of `monotonic`) has passed.

        ``operation`` on ``where``, a channel or the cases of a select, is what `channels.parked` shows of it.
        """
        if yielded(self):
            return True
        parked_waiters[self] = (operation, where, get_ident(), monotonic())
        try:  # no call before it, after which an interrupt could leave the entry there
            if deadline is None:
                return bool(self.park.acquire())
            return self._wait_until(deadline)
        finally:
            del parked_waiters[self]

    # A function of its own: CPython may leave the jump back of a loop out of the `try` around it.
    def _wait_until(self, deadline: float) -> bool:
        while (left := deadline - monotonic()) > 0:
            if self.park.acquire(True, min(left, TIMEOUT_MAX)):
                return True
        return self.done

    def withdraw(self) -> None:
        """Make sure that no thread will serve this waiter, which has a ticket, any more. ``channel`` tells whether one
        has."""
        try:
            del self.ticket[0]  # type: ignore[union-attr]
            self.done = True
        except IndexError:
            if not self.done:
                self.park.acquire()  # its server is between the ticket and the unlock


class StandingWaiter(Waiter):
    """Waits for many channels, again and again, at a cost that does not grow with their number.

    It waits from `arm` until it is served or disarmed. Between two waits it has no ticket, but keeps its places in the
    queues: a thread that finds it there takes it out and goes on to the next waiter. A thread that takes it out of a
    queue, whether it serves it or not, adds the channel to ``left`` *before* it looks for the ticket, and `arm` makes
    the ticket before its owner looks into ``left``. So either that thread sees that it waits, or its owner sees that
    the channel has something.
    """

    __slots__ = ("armed", "left")

    def __init__(self) -> None:
        super().__init__([])
        self.left: deque[Any] | None = deque()  # channels in whose queue it no longer is; None: it is over
        self.armed = False

    def arm(self) -> None:
        """Wait from now on. The last value that it was served has been collected."""
        ticket: Any = self.ticket
        self.done = self.ok = False
        self.channel = None
        self.armed = True
        ticket += [None]  # no call, which an interrupt could follow

    def collect(self, channels: Any) -> None:
        """Park until served. Takes each unlocking of ``park`` exactly once, because otherwise the next wait would end
        at once.

        ``channels`` are those that it waits for, which `channels.parked` shows.
        """
        yielded(self)
        parked_waiters[self] = ("merge", channels, get_ident(), monotonic())
        try:
            self.park.acquire()
        finally:
            del parked_waiters[self]
        self.armed = False

    def disarm(self) -> None:
        """Stop waiting. ``channel`` tells whether it was served."""
        try:
            del self.ticket[0]  # type: ignore[union-attr]
        except IndexError:
            self.park.acquire()
        self.armed = False

    def retire(self) -> None:
        """Mark it as done, so that queues drop it when they tidy up next. Does not wait, so finalizers may call it."""
        self.done = True
        self.left = None


def refuse_patched() -> None:
    """Raise `RuntimeError` if locks and threads were replaced after the import: a wait on one of the old locks stops
    every greenlet, including the one that it waits for.
    """
    if _thread.allocate_lock is not allocate_lock:
        raise RuntimeError(
            "gevent or eventlet has patched locks and threads after channels was imported, so that a wait here would "
            "stop every greenlet: patch first (gevent.monkey.patch_all()), then import channels"
        )


def refuse_greenlets(what: str) -> None:
    """Raise `RuntimeError` if a new thread would be a greenlet, whose wait stops all others: `refuse_patched`, and
    gevent and eventlet that came before the import.
    """
    refuse_patched()
    if getattr(_thread.allocate_lock, "__module__", "").partition(".")[0] in ("gevent", "eventlet"):
        raise RuntimeError(
            f"{what} needs a thread of the system, and gevent or eventlet makes greenlets of threads: it would stop "
            "every other greenlet while it waits. Operations that wait on a channel work, also with timeout="
        )


def deadline_after(timeout: float | None) -> float | None:
    """The deadline ``timeout`` seconds from now; None when there is none (``None`` and ``inf``)."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        timeout = _seconds(timeout)
    if timeout != timeout or timeout < 0:
        raise ValueError(f"timeout must be a number of seconds, 0 or more, not {timeout!r:.200}")
    try:
        return None if timeout == _FOREVER else monotonic() + timeout
    except OverflowError:  # an int beyond the floats: longer than anyone waits
        return None


def _seconds(timeout: Any) -> float:
    """The seconds as a float, for other kinds of numbers: numpy's, `Fraction`, `Decimal`."""
    from decimal import Decimal
    from numbers import Real

    if isinstance(timeout, (Real, Decimal)) and not isinstance(timeout, bool):
        try:
            return float(timeout)
        except OverflowError:  # a fraction beyond the floats
            return int(timeout)  # type: ignore[arg-type]
    seconds = getattr(timeout, "total_seconds", None)
    hint = "" if seconds is None else ": say .total_seconds()"
    raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r:.200}{hint}")
