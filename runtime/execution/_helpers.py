"""Helper threads, on which foreign code runs, so that the worker of a stream only has to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _threads

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Job = Callable[[], None]


class HelperPool:
    """Runs jobs, each on a thread of its own out of the cache of the process. Jobs never wait for each other.

    With ``executor``, jobs go there instead, and wait when it is full.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._closed = False
        self._running: set[_threads.Running] = set()  # each takes itself out

    def submit(self, job: Job) -> Future[None] | None:
        """Run ``job``, which must not raise. The future is the executor's, if there is one."""
        if self._executor is not None:
            return self._executor.submit(job)
        if self._closed:
            raise RuntimeError("the runtime is closed")
        _threads.start(job, among=self._running)
        return None

    @property
    def unbounded(self) -> bool:
        """Whether there is a thread for every job, and not those of an executor alone."""
        return self._executor is None

    def adopt(self, running: _threads.Running) -> None:
        """Count a thread that is at a job of this pool already as one of its helpers."""
        running.rename(_threads.helper_name())
        running.is_among(self._running)

    def close(self) -> None:
        """Take no more jobs. What runs is done."""
        self._closed = True

    def join(self, timeout: float) -> None:
        """Wait for the jobs to end, ``timeout`` seconds for all. Those that take longer are left to themselves."""
        deadline = time.monotonic() + timeout
        me = threading.get_ident()  # a tool may close its own runtime
        for running in list(self._running):
            if running.ident != me:
                running.join(max(0.0, deadline - time.monotonic()))

    def __repr__(self) -> str:
        return f"<HelperPool {len(self._running)} jobs{', closed' if self._closed else ''}>"
