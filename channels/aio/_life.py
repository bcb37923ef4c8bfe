"""One event loop and its thread, from start to end."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import functools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from .._channel import Channel
from .._errors import Cancelled, ChannelClosed
from .._lazy import lazy_logger
from .._park import monotonic, refuse_greenlets

T = TypeVar("T")

_logger = lazy_logger("channels")

lives: dict[Life, None] = {}  # of this process


class Job(Protocol):
    """A job that runs on a loop, as far as the loop has to know it."""

    _asked: bool
    _task: asyncio.Task[None] | None

    def finish(self, result: Any, error: BaseException | None) -> None: ...

    def forked(self) -> None: ...


class _Helpers(concurrent.futures.ThreadPoolExecutor):
    """The default executor of a loop (name look-ups, ``asyncio.to_thread``), with daemon threads.

    The interpreter joins the threads of an ordinary one at exit, however long they take. (asyncio wants this class.)
    """

    _MOST: Final = 32

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._idle = 0
        self._count = 0
        self._over = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._guard:
            if self._over:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._work.put((future, functools.partial(fn, *args, **kwargs)))
            if self._idle:
                self._idle -= 1
                return future
            if self._count >= self._MOST:
                return future
            self._count += 1
        try:
            threading.Thread(target=self._serve, name=f"{self._name} helper", daemon=True).start()
        except BaseException:
            with self._guard:
                self._count -= 1
            raise
        return future

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            future, function = item
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, function
            with self._guard:
                if self._over:
                    return
                self._idle += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._guard:
            self._over = True
            for _ in range(self._count):
                self._work.put(None)


class Life:
    """One event loop and its thread, from start to end. A `LoopThread` has another one after a fork."""

    silent = False  # whether the interpreter is exiting

    def __init__(self, name: str) -> None:
        refuse_greenlets("an event loop")
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Helpers(name))
        self.runs: dict[Job, None] = {}
        self.stopping = False
        self.over = False  # nothing more begins; what has begun is told so
        self.ended: Channel[None] = Channel(name=f"{name} ended")
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._closer: asyncio.Task[None] | None = None
        lives[self] = None
        try:
            self.thread.start()
        except BaseException:
            lives.pop(self, None)
            self.loop.close()
            raise

    def _main(self) -> None:
        loop = self.loop
        try:
            while not (self.stopping or loop.is_closed()):
                try:
                    loop.run_forever()  # ends before its time if somebody calls loop.stop() or raises SystemExit
                except BaseException:
                    _logger.exception("%s: an exception left the loop, which goes on", self.name)
        finally:
            self.abandon()
            try:
                loop.close()
            finally:
                lives.pop(self, None)
                self.ended.close()

    def abandon(self) -> None:
        """Begin nothing more and tell who waits: on the loop's thread at its end, or in its place where it is stuck."""
        self.over = True
        for run in list(self.runs):
            run.finish(None, Cancelled(f"{self.name} was closed"))

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Have a function called on the loop, soon; False if the loop is closed. Any thread."""
        if self.over:
            return False
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    def refuse(self, what: str) -> None:
        """Raise `RuntimeError` where the caller is on the loop's own thread."""
        if threading.get_ident() == self.thread.ident:
            raise RuntimeError(f"{what} on the thread of {self.name} would stall the loop that it waits for: use await")

    def request_close(self, grace: float) -> None:
        self.post(self._begin_close, grace)

    def _begin_close(self, grace: float) -> None:
        if self._closer is None:
            self._closer = self.loop.create_task(self._close(grace))

    async def _close(self, grace: float) -> None:
        deadline = monotonic() + grace
        asked: set[asyncio.Task[Any] | None] = {run._task for run in self.runs if run._asked}
        try:
            while left := self._others():
                for task in left - asked:  # once: a second cancel would cut their cleanup short
                    task.cancel(f"{self.name} was closed")
                asked |= left
                await asyncio.wait(left, timeout=max(deadline - monotonic(), 0.01))
                if monotonic() >= deadline:
                    break
            generators = self.loop.create_task(self.loop.shutdown_asyncgens())
            await asyncio.wait([generators], timeout=max(deadline - monotonic(), 0.05))
        finally:
            for task in self._others():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is said here
                if not self.silent:
                    _logger.warning("%s was closed while a task ignored its cancellation: %r", self.name, task)
            self.stopping = True
            self.loop.stop()

    def _others(self) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks(self.loop) if task is not self._closer}

    def join(self, deadline: float) -> bool:
        try:
            self.ended.recv(max(deadline - monotonic(), 0))
        except TimeoutError:
            return False
        except ChannelClosed:  # by the last line of the thread
            self.thread.join(max(deadline - monotonic(), 0.05))
        return True
