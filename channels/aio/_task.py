"""One task on a loop, and who wants to know how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from .._channel import Channel
from .._errors import Cancelled
from .._lazy import lazy_logger
from .._views import Receiver
from ._life import Life

GRACE: Final = 1.0  # seconds that cancelled tasks have to end
DEEPEST: Final = 100  # coroutines that await each other, as far as they are shown

_logger = lazy_logger("channels")

OnDone: TypeAlias = Callable[[Any, BaseException | None], object]


class Run:
    """A task on the loop of a `Life`, and who wants to know how it ended: told once, on every path."""

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
        owner: object,
        life: Life,
        target: Any,
        args: tuple[Any, ...],
        on_done: OnDone | None,
        context: contextvars.Context | None,
    ) -> None:
        if not (callable(target) or inspect.isawaitable(target)):
            raise TypeError(f"what runs on a loop must be a coroutine or a coroutine function, not {target!r:.200}")
        if on_done is not None and not callable(on_done):
            discard(target)
            raise TypeError(
                f"on_done must be a function of the result and the exception, or None, not {on_done!r:.200}"
            )
        if context is not None and not isinstance(context, contextvars.Context):
            discard(target)
            raise TypeError(f"context must be a contextvars.Context, or None, not {context!r:.200}")
        self.owner = owner  # the `LoopThread`: not closed for being dropped while a task of it runs
        self.life = life
        self._target = target
        self._args = args
        self._on_done = on_done
        # A copy: a context that another thread has entered cannot be entered, and that would be found out too late.
        self._context = contextvars.copy_context() if context is None else context.copy()
        self.name = named(target)
        self._task: asyncio.Task[None] | None = None
        self._asked = False  # to cancel
        self._ticket: list[None] = [None]  # whoever claims it tells
        self.done: Channel[None] = Channel(name="task ended")

    def begin(self) -> None:
        """Begin the task. Any thread. Raises `RuntimeError` if the loop is closed."""
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
        """Cancel the task. Any thread; does not wait."""
        if not (self._asked or self.done.closed):  # where it is at its end anyway, the loop need not be woken
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

    def stack(self) -> str:
        """Where the task is suspended, for people. Any thread."""
        task = self._task
        frames: list[tuple[Any, int]] = []
        awaited: Any = None if task is None else task.get_coro()
        while awaited is not None and len(frames) < DEEPEST:
            for frame, inner in (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom")):
                if hasattr(awaited, frame):
                    at, awaited = getattr(awaited, frame), getattr(awaited, inner)
                    if at is not None:
                        frames.append((at, at.f_lineno))
                    break
            else:
                break  # a future, or what is awaited in C
        return "".join(traceback.StackSummary.extract(iter(frames)).format())

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
        """Let go of a task that was never begun."""
        discard(self._target)
        self._target, self._args = None, ()

    def forked(self) -> None:
        """In the child: the task is the parent's affair."""


def discard(target: Any) -> None:
    if inspect.iscoroutine(target):
        target.close()  # no "was never awaited"


def named(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _task_cancelled(error: asyncio.CancelledError) -> Cancelled:
    cancelled = Cancelled(error.args[0] if error.args else None)
    cancelled.__cause__ = error
    return cancelled


class TaskHandle:
    """A task that `LoopThread.start` began. Dropping it does not stop the task."""

    __slots__ = ("_run", "done")

    def __init__(self, run: Run) -> None:
        self._run = run
        #: A receiver that closes when the task has ended and its ``on_done`` has returned.
        self.done: Receiver[None] = Receiver(run.done)

    def cancel(self, cause: object = None) -> None:
        """Cancel the task; does not wait for its end. Thread-safe.

        ``cause`` becomes the cause of the `Cancelled` that ``on_done`` gets. A second call does nothing, so that the
        task is not disturbed in its cleanup; nor does a call after the task has ended.
        """
        self._run.cancel(cause)

    def stack(self) -> str:
        """Where the task is suspended, as text like a traceback, innermost call last; empty if the task has ended. It
        is for people: the stack of a task that runs meanwhile may be a step ahead or behind. Thread-safe, takes no
        lock.
        """
        return self._run.stack()

    def __repr__(self) -> str:
        return f"<TaskHandle {self._run.name}{', ended' if self.done.closed else ''}>"
