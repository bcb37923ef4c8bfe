"""Helper threads: where foreign code runs, so that the worker of a stream never does more than wait."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future

from channels import Channel, ChannelClosed, WouldBlock

Job = Callable[[], None]

_IDLE = 5.0  # seconds a helper waits for its next job before it ends
_numbers = itertools.count(1)


class HelperPool:
    """Runs jobs, each on a thread of its own: one that is idle, or a new one. Jobs never wait for each other.

    Idle helpers are parked on a rendezvous channel, so that "is anyone idle?" and "here is a job" are one step. They
    end after a few idle seconds, and at `close`. With ``executor``, jobs go there instead, and wait when it is full.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._jobs: Channel[Job] = Channel(name="helper jobs")
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def submit(self, job: Job) -> Future[None] | None:
        """Run ``job``, which must not raise. The future is the executor's, if there is one."""
        if self._executor is not None:
            return self._executor.submit(job)
        try:
            self._jobs.try_send(job)
        except WouldBlock:
            thread = threading.Thread(
                target=_help, args=(job, self._jobs), name=f"lockgate-helper-{next(_numbers)}", daemon=True
            )
            self._threads.add(thread)
            thread.start()
        except ChannelClosed:
            raise RuntimeError("the runtime is closed") from None
        return None

    def close(self) -> None:
        """Let idle helpers end. Busy ones end after their job."""
        self._jobs.close()

    def join(self, timeout: float) -> None:
        """Wait for the helpers to end, ``timeout`` seconds for all. Busy ones are left to themselves then."""
        deadline = time.monotonic() + timeout
        me = threading.current_thread()  # a tool may close its own runtime
        for thread in list(self._threads):
            if thread is not me and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def __repr__(self) -> str:
        return f"<HelperPool {len(self._threads)} threads{'' if not self._jobs.closed else ', closed'}>"


def _help(job: Job | None, jobs: Channel[Job]) -> None:
    """What a helper does. It holds no reference to its pool, and none to a job that is done."""
    while job is not None:
        job()
        job = None
        try:
            job = jobs.recv(timeout=_IDLE)
        except (TimeoutError, ChannelClosed):
            return
