"""What streams did at one moment, read once, so that what is said of it fits together.

A stream goes on while it is looked at: its worker comes back from a call or is taken over by another thread, and a
thread that was its own runs another stream. So what a thread was parked in, and where it was, is said of a worker or a
call only if the same thread had it before and after that was read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from threading import Thread
from types import FrameType
from typing import TypeVar

from channels import Parked, parked
from channels._park import monotonic

from .._dataclasses import dataclass
from ..execution._calls import Call
from ..execution._threads import Running
from ..stream._core import StreamCore

T = TypeVar("T")


@dataclass(slots=True)
class Worker:
    """What the worker of a stream did."""

    alive: bool  # whether it had begun, and not come to its end
    rest: tuple[object, Call] | None  # which rest it was of it, and the call that its thread made meanwhile
    wait: Parked | None  # what it was parked in; None where it was not, or went on while it was looked at
    frame: FrameType | None  # where it was; None where it rested, or went on


@dataclass(slots=True)
class Seen:
    """What was seen of one stream."""

    worker: Worker
    calls: list[tuple[Call, int | None]]  # those under way, longest first, and the thread that each was on all the time
    ended: list[Call]  # those that have ended while it was looked at
    threads: list[tuple[Running, int | None]]  # its threads, likewise


class Look:
    """A look at streams, without a lock and without waiting for anybody. Any thread, also a signal handler."""

    def __init__(self, cores: Iterable[StreamCore]) -> None:
        self.cores = list(cores)
        before = [_Reading(core) for core in self.cores]
        self.parked: list[Parked] = parked()
        self.frames: dict[int, FrameType] = sys._current_frames()
        self.now = monotonic()
        self._seen = {core: self._compared(core, each) for core, each in zip(self.cores, before, strict=True)}

    def of(self, core: StreamCore) -> Seen:
        """What was seen of one of the streams."""
        return self._seen[core]

    def _compared(self, core: StreamCore, before: _Reading) -> Seen:
        after = _Reading(core)
        calls = [(call, _same(before.calls.get(call), thread)) for call, thread in after.calls.items()]
        same = before.threads
        threads = [(each, ident if same.get(each) == ident else None) for each, ident in after.threads.items()]
        ended = [call for call in before.calls if call not in after.calls]
        return Seen(self._worker(before, after), sorted(calls, key=_began), ended, threads)

    def _worker(self, before: _Reading, after: _Reading) -> Worker:
        first = next(iter(after.threads), None)
        if first is None:
            return Worker(alive=False, rest=None, wait=None, frame=None)
        worker = Worker(alive=first.is_alive(), rest=after.rest, wait=None, frame=None)
        ident = after.threads[first]
        # What its thread was parked in while it rested, or has since begun to rest, may be foreign code's.
        if after.rest is None and before.rest is None and before.marks(first, ident) and before.mark is after.mark:
            # The last, where a signal handler has come into the wait of the thread.
            own = (wait for wait in reversed(self.parked) if wait.thread_id == ident and wait.task_name is None)
            worker.wait = next(own, None)
            worker.frame = self.frames.get(ident or 0)
        return worker


class _Reading:
    """What is to be the same before and after."""

    __slots__ = ("calls", "mark", "rest", "threads")

    def __init__(self, core: StreamCore) -> None:
        driver = core.driver
        self.mark: object = None if driver is None else driver._rest  # another one as soon as the worker rests again
        self.rest = None if driver is None else driver.rest
        self.threads = {thread: thread.ident for thread in list(core.threads)}
        self.calls = {call: call.thread for call in under_way(core)}

    def marks(self, first: Running, ident: int | None) -> bool:
        """Whether this thread was the worker's."""
        return next(iter(self.threads), None) is first and self.threads[first] == ident


def under_way(core: StreamCore) -> list[Call]:
    """The calls of a stream that are under way."""
    return snapshot(core.calls._live) + [call for call in snapshot(core.calls._nested) if not call.over]


def snapshot(live: Iterable[T]) -> list[T]:
    """The elements of a set or a dict that other threads change meanwhile."""
    while True:
        try:
            return list(live)
        except RuntimeError:  # it changed while it was copied
            continue


def since(began: float, now: float) -> float:
    """For how long. What has begun while it was looked at, for no time."""
    return round(max(now - began, 0.0), 3)


def _same(before: Thread | None, after: Thread | None) -> int | None:
    return after.ident if after is not None and before is after else None


def _began(call: tuple[Call, int | None]) -> float:
    return call[0].began
