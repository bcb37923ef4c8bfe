"""Where threads meet asyncio: a loop in a thread, and channels that tasks can use.

The two directions are not alike:

- A loop wakes a thread through a `Channel`. The waiting thread can be interrupted, cancelled and timed out anywhere,
  and loses nothing. (Ctrl-C in ``get`` of a janus queue loses values, and may leave the lock held that the loop needs.)
- A thread wakes a loop through janus. The thread may be in a signal handler or finalizer, or be hit by Ctrl-C, so it
  does no more than hand the wake-up over, in one step, to the timer thread, which puts it into the janus queue.

What has piled up is moved without any of that, so a wake-up is paid once for many values.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import janus

from . import _timer
from ._channel import Channel, _cancelled
from ._errors import Cancelled, ChannelClosed, WouldBlock
from ._park import NOTHING, RLock, Waiter, monotonic
from ._views import Receiver, SupportsDone

__all__ = ["AsyncReceiver", "Feed", "LoopThread", "TaskHandle", "default_loop", "from_async", "to_async"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

GRACE: Final = 1.0  # seconds that cancelled tasks have to end
EXIT_GRACE: Final = 0.5  # the same when the interpreter exits
PATIENCE: Final = 0.4  # seconds more for the thread itself
BURST: Final = 64  # values taken or fed in one go before the other tasks of the loop have their turn

_logger = logging.getLogger(__name__)

Source: TypeAlias = (
    "AsyncIterable[T] | Awaitable[AsyncIterable[T]] | Callable[[], AsyncIterable[T] | Awaitable[AsyncIterable[T]]]"
)
OnDone: TypeAlias = Callable[[Any, BaseException | None], object]


# -- one task on a loop ------------------------------------------------------------------------------------------------


class _Run:
    """A task on the loop of a `_Life`, and who wants to know how it ended: told once, on every path."""

    __slots__ = (
        "_args",
        "_asked",
        "_context",
        "_on_done",
        "_target",
        "_task",
        "_ticket",
        "done",
        "life",
        "name",
        "owner",
    )

    def __init__(
        self,
        owner: LoopThread,
        life: _Life,
        target: Any,
        args: tuple[Any, ...],
        on_done: OnDone | None,
        context: contextvars.Context | None,
    ) -> None:
        self.owner = owner  # not closed for being dropped while a task of it runs
        self.life = life
        self._target = target
        self._args = args
        self._on_done = on_done
        # A copy: a context that another thread has entered cannot be entered, and that would be found out too late.
        self._context = contextvars.copy_context() if context is None else context.copy()
        self.name = _named(target)
        self._task: asyncio.Task[None] | None = None
        self._asked = False  # to cancel
        self._ticket: list[None] = [None]  # whoever deletes the element tells
        self.done: Channel[None] = Channel(name="task ended")

    def begin(self) -> None:
        """Any thread. Raises `RuntimeError` if the loop is closed."""
        life = self.life
        life.runs[self] = None
        if life.over or not life.post(self._begin):
            life.runs.pop(self, None)
            try:
                del self._ticket[0]
            except IndexError:
                return  # the closing loop found it, and has told
            self.discard()
            self.done.close()
            raise RuntimeError(f"{life.name} is closed")

    def cancel(self, cause: object = None) -> None:
        """Any thread; does not wait."""
        if not self.done.closed:
            self.life.post(self._cancel, cause)

    def _cancel(self, cause: object) -> None:
        if self._asked:
            return  # a second cancel would cut the cleanup short that the first began
        self._asked = True
        if self._task is not None:
            self._task.cancel(cause)
        else:
            self.finish(None, Cancelled(cause))

    def _begin(self) -> None:
        if self._ticket:
            self._task = self.life.loop.create_task(self._drive(), name=self.name, context=self._context)
            self._task.add_done_callback(self._ended)

    async def _drive(self) -> None:
        try:
            target, args = self._target, self._args
            self._target, self._args = None, ()
            if not inspect.isawaitable(target):
                target = target(*args)
            del args
            result = await target
        except asyncio.CancelledError as error:
            self.finish(None, _task_cancelled(error))
            raise
        except BaseException as error:  # also SystemExit, which would end the loop under every other task
            self.finish(None, error)
        else:
            self.finish(result, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._ticket:  # cancelled before the first step of `_drive`
            try:
                task.result()
            except asyncio.CancelledError as error:
                self.finish(None, _task_cancelled(error))

    def finish(self, result: Any, error: BaseException | None) -> None:
        """On the loop's thread, or where that has ended or is stuck."""
        try:
            del self._ticket[0]
        except IndexError:
            return
        self.life.runs.pop(self, None)
        self.discard()
        on_done, self._on_done = self._on_done, None
        try:
            if on_done is not None:
                on_done(result, error)
            elif error is not None and not isinstance(error, Cancelled):
                _logger.error("a task of %s failed", self.life.name, exc_info=error)
        except BaseException:
            _logger.exception("on_done failed: %r", on_done)
        finally:
            self.done.close()

    def discard(self) -> None:
        """Let go of what was never begun."""
        _discard(self._target)
        self._target, self._args = None, ()

    def forked(self) -> None:
        """In the child: the task is the parent's affair."""


def _discard(target: Any) -> None:
    if inspect.iscoroutine(target):
        target.close()  # no "was never awaited"


def _named(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _task_cancelled(error: asyncio.CancelledError) -> Cancelled:
    cancelled = Cancelled(error.args[0] if error.args else None)
    cancelled.__cause__ = error
    return cancelled


class TaskHandle:
    """A task that `LoopThread.start` began. Dropping it does not stop the task."""

    __slots__ = ("_run", "done")

    def __init__(self, run: _Run) -> None:
        self._run = run
        #: A receiver that closes when the task has ended and its ``on_done`` has returned.
        self.done: Receiver[None] = Receiver(run.done)

    def cancel(self, cause: object = None) -> None:
        """Cancel the task; does not wait for its end. Thread-safe.

        ``cause`` becomes that of the `Cancelled` which ``on_done`` gets. Calling it again, or when the task has ended,
        does nothing: a task is not disturbed in its cleanup.
        """
        self._run.cancel(cause)

    def __repr__(self) -> str:
        return f"<TaskHandle {self._run.name}{', ended' if self.done.closed else ''}>"


# -- the loop ----------------------------------------------------------------------------------------------------------


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


class _Life:
    """One event loop and its thread, from start to end. A `LoopThread` has another one after a fork."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Helpers(name))
        self.runs: dict[_Run, None] = {}
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
        self._life: _Life | None = None
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
            if cancel is not None and cancel.done.closed:
                raise _cancelled(cancel)
        except BaseException:
            _discard(target)
            raise
        reply: Channel[tuple[Any, BaseException | None]] = Channel(1, name="reply")
        run = _Run(self, life, target, args, lambda result, error: reply.close((result, error)), context)
        try:
            run.begin()
            result, error = reply.recv(timeout, cancel)
        except TimeoutError:
            _insist(run.cancel)
            raise TimeoutError(f"call on {self.name}: not done within {timeout} s") from None
        except BaseException:
            _insist(run.cancel)
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
            _discard(target)
            raise
        run = _Run(self, life, target, args, on_done, context)
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
        return _feed(self, source, buffer, cancel, context)

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
        _insist(functools.partial(life.request_close, timeout))
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

    def _alive(self, waits: str | None) -> _Life:
        """The running loop. ``waits`` names an operation that must not be called on its thread."""
        life = self._life
        if life is None or self._closed:
            life = cast(_Life, self._locked(start=True))
        if waits is not None:
            self._refuse(waits)
        return life

    def _refuse(self, what: str) -> None:
        life = self._life
        if life is not None and threading.get_ident() == life.thread.ident:
            raise RuntimeError(f"{what} on the thread of {self.name} would stall the loop that it waits for: use await")

    def _locked(self, start: bool) -> _Life | None:
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
        self._life = life = _Life(self.name)
        _timer.start()
        finalizer = weakref.finalize(self, _timer.call_soon, functools.partial(life.request_close, GRACE))
        finalizer.atexit = False


def _insist(function: Callable[[], object]) -> None:
    """Call a function that may be called twice. A Ctrl-C meanwhile is raised when it is done."""
    interrupted = None
    for _ in range(100):
        try:
            function()
            break
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _join(life: _Life, deadline: float) -> bool:
    try:
        life.ended.recv(max(deadline - monotonic(), 0))
    except TimeoutError:
        return False
    except ChannelClosed:  # by the last line of the thread
        life.thread.join(max(deadline - monotonic(), 0.05))
    return True


# -- feeding a channel from a task -------------------------------------------------------------------------------------


class _Fed(Channel[T]):
    """The channel of a `Feed`. The task holds it weakly, and ends when nobody can receive from it any more."""

    __slots__ = ("_error", "_traceback")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, name="feed")
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def fail(self, error: BaseException | None) -> None:
        """Close it; after the values that are there, receivers get the error."""
        if not self.closed:
            if error is not None:
                self._traceback = error.__traceback__
            self._error = error
            self.close()

    def failed_with(self, error: BaseException) -> bool:
        return error is self._error

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T:
        try:
            return super().recv(timeout, cancel)
        except ChannelClosed:
            if self._error is None:
                raise
        raise self._failure()  # out here, so that its own context and cause stay

    def try_recv(self) -> T:
        try:
            return super().try_recv()
        except ChannelClosed:
            if self._error is None:
                raise
        raise self._failure()

    def take_all(self) -> Iterable[T]:
        """All values that are there, which may be none. An asynchronous exception puts them back."""
        values: Any = ()
        fresh: deque[T] = deque()
        lock = self._lock
        try:
            lock.acquire()
            if self._buffer:
                values, self._buffer = self._buffer, fresh
            if self._senders:  # the task, which holds one more
                self._refill()
            lock.release()
            if self._attention:
                self._attend()
            return values  # type: ignore[no-any-return]
        except BaseException:
            self._let_go()
            for value in reversed(values):
                self._let_go(None, value)
            raise

    def _failure(self) -> BaseException:
        return cast(BaseException, self._error).with_traceback(self._traceback)  # each receiver adds its own to it


class _FeedRun(_Run):
    """The run of `_pump`."""

    __slots__ = ()

    def ending(self) -> None:
        """On the loop's thread: the task cleans up by itself, no cancel shall come into that."""
        self._asked = True

    def discard(self) -> None:
        for arg in self._args:
            _discard(arg)  # the source may be a coroutine
        super().discard()

    def forked(self) -> None:
        self.finish(None, Cancelled("the task stayed in the parent process"))


class Feed(Receiver[T_co]):
    """The values of an asynchronous iterable. Made by `LoopThread.iterate` and `from_async`.

    It is a receiver, an iterator and a context manager. The exception of the source is raised after the values that
    came before: once by iterating, again and again by `recv`; a `select` sees a closed channel, and `recv` then tells
    why. A task that was cancelled on its loop, or whose loop was closed, ends it with `Cancelled`.

    `close` cancels the task and waits a moment for its end (leaving a ``with`` block does not wait if the ``cancel`` it
    was made with is done). Dropping the last reference cancels the task in the background. All methods may be called
    from any thread; several threads that iterate share the values.
    """

    __slots__ = ("_cancel", "_over", "_run", "done")

    def __init__(self, channel: _Fed[Any], run: _Run, cancel: SupportsDone | None) -> None:
        super().__init__(channel)
        self._run = run
        self._cancel = cancel
        self._over = False
        #: A receiver that closes when the task has ended.
        self.done: Receiver[None] = Receiver(run.done)

    def __iter__(self) -> Feed[T_co]:
        return self

    def __next__(self) -> T_co:
        """The next value. Raises `Cancelled` once ``cancel`` is done; a Ctrl-C loses nothing and leaves it usable."""
        if self._over:
            raise StopIteration
        self._run.owner._refuse("iterating")
        try:
            return super().recv(None, self._cancel)
        except ChannelClosed as error:
            self._over = True
            if cast("_Fed[Any]", self._channel).failed_with(error):
                raise  # the source's own
            raise StopIteration from None
        except BaseException as error:
            if isinstance(error, Cancelled) or cast("_Fed[Any]", self._channel).failed_with(error):
                self._over = True
                _insist(self._run.cancel)
            raise

    def batches(self) -> Iterator[Iterable[T_co]]:
        """The values in batches: waits for one, and brings all that have piled up. Nothing is delayed by it.

        For who handles many values: the price of a hand-over is paid once a batch. Raises what iterating does. Who
        leaves in the middle of a batch loses the rest of it.
        """
        for value in self:
            yield (value,)
            yield cast("_Fed[T_co]", self._channel).take_all()

    def recv(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> T_co:
        """`Channel.recv`. Raises `RuntimeError` on the loop's own thread, which waiting would stall."""
        if timeout != 0:
            self._run.owner._refuse("receiving")
        return super().recv(timeout, cancel)

    def close(self, timeout: float = GRACE) -> None:
        """Cancel the task, drop what nobody received, and wait up to ``timeout`` seconds for the task to end.

        Calling it twice is harmless. On the loop's own thread it does not wait.
        """
        self._over = True
        _insist(self._drop)
        if self._run.life.thread is not threading.current_thread() and not self.done.closed:
            with contextlib.suppress(ChannelClosed, TimeoutError):
                self.done.recv(timeout)

    def _drop(self) -> None:
        self._channel.close()
        self._run.cancel()
        with contextlib.suppress(ChannelClosed, WouldBlock):
            while True:
                Channel.try_recv(self._channel)

    def __enter__(self) -> Feed[T_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cancel = self._cancel
        self.close(0 if cancel is not None and cancel.done.closed else GRACE)  # who cancelled wants to be gone

    def __repr__(self) -> str:
        return f"<Feed of {self._channel!r}>"


def from_async(source: Source[T], *, capacity: int = 64, loop: LoopThread | None = None) -> Feed[T]:
    """A receiver, good for `select`, of the values of an asynchronous iterable that a task on ``loop`` drives.

    ``source`` is what `LoopThread.iterate` takes; ``loop`` is the `default_loop` if not given. The task runs ahead by
    up to ``capacity`` values, and holds one more; at capacity 0 only that one.
    """
    return _feed(loop or default_loop(), source, capacity, None, None)


def _feed(
    owner: LoopThread, source: Any, capacity: int, cancel: SupportsDone | None, context: contextvars.Context | None
) -> Feed[Any]:
    channel: _Fed[Any] = _Fed(capacity)
    try:
        if not (hasattr(source, "__aiter__") or callable(source) or inspect.isawaitable(source)):
            raise TypeError(
                f"expected an asynchronous iterable, or a function or coroutine that gives one, not {source!r}"
            )
        life = owner._alive(None)
    except BaseException:
        _discard(source)
        raise
    ref = weakref.ref(channel)
    ending: list[Callable[[], None]] = []
    run = _FeedRun(owner, life, _pump, (source, ref, ending), functools.partial(_end_feed, ref), context)
    ending.append(run.ending)
    run.name = f"feed of {_named(source)}"
    _timer.start()
    finalizer = weakref.finalize(channel, _timer.call_soon, run.cancel)
    finalizer.atexit = False
    feed: Feed[Any] = Feed(channel, run, cancel)
    run.begin()
    return feed


def _end_feed(ref: weakref.ref[_Fed[Any]], result: Any, error: BaseException | None) -> None:
    channel = ref()
    if channel is not None and not channel.closed:
        channel.fail(error)
    elif error is not None and not isinstance(error, Cancelled):
        _logger.warning("the source of a feed failed after nobody listened any more", exc_info=error)


async def _pump(source: Any, ref: weakref.ref[_Fed[Any]], ending: list[Callable[[], None]]) -> None:
    """Send the values of ``source``, until it ends or the channel is closed or gone."""
    iterator: Any = None
    ear = None
    channel: _Fed[Any] | None
    entry: list[Any] | None
    burst = 0
    try:
        if not hasattr(source, "__aiter__"):
            if not inspect.isawaitable(source):
                source = source()
            if inspect.isawaitable(source):
                source = await source
        iterator = aiter(source)
        source = None
        async for value in iterator:
            channel = ref()
            if channel is None:
                return
            if channel._try_put(value):
                burst += 1
                if burst >= BURST:
                    burst = 0
                    await asyncio.sleep(0)
                channel = value = None  # not to be kept alive while the source makes the next one
                continue
            burst = 0
            if ear is None:
                ear = _Ear()
            waiter = _LoopWaiter(channel, ear)
            entry = [waiter, value, 0]
            while not channel._enlist(waiter, entry):
                waiter = entry[0] = _LoopWaiter(channel, ear)
            channel = value = None
            await ear.wait(waiter)
            entry = None
            if not waiter.ok:
                return
    except ChannelClosed:
        if (channel := ref()) is not None and not channel.closed:
            raise  # the source's own
    except GeneratorExit:
        iterator = None  # the loop is gone: nothing can be awaited
        raise
    finally:
        channel = value = entry = None
        ending.pop()()
        if (close := getattr(iterator, "aclose", None)) is not None:
            await close()


# -- waiting for a channel in a task -----------------------------------------------------------------------------------


class _Ear:
    """Where a task of the running loop hears that its waiter was served. One wait at a time."""

    __slots__ = ("loop", "queue")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: janus.Queue[_LoopWaiter] = janus.Queue()

    async def wait(self, waiter: _LoopWaiter) -> None:
        """Until ``waiter`` is done. If this raises, it was withdrawn, and a value it had been served given back."""
        try:
            if not waiter.done:
                while await self.queue.async_q.get() is not waiter:
                    pass  # the late ring of a wait that was cancelled
            waiter.sever()
        except GeneratorExit:  # the garbage collector may be at it, in the middle of anything
            _timer.call_soon(waiter.give_up)
            raise
        except BaseException:
            waiter.give_up()
            raise


class _LoopWaiter(Waiter):
    """A waiter that wakes a task instead of a thread.

    Who serves it may be in a signal handler or finalizer, or be hit by Ctrl-C wherever it runs Python code. Hence
    ``park.release`` is C all through: it puts the waiter on the queue of the timer thread, which calls it.
    """

    __slots__ = ("ear",)

    def __init__(self, channel: Channel[Any], ear: _Ear) -> None:
        super().__init__([None])
        self.ear = ear
        _timer.start()
        self.park = _Park(channel._lock, functools.partial(_timer._clock._inbox.put, self))

    def __call__(self) -> None:
        try:
            if not self.ear.loop.is_closed():
                self.ear.queue.sync_q.put_nowait(self)
                return
        except RuntimeError:  # closed meanwhile
            pass
        self.give_back()

    def give_up(self) -> None:
        """Withdraw; if it was served already, give the value back."""
        self.withdraw()
        self.sever()
        self.give_back()

    def give_back(self) -> None:
        if self.channel is not None and self.value is not NOTHING:
            self.channel._put_back(self)

    def sever(self) -> None:
        """Break the cycle, now that the waiter is done and once its server has let go of it."""
        if self.park is not None:
            self.park.acquire()
            self.park = None


class _Park:
    """What a `_LoopWaiter` has in place of a lock."""

    __slots__ = ("_lock", "release")

    def __init__(self, lock: Any, release: Callable[[], None]) -> None:
        self._lock = lock
        self.release = release

    def acquire(self) -> None:
        """Wait for who is serving: it holds the lock of the channel."""
        try:
            self._lock.acquire()
        finally:
            if self._lock._is_owned():
                self._lock.release()


class AsyncReceiver(Generic[T_co]):
    """Receives from a channel in asyncio tasks. Made by `to_async`."""

    __slots__ = ("_burst", "_channel", "_closed", "_ears", "_waiting")

    def __init__(self, receiver: Channel[Any] | Receiver[Any]) -> None:
        self._channel: Channel[T_co] = receiver._channel
        self._closed = False
        self._burst = 0
        self._ears: list[_Ear] = []
        self._waiting: set[_LoopWaiter] = set()

    def __aiter__(self) -> AsyncReceiver[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """The next value. Raises what a `Feed` failed with. A task that is cancelled has taken none."""
        channel = self._channel
        self._burst += 1
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        if self._closed:
            raise StopAsyncIteration
        try:
            return channel.try_recv()
        except WouldBlock:
            pass
        except ChannelClosed:
            raise StopAsyncIteration from None
        self._burst = 0
        ear = self._ears.pop() if self._ears else None
        if ear is None or ear.loop is not asyncio.get_running_loop():
            ear = _Ear()
        waiter = _LoopWaiter(channel, ear)
        while not channel._enlist(waiter, None):
            waiter = _LoopWaiter(channel, ear)
        self._waiting.add(waiter)
        try:
            await ear.wait(waiter)
        finally:
            self._waiting.discard(waiter)
            self._ears.append(ear)
        if waiter.ok:
            value = waiter.value
            waiter.value = NOTHING
            return cast(T_co, value)
        if waiter.channel is None:  # aclose
            raise StopAsyncIteration
        return await self.__anext__()  # closed: drained, or failed

    async def aclose(self) -> None:
        """End the iteration, also for tasks that wait in it. Nothing was taken that was not delivered. Idempotent."""
        self._closed = True
        for waiter in list(self._waiting):
            waiter.withdraw()
            if waiter.channel is None:
                waiter()

    async def __aenter__(self) -> AsyncReceiver[T_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncReceiver of {self._channel!r}>"


def to_async(receiver: Channel[T] | Receiver[T]) -> AsyncReceiver[T]:
    """Iterate over a channel with ``async for``, in any event loop, without blocking it.

    A value is taken when a task asks for it, and none before: `aclose`, dropping the iterator and closing the loop lose
    nothing. A task that is cancelled gives back, to the front, what it was just being handed (order may suffer if
    others receive too). Several tasks, also of several loops, may share the iterator. It holds no thread.
    """
    return AsyncReceiver(receiver)


# -- the loops of this process -----------------------------------------------------------------------------------------

_lives: dict[_Life, None] = {}
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


def _exit() -> None:
    global _exiting
    _exiting = True
    lives = list(_lives)
    for life in lives:
        life.request_close(EXIT_GRACE)
    deadline = monotonic() + EXIT_GRACE + PATIENCE
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
