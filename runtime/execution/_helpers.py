"""Helper threads, on which foreign code runs, so that the worker of a stream only has to wait."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from channels import Channel, ChannelClosed, WouldBlock

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Job = Callable[[], None]

_IDLE = 5.0  # seconds a helper waits for its next job before it ends
_numbers = itertools.count(1)


class HelperPool:
    """Runs jobs, each on a thread of its own: one that is idle, or a new one. Jobs never wait for each other.

    Of the idle threads, the last one to become idle gets the next job, so threads that are left over from a burst stay
    idle and end after a few seconds. `close` ends all idle threads. With ``executor``, jobs run there instead, and wait
    if it is full.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._idle = _Idle()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def submit(self, job: Job) -> Future[None] | None:
        """Run ``job``, which must not raise. The future is the executor's, if there is one."""
        if self._executor is not None:
            return self._executor.submit(job)
        if self._idle.pid != os.getpid():
            self._idle = _Idle(self._idle.closed)  # a forked child has none of these threads
        if self._idle.closed:
            raise RuntimeError("the runtime is closed")
        if not self._idle.give(job):
            thread = threading.Thread(
                target=_help, args=(job, self._idle), name=f"lockgate-helper-{next(_numbers)}", daemon=True
            )
            self._threads.add(thread)
            thread.start()
        return None

    def close(self) -> None:
        """Let idle helpers end. Busy ones end after their job."""
        self._idle.close()

    def join(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds, for all helpers together, until they have ended; then let go of busy ones."""
        deadline = time.monotonic() + timeout
        me = threading.current_thread()  # a tool may close its own runtime
        for thread in list(self._threads):
            if thread is not me and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def __repr__(self) -> str:
        return f"<HelperPool {len(self._threads)} threads{', closed' if self._idle.closed else ''}>"


class _Idle:
    """The helpers that wait for a job, as a stack. Each waits on a channel of its own, which holds the job that it is
    given: who takes a channel off the stack is the only one to send on it.
    """

    def __init__(self, closed: bool = False) -> None:
        self.closed = closed
        self.pid = os.getpid()
        self._waiting: list[Channel[Job]] = []

    def give(self, job: Job) -> bool:
        """Give the job to an idle helper; whether there was one."""
        while True:
            try:
                helper = self._waiting.pop()
            except IndexError:
                return False
            try:
                helper.try_send(job)
                return True
            except (ChannelClosed, WouldBlock):  # it has waited long enough and leaves
                pass

    def wait(self, helper: Channel[Job]) -> Job | None:
        """Wait for a job. None after a few seconds, or when the pool is closed."""
        self._waiting.append(helper)
        if self.closed:
            helper.close()
        try:
            return helper.recv(timeout=_IDLE)
        except (TimeoutError, ChannelClosed):
            helper.close()
        with contextlib.suppress(ValueError):
            self._waiting.remove(helper)
        with contextlib.suppress(ChannelClosed):
            return helper.try_recv()  # it came a moment before
        return None

    def close(self) -> None:
        self.closed = True
        for helper in list(self._waiting):
            helper.close()


def _help(job: Job | None, idle: _Idle) -> None:
    """The function of a helper thread. It holds no reference to its pool, and none to a job that is done."""
    mine: Channel[Job] = Channel(1, name="helper jobs")
    while job is not None:
        job()
        job = None
        job = idle.wait(mine)
