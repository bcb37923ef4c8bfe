"""One cache of threads for the whole process: those of streams, and helpers. A stream on a warm process starts none.

Guarantees, after trio's thread cache (https://github.com/python-trio/trio/blob/main/src/trio/_core/_thread_cache.py):

- What is started runs at once, on a thread that nothing else runs on: one that is idle, or a new one. There is no queue
  and no bound.
- Of the threads that are idle, the last to become so is the next to work. What a burst has left over is therefore never
  needed, and ends after `IDLE` seconds, though there is always a little to do.
- A thread has the name of what it runs, and is called `IDLE_NAME` in between. It holds nothing of what it has run.
- What is started may raise: it is told to `threading.excepthook`, as if the thread had been its own.

An idle thread has a seat, on which it is given what it has to run (`_Seat`). It waits for a lock and not for a channel,
since every call of foreign code pays for it.

All are daemons: those that are busy when the interpreter ends belong to streams, which are ended and waited for then
(`stream/_at_exit`). A subinterpreter cannot end while it has threads: there the idle ones are ended first. A forked
child has none of them.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Final

from channels._exit import exit_seconds
from channels._park import yielded
from channels._timer import _in_subinterpreter

IDLE: Final = 5.0  # seconds that a thread waits for something to run before it ends
IDLE_NAME: Final = "lockgate-idle"
_GOODBYE: Final = 1.0  # seconds that idle threads of a subinterpreter have to end
_numbers = itertools.count(1)


class Running:
    """A function that runs on a thread of the cache, with what is known of it as of a `threading.Thread`."""

    __slots__ = ("__weakref__", "_alive", "_among", "_ended", "_function", "_thread", "name")

    def __init__(self, function: Callable[[], object], name: str) -> None:
        self.name = name
        self._among: set[Running] | None = None
        self._function: Callable[[], object] | None = function
        self._thread: threading.Thread | None = None
        self._alive = True
        self._ended = allocate_lock()  # until it has ended
        self._ended.acquire()

    @property
    def ident(self) -> int | None:
        """The identity of the thread, while the function runs: afterwards it runs something else."""
        thread = self._thread
        return thread.ident if thread is not None and self._alive else None

    @property
    def begun(self) -> bool:
        """Whether it has come to a thread."""
        return self._thread is not None

    def is_alive(self) -> bool:
        """Whether the function has not returned."""
        thread = self._thread
        return self._alive and (thread is None or thread.is_alive())

    def join(self, timeout: float | None = None) -> None:
        """Wait until the function has returned."""
        if self._ended.acquire(timeout=-1 if timeout is None else max(timeout, 0.0)):
            self._ended.release()

    def is_among(self, others: set[Running]) -> None:
        """It is one of them as long as it runs."""
        self._among = others
        others.add(self)
        if not self._alive:  # it was over before it was there
            others.discard(self)

    def rename(self, name: str) -> None:
        """From now on it runs for something else, and is called so."""
        self.name = name
        thread = self._thread
        if thread is not None and self._alive:
            thread.name = name

    def run(self, thread: threading.Thread) -> None:
        """On the thread."""
        function, self._function = self._function, None
        try:
            self._thread, thread.name = thread, self.name
            if function is not None:
                function()
        except BaseException:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), thread)))
        finally:
            try:
                function = None  # first: who has waited for the end may look whether anything holds it
                thread.name = IDLE_NAME
            finally:
                self._alive = False
                if self._among is not None:
                    self._among.discard(self)
                self._ended.release()

    def __repr__(self) -> str:
        return f"<Running {self.name}{'' if self._alive else ', over'}>"


class _Seat:
    """A thread that waits for something to run. Whoever has taken it out of `_Idle.waiting` is the only one to give it
    something: that is written first, and then the item of ``free`` deleted. The thread deletes it to leave. Only one of
    them can, in a single step, which no exception splits.
    """

    __slots__ = ("done", "free", "given", "thread", "wake")

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        self.given: Running | None = None  # what it is to run; None where it is to end
        self.free = [None]
        self.done = False  # it was given something, or told to end
        self.wake = allocate_lock()  # until then
        self.wake.acquire()

    def give(self, running: Running | None) -> bool:
        """Let the thread run it, or end. Whether it had not left. For the one that has taken it from `_Idle`."""
        self.given = running
        try:
            del self.free[0]
        except IndexError:
            return False
        self.done = True
        self.wake.release()
        return True


class _Idle:
    """The threads that wait for something to run, as a stack."""

    def __init__(self) -> None:
        self.waiting: list[_Seat] = []
        self.over = False  # no thread shall wait any more

    def give(self, running: Running) -> bool:
        """Give it to an idle thread; whether there was one."""
        while True:
            try:
                seat = self.waiting.pop()  # a single step
            except IndexError:
                return False
            if seat.give(running):
                return True

    def wait(self, thread: threading.Thread) -> Running | None:
        """Wait for something to run. None where the thread is to end."""
        seat = _Seat(thread)
        try:
            self.waiting.append(seat)
            if not yielded(seat):
                seat.wake.acquire(timeout=0 if self.over else IDLE)
        except BaseException:  # one that was thrown at what had run here, and came too late
            pass
        try:
            del seat.free[0]
        except IndexError:
            return seat.given
        with contextlib.suppress(ValueError):
            self.waiting.remove(seat)
        return None


_idle = _Idle()


def start(function: Callable[[], object], name: str | None = None, *, among: set[Running] | None = None) -> Running:
    """Run ``function`` on a thread of its own. Raises `RuntimeError` where none can be had.

    ``name`` is that of the thread meanwhile; helpers, which have none, are numbered. It is ``among`` others as long as
    it runs.
    """
    running = Running(function, name or helper_name())
    launch(running)
    if among is not None:
        running.is_among(among)
    return running


def launch(running: Running) -> None:
    """Run it on a thread of its own. Raises `RuntimeError` where none can be had."""
    if not _idle.give(running):
        first = [running]  # to be taken out of there: a thread holds its arguments as long as it lives
        threading.Thread(target=_work, args=(first,), name=running.name, daemon=True).start()


def helper_name() -> str:
    """A name for a helper, which has none by itself."""
    return f"lockgate-helper-{next(_numbers)}"


def _work(first: list[Running]) -> None:
    """The function of a thread."""
    thread = threading.current_thread()
    running: Running | None = first.pop()
    while running is not None:
        running.run(thread)
        running = None
        running = _idle.wait(thread)


def idle_threads() -> int:
    """How many threads wait for something to run."""
    return len(_idle.waiting)


def end_idle(timeout: float) -> None:
    """End the threads that are idle now, and wait for them, ``timeout`` seconds for all."""
    until = time.monotonic() + timeout
    for seat in list(_idle.waiting):
        with contextlib.suppress(ValueError):  # somebody gives it something, or it leaves
            _idle.waiting.remove(seat)
            seat.give(None)
        seat.thread.join(max(until - time.monotonic(), 0.0))


def _at_exit() -> None:
    if threading.active_count() > 1 and _in_subinterpreter():  # to ask takes an import
        _idle.over = True
        end_idle(exit_seconds(_GOODBYE))


def _in_child() -> None:
    global _idle
    _idle = _Idle()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
