"""`LoopThread`: an event loop in a thread, and the default one of this process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, NoReturn, SupportsIndex, TypeVar, cast

from .. import _timer
from .._channel import Channel, _look_at
from .._exit import LEAST, exit_seconds
from .._lazy import lazy_logger
from .._park import RLock, monotonic
from .._rescue import insist
from .._views import SupportsDone
from ._feed import Feed, Source, start_feed
from ._life import Life, lives
from ._task import GRACE, OnDone, Run, TaskHandle, discard

T = TypeVar("T")

EXIT_GRACE: Final = 0.5  # seconds that cancelled tasks have to end when the interpreter exits
PATIENCE: Final = 0.4  # seconds more for the thread itself

_logger = lazy_logger("channels")


class LoopThread:
    """An event loop in a daemon thread, for synchronous code that has to run asynchronous code.

    The loop starts when it is first used; a forked child starts its own. All methods may be called from any thread.
    Methods that wait raise `RuntimeError` on the loop's own thread, which they would block.

    `close`, leaving a ``with`` block, and the exit of the interpreter end the loop: its tasks are cancelled and get a
    bounded time to end. The threads of its default executor are not waited for.
    """

    def __init__(self, name: str = "lockgate-loop") -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a LoopThread must be text, not {name!r:.200}")
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
        """Run a coroutine, or a coroutine function with ``args``, on the loop, and wait for its result.

        Raises the exception of the coroutine; `TimeoutError` after ``timeout`` seconds; `Cancelled` once ``cancel`` is
        done, or if the task was cancelled on the loop or by closing the loop. A timeout, a cancel and Ctrl-C cancel the
        task without waiting for its end. The coroutine runs in a copy of ``context``, or of the caller's context.
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
        """Start a coroutine as `call` does, without waiting for its end.

        ``on_done(result, exception)`` is called once, on the loop's thread (or on the thread that closes the loop, if
        the loop's thread is blocked then). It has to be quick. The exception of a cancelled task is `Cancelled`.
        Without ``on_done``, an exception of the coroutine is logged. `start` may be called on the loop's own thread.
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
        """Run an asynchronous iterable on the loop, and iterate over its values in the calling thread.

        ``source`` may also be a function (which is called on the loop) or a coroutine that returns the iterable. It
        starts at once and runs ahead by up to ``buffer`` values, and one more that waits for room in the buffer. Its
        exception is raised after the values that came before it. Once ``cancel`` is done, waiting raises `Cancelled`,
        and the task is cancelled.
        """
        return start_feed(self, self._alive_for(source), source, buffer, cancel, context)

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
        """Cancel all tasks, give them ``timeout`` seconds to end, stop the loop, and wait a little longer for its
        thread.

        Calling it twice is harmless. On the loop's own thread, `close` returns at once, and the loop ends afterwards.
        """
        self._closed = True
        life = self._locked(start=False)
        if life is None:
            return
        insist(life.request_close, timeout)
        if threading.current_thread() is not life.thread and not life.join(monotonic() + timeout + PATIENCE):
            _logger.warning("%s was closed while something blocks its thread", self.name)
            life.abandon()

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied or pickled: make a LoopThread in each process")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._life is None else "running"
        return f"<LoopThread {self.name!r} {state}>"

    def _alive(self, waits: str | None) -> Life:
        """The running loop. ``waits`` names an operation that must not be called on its thread."""
        life = self._life
        if life is None or self._closed:
            life = cast(Life, self._locked(start=True))
        if waits is not None:
            life.refuse(waits)
        return life

    def _alive_for(self, source: Any) -> Life:
        try:
            return self._alive(None)
        except BaseException:
            discard(source)
            raise

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


# -- the loops of this process ----------------------------------------------------------------------------------------

_abandoned: list[Any] = []  # the loops and tasks of the parent, in a forked child
_loops: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_default: LoopThread | None = None
_guard = RLock()
_exiting = False


def default_loop() -> LoopThread:
    """The `LoopThread` that the whole process may share. If it was closed, this returns a new one."""
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
    return any(life.thread.ident == me for life in list(lives))


def from_async(source: Source[T], *, capacity: int = 64, loop: LoopThread | None = None) -> Feed[T]:
    """A receiver of the values of an asynchronous iterable, which a task on ``loop`` runs. It can be a case of a
    `select`.

    ``source`` is what `LoopThread.iterate` takes; ``loop`` is the `default_loop` if it is not given. The task runs
    ahead by up to ``capacity`` values, and one more that waits for room.
    """
    if not (loop is None or isinstance(loop, LoopThread)):
        discard(source)
        raise TypeError(f"loop must be a LoopThread, or None, not {loop!r:.200}")
    owner = loop or default_loop()
    return start_feed(owner, owner._alive_for(source), source, capacity, None, None)


def _exit() -> None:
    global _exiting
    _exiting = True
    Life.silent = True
    ending = list(lives)
    grace = exit_seconds(EXIT_GRACE)
    for life in ending:
        life.request_close(grace)
    deadline = monotonic() + max(exit_seconds(EXIT_GRACE + PATIENCE), grace + LEAST)
    for life in ending:
        if not life.join(deadline):
            life.abandon()


def _forked() -> None:
    global _guard
    _guard = RLock()
    for loop in list(_loops):
        loop._starting = RLock()
        loop._life = None
    if lives and not _abandoned:
        atexit.register(_keep_abandoned)
    for life in list(lives):
        # Its selector is shared with the parent: were the loop object to die here, its finalizer would take the
        # parent's file descriptors out of it, and coroutines would run their cleanup. So all lives on, and the loop
        # says that it is closed.
        _abandoned.append((life, list(life.runs), asyncio.all_tasks(life.loop)))
        life.over = True
        life.loop.is_closed = lambda: True  # type: ignore[method-assign]
        for run in list(life.runs):
            run.forked()
    lives.clear()


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
