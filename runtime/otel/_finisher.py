"""Ends spans on a helper thread: span processors and exporters are foreign code, which may be slow or stand still.

The helper takes all that have gathered in a tenth of a second. A helper for each span would be another thread for the
worker to hand the interpreter to, several times a turn: that took longer than the spans did.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from channels import Channel, ChannelClosed
from channels._lazy import lazy_logger
from channels._timer import call_apart, call_at

from ..execution._helpers import HelperPool

_logger = lazy_logger("runtime")
_QUEUE: Final = 10_000  # jobs that wait for an exporter which stands still; more are dropped
_GATHER: Final = 0.1  # seconds that a job may wait for others to be done with it
_MANY: Final = 256  # jobs that wait for no more
Job = Callable[[], object]


class Finisher:
    """Does jobs one after the other, in their order, on a helper that runs as long as there are some. Any thread."""

    def __init__(self, helpers: HelperPool, failed: Callable[[str], object]) -> None:
        self._helpers = helpers
        self._failed = failed  # told of an exception, while it is handled
        self._begin()
        _finishers.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # for _state
        self._state: Literal["idle", "due", "busy"] = "idle"  # due: a timer will start the helper; busy: it runs
        self._jobs: deque[Job] = deque()
        self._late: Channel[None] | None = None  # of the wait that was in vain
        self._dropped = False

    def put(self, job: Job) -> None:
        """Have ``job`` done. Does not wait."""
        waiting = len(self._jobs)
        if waiting >= _QUEUE:
            if not self._dropped:
                self._dropped = True
                _logger.warning("spans are dropped: %d wait for an exporter of OpenTelemetry", _QUEUE)
            return
        self._jobs.append(job)
        if self._state != "idle" and waiting < _MANY:  # it is seen before the helper leaves, or when the next is put
            return
        if waiting >= _MANY:
            self._start()
            return
        with self._lock:
            if self._state != "idle":
                return
            self._state = "due"
        try:
            # Apart: an executor of the user's, or an exporter where there is no helper, would hold up every timer.
            call_at(time.monotonic() + _GATHER, functools.partial(call_apart, self._start))
        except RuntimeError:  # the interpreter exits, or there is no thread to be had
            self._start()
        except BaseException:
            self._state = "idle"  # the next job finds this one, too
            raise

    def _start(self) -> None:
        """Have the jobs done that wait, unless a helper is about it."""
        with self._lock:
            if self._state == "busy" or not self._jobs:
                return
            self._state = "busy"
        try:
            self._helpers.submit(self._work)
        except Exception:  # no thread is to be had: the runtime is closed, or the interpreter exits
            self._work()
        except BaseException:
            self._state = "idle"
            raise

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                with self._lock:
                    self._state = "idle"
                with self._lock:
                    if not self._jobs or self._state != "idle":
                        return
                    self._state = "busy"  # one came that took this for busy still
                continue
            try:
                job()
            except BaseException:
                self._failed("the end of a span")

    def wait(self, seconds: float) -> None:
        """Wait until what was put is done, ``seconds`` at most; not again, while it stands still."""
        if (self._state == "idle" and not self._jobs) or (self._late is not None and not self._late.closed):
            return
        done: Channel[None] = Channel(name="spans ended")
        self.put(done.close)
        self._start()
        try:
            done.recv(seconds)
        except ChannelClosed:
            pass
        except TimeoutError:
            self._late = done
            _logger.warning("spans were not ended within %g s: an exporter stands still, or no helper is free", seconds)

    def __repr__(self) -> str:
        return f"<Finisher, {len(self._jobs)} jobs wait>"


_finishers: weakref.WeakSet[Finisher] = weakref.WeakSet()


def _in_child() -> None:
    """A forked child has none of the threads, and the jobs are its parent's."""
    for finisher in list(_finishers):
        finisher._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
