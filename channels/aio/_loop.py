"""A loop in a thread, and the loops of this process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import contextvars
import functools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from .. import _timer
from .._channel import Channel, _look_at
from .._errors import Cancelled, ChannelClosed
from .._exit import LEAST, exit_seconds
from .._park import RLock, monotonic, refuse_patched
from .._views import SupportsDone
from ._feed import Feed, Source, start_feed
from ._task import GRACE, OnDone, Run, TaskHandle, discard, insist

T = TypeVar("T")

EXIT_GRACE: Final = 0.5  # seconds that cancelled tasks have to end when the interpreter exits
PATIENCE: Final = 0.4  # seconds more for the thread itself

_logger = logging.getLogger(__name__)


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

    def __init__(self, name: str) -> None:
        refuse_patched()  # the thread would be a greenlet, and the loop stop all others
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Helpers(name))
        self.runs: dict[Run, None] = {}
        self.stopping = False
        self.over = False  # nothing more begins; what has begun is told so
        self.ended: Channel[None] = Channel(name=f"{name} ended")
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._closer: asyncio.Task[None] | None = None
        _lives[self] = None
        try:
            self.thread.start()
        except BaseException:
            _lives.pop(self, None)
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
                _lives.pop(self, None)
                self.ended.close()

    def abandon(self) -> None:
        """Begin nothing more and tell who waits: on the loop's thread at its end, or in its place where it is stuck."""
        self.over = True
        for run in list(self.runs):
            run.finish(None, Cancelled(f"{self.name} was closed"))

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Call it on the loop, soon; False if the loop is closed. Any thread."""
        if self.over:
            return False
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

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
                if not _exiting:
                    _logger.warning("%s was closed while a task ignored its cancellation: %r", self.name, task)
            self.stopping = True
            self.loop.stop()

    def _others(self) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks(self.loop) if task is not self._closer}


class LoopThread:
    """An event loop in a daemon thread, for synchronous code that has to run something asynchronous.

    It starts with its first use, and anew in a forked child. All methods may be called from any thread; those that wait
    raise `RuntimeError` on the loop's own thread, which they would stall.

    `close`, leaving a ``with`` block, and the exit of the interpreter end it: tasks are cancelled and run to their end,
    for a bounded time; threads of its default executor are not waited for.
    """

    def __init__(self, name: str = "lockgate-loop") -> None:
        self.name = name
        self._life: Life | None = None
        self._closed = False
        self._starting = RLock()
        _loops.add(self)

    # -- one coroutine -------------------------------------------------------------------------------------------------

    def call(
        self,
        target: Callable[..., Awaitable[T]] | Awaitable[T],
        *args: Any,
        timeout: float | None = None,
        cancel: SupportsDone | None = None,
        context: contextvars.Context | None = None,
    ) -> T:
        """Run a coroutine, or what a coroutine function makes of ``args``, on the loop, and wait for its result.

        Its exception is raised here. `TimeoutError` after ``timeout`` seconds, `Cancelled` once ``cancel`` is done, and
        Ctrl-C cancel the task, without waiting for its end. A task that was cancelled on the loop, or by the closing
        of the loop, is `Cancelled` here. It runs in a copy of ``context``, or of the caller's.
        """
        try:
            life = self._alive("call")
            if cancel is not None:
                _look_at(cancel)
        except BaseException:
            discard(target)
            raise
        reply: Channel[tuple[Any, BaseException | None]] = Channel(1, name="reply")
        run = Run(self, life, target, args, lambda result, error: reply.close((result, error)), context)
        try:
            run.begin()
            result, error = reply.recv(timeout, cancel)
        except TimeoutError:
            insist(run.cancel)
            raise TimeoutError(f"call on {self.name}: not done within {timeout} s") from None
        except BaseException:
            insist(run.cancel)
            raise
        if error is None:
            return cast(T, result)
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def start(
        self,
        target: Callable[..., Awaitable[Any]] | Awaitable[Any],
        *args: Any,
        on_done: OnDone | None = None,
        context: contextvars.Context | None = None,
    ) -> TaskHandle:
        """Run it as `call` does, without waiting.

        ``on_done(result, exception)`` is called once, on the loop's thread (on the closing one, if the loop is closed
        while something blocks its thread); the exception of a cancelled task is `Cancelled`. It must be quick. Without
        ``on_done`` a failure is logged. `start` may be called on the loop's own thread.
        """
        try:
            life = self._alive(None)
        except BaseException:
            discard(target)
            raise
        run = Run(self, life, target, args, on_done, context)
        run.begin()
        return TaskHandle(run)

    # -- many values ---------------------------------------------------------------------------------------------------

    def iterate(
        self,
        source: Source[T],
        *,
        buffer: int = 64,
        cancel: SupportsDone | None = None,
        context: contextvars.Context | None = None,
    ) -> Feed[T]:
        """Drive an asynchronous iterable on the loop, and iterate over its values here.

        ``source`` may also be a function (called on the loop) or a coroutine that gives the iterable. It starts at once
        and runs ahead by up to ``buffer`` values, and one more that waits for room. Its exception is raised after the
        values that came before. Once ``cancel`` is done, waiting raises `Cancelled`, and the task is cancelled.
        """
        return start_feed(self, source, buffer, cancel, context)

    # -- the loop itself -----------------------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop; starts it."""
        return self._alive(None).loop

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self, timeout: float = GRACE) -> None:
        """Cancel all tasks, give them ``timeout`` seconds to end, stop the loop and join its thread, for little longer.

        Calling it twice is harmless. On the loop's own thread it only begins the closing.
        """
        self._closed = True
        life = self._locked(start=False)
        if life is None:
            return
        insist(functools.partial(life.request_close, timeout))
        if threading.current_thread() is not life.thread and not _join(life, monotonic() + timeout + PATIENCE):
            _logger.warning("%s was closed while something blocks its thread", self.name)
            life.abandon()

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._life is None else "running"
        return f"<LoopThread {self.name!r} {state}>"

    def _alive(self, waits: str | None) -> Life:
        """The running loop. ``waits`` names an operation that must not be called on its thread."""
        life = self._life
        if life is None or self._closed:
            life = cast(Life, self._locked(start=True))
        if waits is not None:
            self._refuse(waits)
        return life

    def _refuse(self, what: str) -> None:
        life = self._life
        if life is not None and threading.get_ident() == life.thread.ident:
            raise RuntimeError(f"{what} on the thread of {self.name} would stall the loop that it waits for: use await")

    def _locked(self, start: bool) -> Life | None:
        """The life, once no other thread is about to begin it."""
        lock = self._starting
        try:
            lock.acquire()
            if start:
                if self._closed:
                    raise RuntimeError(f"{self.name} is closed")
                if _exiting:
                    raise RuntimeError(f"{self.name}: the interpreter is exiting")
                if self._life is None:
                    self._begin_life()
            life = self._life
            lock.release()
        except BaseException:
            if lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
            raise
        return life

    def _begin_life(self) -> None:
        self._life = life = Life(self.name)
        _timer.start()
        finalizer = weakref.finalize(self, _timer.call_soon, functools.partial(life.request_close, GRACE))
        finalizer.atexit = False


def _join(life: Life, deadline: float) -> bool:
    try:
        life.ended.recv(max(deadline - monotonic(), 0))
    except TimeoutError:
        return False
    except ChannelClosed:  # by the last line of the thread
        life.thread.join(max(deadline - monotonic(), 0.05))
    return True


# -- the loops of this process ----------------------------------------------------------------------------------------

_lives: dict[Life, None] = {}
_abandoned: list[Any] = []  # the loops and tasks of the parent, in a forked child
_loops: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_default: LoopThread | None = None
_guard = RLock()
_exiting = False


def default_loop() -> LoopThread:
    """The `LoopThread` that everything in this process may share. If somebody closed it, a new one."""
    global _default
    loop = _default
    if loop is None or loop.closed:
        with _guard:
            loop = _default
            if loop is None or loop.closed:
                loop = _default = LoopThread()
    return loop


def on_a_loop_thread() -> bool:
    """Whether the caller runs on the thread of a `LoopThread`, which must not wait."""
    me = threading.get_ident()
    return any(life.thread.ident == me for life in list(_lives))


def from_async(source: Source[T], *, capacity: int = 64, loop: LoopThread | None = None) -> Feed[T]:
    """A receiver, good for `select`, of the values of an asynchronous iterable that a task on ``loop`` drives.

    ``source`` is what `LoopThread.iterate` takes; ``loop`` is the `default_loop` if not given. The task runs ahead by
    up to ``capacity`` values, and holds one more; at capacity 0 only that one.
    """
    return start_feed(loop or default_loop(), source, capacity, None, None)


def _exit() -> None:
    global _exiting
    _exiting = True
    lives = list(_lives)
    grace = exit_seconds(EXIT_GRACE)
    for life in lives:
        life.request_close(grace)
    deadline = monotonic() + max(exit_seconds(EXIT_GRACE + PATIENCE), grace + LEAST)
    for life in lives:
        if not _join(life, deadline):
            life.abandon()


def _forked() -> None:
    global _guard
    _guard = RLock()
    for loop in list(_loops):
        loop._starting = RLock()
        loop._life = None
    if _lives and not _abandoned:
        atexit.register(_keep_abandoned)
    for life in list(_lives):
        # Its selector is shared with the parent: were the loop object to die here, its finalizer would take the
        # parent's file descriptors out of it, and coroutines would run their cleanup. So all lives on, and the loop
        # says that it is closed.
        _abandoned.append((life, list(life.runs), asyncio.all_tasks(life.loop)))
        life.over = True
        life.loop.is_closed = lambda: True  # type: ignore[method-assign]
        for run in list(life.runs):
            run.forked()
    _lives.clear()


def _keep_abandoned() -> None:
    """One reference too many: not even the interpreter's end finalises what is the parent's."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_abandoned))


# An atexit function comes too late: the interpreter first joins the threads of concurrent.futures, which may be waiting
# for a loop of ours. What is registered here is called before that, last in, first out; the import above did so too.
getattr(threading, "_register_atexit", atexit.register)(_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
