"""Structured threads: a block that is not left before every thread that was started in it has ended.

There is no lock. A member registers before it looks whether the group is closed, and leaving closes the group before it
looks for members: one of the two sees the other. In the same way a member registers before its spawn looks whether the
token is cancelled, and a cancel looks for members that have not begun.

A member is begun or withdrawn, never both: whoever takes its ticket decides. On an executor the two may race.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, SupportsIndex, TypeVar

from ._cancel import CancelToken
from ._channel import Channel
from ._errors import Cancelled, ChannelClosed
from ._lazy import lazy, lazy_logger
from ._park import monotonic

if TYPE_CHECKING:
    import inspect
    from concurrent import futures
    from concurrent.futures import Executor, Future

    from ._cancel import Registration
else:
    inspect = lazy("inspect")
    futures = lazy("concurrent.futures")

P = ParamSpec("P")
T = TypeVar("T")

TIDY_AT: Final = 64  # members, also ended ones, before the ended are dropped
PATIENCE: Final = 1.0  # seconds after an interrupt before it is said whom leaving waits for

_logger = lazy_logger("channels")


class WorkerGroup:
    """Threads that end before the ``with`` block does.

    In ``with WorkerGroup() as group:``, each ``group.spawn(fn, ...)`` calls a function in a thread. Pass
    ``group.token`` to the functions, as ``cancel=`` for everything that they wait for. The first exception in a
    function or in the block cancels this token, and is its cause. Nothing is interrupted by force: leaving the block
    waits for all threads, however long they take. If the token ``parent`` is cancelled, so is the group's; ``name`` is
    the prefix of the threads' names.

    Leaving the block raises (compare ``asyncio.TaskGroup``):

    - an `ExceptionGroup` of the exceptions of the block and of the functions, in this order, or a `BaseExceptionGroup`
      if one of them is not an `Exception`. Once the token is cancelled, a `Cancelled` is left out;
    - a `KeyboardInterrupt` or `SystemExit`, and any exception of the block that is not an `Exception`, by itself, with
      the group of the others as its ``__cause__``;
    - a `Cancelled` if nothing failed, but a `Cancelled` ended the block, or ended a function because of ``parent`` or
      of a token from outside the group. (This is for a group inside a function of another group that is cancelled.)

    A Ctrl-C during the wait at the end cancels the token; the wait goes on, and `KeyboardInterrupt` is raised at its
    end. If the wait takes longer than a second, or at the next Ctrl-C, the log names the threads that still run, and
    where they are.

    With an ``executor``, such as a `concurrent.futures.ThreadPoolExecutor`, functions are called on its threads instead
    of new ones. Leaving the block ends the functions, not the executor. Functions that have not begun when the token is
    cancelled are never called, their futures are cancelled, and nobody waits for them. Do not leave the block on a
    thread of the executor that its own functions are waiting for: if the executor is full, neither goes on. Executors
    that call functions in other processes or interpreters are refused, because channels and tokens do not reach there.

    In a forked child, leaving the block does not wait for the threads of the parent.

    All methods are thread-safe. A group is used once. Modelled on https://docs.python.org/3/library/asyncio-task.html.
    """

    def __init__(
        self, parent: CancelToken | None = None, *, name: str = "worker", executor: Executor | None = None
    ) -> None:
        if executor is not None:
            _check_executor(executor)
        if not isinstance(name, str):
            raise TypeError(f"the name of a WorkerGroup must be text, not {name!r:.200}")
        self.name = name
        self._executor = executor
        self._watching: Registration | None = None  # where there is an executor
        self._parent = parent
        #: The `CancelToken` of this group.
        self.token = CancelToken(parent)
        self._members: dict[_Member, None] = {}
        self._tidy_at = TIDY_AT
        self._numbers = itertools.count(1)
        self._errors: list[BaseException] = []
        self._interrupts: list[BaseException] = []  # KeyboardInterrupt and SystemExit, of functions
        self._gave_up = False  # a function ended with Cancelled, as it was asked to
        self._cancelled: Cancelled | None = None  # what ended the first function that a token of others cancelled
        self._entered = False
        self._closed = False

    def spawn(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call ``fn`` in a new thread, or on the executor, in a copy of the caller's context. Returns a future of its
        result, also for `concurrent.futures.wait` and `concurrent.futures.as_completed`.

        If ``fn`` raises, the group fails, even if the exception was also read from the future. Cancelling the future
        before ``fn`` has begun means that it is never called. Raises `Cancelled` once the token is cancelled,
        `RuntimeError` outside the block, and what the executor raises if it takes no more functions. During the wait
        at the end of the block, functions may still spawn others.
        """
        if not callable(fn):
            raise TypeError(f"spawn takes a function to call, not {fn!r}: pass the function itself and its arguments")
        if _makes_coroutines(fn) or _makes_coroutines(type(fn).__call__):
            raise TypeError(
                f"spawn calls functions in threads, and {fn!r} is async: run it with channels.aio.LoopThread"
            )
        if not self._entered:
            raise RuntimeError(f"{self!r} is not entered: spawn inside its with block")
        if len(self._members) >= self._tidy_at:
            self._tidy()
        name = f"{self.name} {next(self._numbers)}: {getattr(fn, '__qualname__', type(fn).__qualname__)}"
        member = _Member(self, name, lambda: fn(*args, **kwargs), self._executor)
        future: Future[T] = member.future
        self._members[member] = None
        try:
            if self._closed:
                raise RuntimeError(f"{self!r} is closed: its with block was left")
            if self.token.cancelled:
                raise Cancelled(self.token.cause)
            member.start()
        except BaseException:
            member.withdraw()
            raise
        return future

    def __enter__(self) -> WorkerGroup:
        if self._entered:
            raise RuntimeError(f"{self!r} was entered before: a group is used once")
        self._entered = True
        if self._executor is not None:
            self._watching = self.token.on_cancel(self._withdraw)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        why, interrupt = error, None
        while True:
            try:
                if why is not None:
                    self.token.cancel(_why(why))
                self._join(PATIENCE if why is not None and not isinstance(why, (Exception, Cancelled)) else None)
                break
            except BaseException as caught:
                if interrupt is not None:
                    self._say()
                interrupt = interrupt or caught
                why = why or caught
        try:
            self._raise(error, interrupt)
        finally:
            del error, why, interrupt  # their tracebacks hold this frame
            self._errors, self._interrupts = [], []
            if self._watching is not None:
                self._watching.remove()
                self._watching = None  # which holds this group

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be copied or pickled: its threads end with its block. Pass the group itself to the "
            "code that spawns in it, or make another group"
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._entered else "new"
        running = sum(not member.ended.closed for member in list(self._members))
        return f"<WorkerGroup {self.name!r} {state}, {running} running>"

    def _join(self, patience: float | None) -> None:
        """Wait for all members; say once whom for, if that takes more than ``patience`` seconds."""
        say_at = None if patience is None else monotonic() + patience
        if self._executor is not None and self.token.cancelled:
            self._withdraw()  # callbacks of tokens do not nest: where this is one, that of our token has not run yet
        while not self._closed:
            while self._members:
                for member in list(self._members):
                    try:
                        member.join(None if say_at is None else max(say_at - monotonic(), 0))
                    except TimeoutError:
                        self._say()
                        say_at = None
                        break
                    self._members.pop(member, None)
            self._closed = True
            if self._members:  # somebody, not of the group, spawned just before
                self._closed = False

    def _withdraw(self) -> None:
        """The token is cancelled: what the executor has not begun, it shall not begin any more."""
        for member in list(self._members):
            if member.withdraw():
                self._gave_up = True

    def _say(self) -> None:
        """Log which threads are waited for, for whoever pressed Ctrl-C."""
        frames = sys._current_frames()
        waiting = []
        for member in list(self._members):
            if member.thread is not None and member.ran and not member.ended.closed and not member.elsewhere:
                frame = frames.get(member.thread.ident or 0)
                where = "" if frame is None else f" ({frame.f_code.co_filename}:{frame.f_lineno})"
                waiting.append(f"{member.name}{where}")
        del frames
        if waiting:
            more = f" and {len(waiting) - 10} more" if len(waiting) > 10 else ""
            _logger.warning(
                "leaving %r waits for %s%s: they have been asked to end by its token",
                self, ", ".join(waiting[:10]), more,
            )  # fmt: skip

    def _tidy(self) -> None:
        for member in list(self._members):
            if member.ended.closed and (member.executor is not None or not member.is_alive):
                self._members.pop(member, None)
        self._tidy_at = 2 * len(self._members) + TIDY_AT

    def _failed(self, error: BaseException) -> None:
        """A function raised."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._interrupts.append(error)
        elif isinstance(error, Cancelled):
            if self.token.cancelled or self._parent_cancelled:
                self._gave_up = True
                return
            self._cancelled = error
        else:
            self._errors.append(error)
        self.token.cancel(_why(error))

    @property
    def _parent_cancelled(self) -> bool:
        return self._parent is not None and self._parent.cancelled

    def _raise(self, error: BaseException | None, interrupt: BaseException | None) -> None:
        """Raise what leaving has to raise: ``error`` came out of the block, ``interrupt`` into the wait."""
        errors = list(self._errors)
        fatal: BaseException | None = None
        if error is None or isinstance(error, Cancelled):
            pass
        elif not isinstance(error, Exception):
            fatal = error
        else:
            errors.insert(0, error)
        for other in ([] if interrupt is None else [interrupt]) + self._interrupts:
            fatal = fatal or other
        try:
            group = BaseExceptionGroup("unhandled errors in a WorkerGroup", errors) if errors else None
            if fatal is not None:
                if fatal.__cause__ is None and group is not None:
                    fatal.__cause__ = group
                if fatal is not error:
                    raise fatal
            elif group is not None:
                raise group from None
            elif error is None and self._cancelled is not None:
                raise self._cancelled
            elif error is None and self._gave_up and self._parent_cancelled:
                raise Cancelled(self.token.cause)
        finally:
            self._cancelled = None
            del error, interrupt, errors, fatal, group


class _Member:
    """One function, in a thread of its own or on an executor."""

    __slots__ = (
        "_context", "_function", "_group", "_handed", "_process", "_ticket", "ended", "executor", "future", "name",
        "ran", "thread",
    )  # fmt: skip

    def __init__(self, group: WorkerGroup, name: str, function: Callable[[], Any], executor: Executor | None) -> None:
        self._group = group
        self._function: Callable[[], Any] | None = function
        self._context = contextvars.copy_context()
        self._process = os.getpid()
        self._ticket: list[None] = [None]  # whoever deletes the element begins the member, or withdraws it
        self.name = name
        self.executor = executor
        self._handed: Future[Any] | None = None  # the executor's own
        self.ran = False
        self.future: Future[Any] = futures.Future()
        self.ended: Channel[None] = Channel(name=f"{name} ended")
        self.thread: threading.Thread | None = None  # on an executor: the one that it runs on
        if executor is None:
            self.thread = threading.Thread(target=self._context.run, args=(self._run,), name=name)

    def start(self) -> None:
        if self.thread is not None:
            self.thread.start()
            return
        assert self.executor is not None
        self.future.add_done_callback(self._withdraw_if_cancelled)
        self._handed = handed = self.executor.submit(self._context.run, self._run)
        if self.ended.closed:  # withdrawn meanwhile, by somebody who did not see this future
            handed.cancel()
        handed.add_done_callback(self._given_back)

    def _withdraw_if_cancelled(self, future: Future[Any]) -> None:
        """Nobody waits for a future that was cancelled, even if the executor is busy with others."""
        if future.cancelled():
            self.withdraw()

    def _given_back(self, handed: Future[Any]) -> None:
        """The executor is through with it. One that is shut down, or broken, may never have begun it."""
        error = None if handed.cancelled() else handed.exception()
        if error is None:
            self.withdraw()  # if it was not begun
        elif self._take_ticket():
            self._function = None
            self._group._failed(error)
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)
            self.ended.close()

    def _take_ticket(self) -> bool:
        try:
            del self._ticket[0]
        except IndexError:
            return False
        return True

    def _run(self) -> None:
        if self.executor is not None and self._group.token.cancelled and self.withdraw():
            self._group._gave_up = True
        if not self._take_ticket():
            return
        if self.thread is None:
            self.thread = threading.current_thread()
        self.ran = True
        group, future, function, ended = self._group, self.future, self._function, self.ended
        self._function = None
        del self
        try:
            if function is not None and future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    group._failed(error)  # first: who waits for the future shall find the token cancelled
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
        finally:
            ended.close()
            del group, future, function, ended  # a traceback may hold this frame, and the future the traceback

    def withdraw(self) -> bool:
        """Starting failed or was interrupted, or it shall not begin any more. Once it has begun, does nothing and
        returns False.
        """
        if not self._take_ticket():
            return False
        try:
            self._function = None
            self._group._members.pop(self, None)
            self.future.cancel()
            self.future.set_running_or_notify_cancel()  # tells `wait` and `as_completed`
            if self._handed is not None:
                self._handed.cancel()
        finally:
            self.ended.close()
        return True

    @property
    def elsewhere(self) -> bool:
        """The thread stayed in the parent process."""
        return self._process != os.getpid() and self.thread is not threading.current_thread()

    @property
    def is_alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def join(self, timeout: float | None) -> None:
        if self.elsewhere:
            return
        with contextlib.suppress(ChannelClosed):
            self.ended.recv(timeout)
        if self.ran and self.executor is None and self.thread is not None:
            self.thread.join()


def _check_executor(executor: object) -> None:
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor must be one of concurrent.futures, such as ThreadPoolExecutor(), whose submit takes a function,"
            f" not {executor!r}"
        )
    for module, name in (("process", "ProcessPoolExecutor"), ("interpreter", "InterpreterPoolExecutor")):
        kind = getattr(sys.modules.get(f"concurrent.futures.{module}"), name, None)  # imported, if there is one
        if kind is not None and isinstance(executor, kind):
            raise TypeError(
                f"a WorkerGroup cannot run on a {type(executor).__name__}: channels and cancel tokens connect the"
                " threads of one process, and do not reach its workers. Use a ThreadPoolExecutor, or no executor"
            )


def _why(error: BaseException) -> object:
    return error.cause if isinstance(error, Cancelled) else error


def _makes_coroutines(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
