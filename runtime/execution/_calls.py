"""Calls of foreign code: tools, hooks, models, toolsets.

The worker of a stream starts a call and waits for its messages on a channel; the stream's cancel token ends this wait.
The call itself runs on a helper thread, or as a task on the event loop's thread. If the stream ends first, the inbox is
closed: late messages of the call are refused, and the call is left to end by itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextvars import Context
from types import FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Final, Protocol

from channels import Cancelled, CancelToken, Channel, ChannelClosed
from channels._lazy import lazy, lazy_logger

from .._dataclasses import dataclass
from .._errors import NotInTime, describe
from ._helpers import HelperPool
from ._threads import Running

if TYPE_CHECKING:
    import inspect
    import traceback
    from concurrent.futures import Future
    from types import FrameType

    from channels.aio import Feed, LoopThread, TaskHandle
else:
    inspect = lazy("inspect")
    traceback = lazy("traceback")

_logger = lazy_logger("runtime")

# Few messages, and the loop's thread, which posts some of them, must never wait: as good as unbounded.
INBOX: Final = 1 << 30
_DEBUG: Final = 10  # as in `logging`, which is not imported
_ELSEWHERE: Final = object()  # the call is made by somebody else

_COROUTINE: Final = 0x80  # `inspect.CO_COROUTINE`, a flag of the code of a function

FRAMES: Final = 20  # of a stack or a traceback, the innermost: enough to find the place, few enough to be read


def stack_of(thread: threading.Thread | Running) -> str:
    """The stack of a thread, for a report."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "" if frame is None else stack_text(frame)


def stack_text(frame: FrameType) -> str:
    """The stack that ends with ``frame``, from the first call of code that is not ours: what leads to it is the same
    in all threads. All of it, where no other code is in it.
    """
    library = os.path.dirname(threading.__file__)
    packages = (os.path.dirname(str(sys.modules[name].__file__)) for name in ("channels", "runtime"))
    ours = (threading.__file__, os.path.join(library, "concurrent", ""), *(os.path.join(each, "") for each in packages))
    stack = traceback.extract_stack(frame)
    begin = next((at for at, each in enumerate(stack) if not each.filename.startswith(ours)), 0)
    return "".join(traceback.format_list(stack[begin:][-FRAMES:]))


def refuse_on_the_loop(what: str, instead: str) -> None:
    """Raise `RuntimeError` if the caller would block the event loop on which all asynchronous tools and models run."""
    is_loop = getattr(sys.modules.get("channels.aio._loop"), "on_a_loop_thread", None)  # not imported: no loop of ours
    if is_loop is not None and is_loop():
        raise RuntimeError(
            f"{what} in a coroutine would stop every asynchronous tool and model of the process: {instead}"
        )


class Inbox(Protocol):
    """Where the last message of a call goes: a channel, or a pump. Closed, it raises `ChannelClosed`, or drops it."""

    def send(self, message: Finished, /) -> None: ...
    def close(self) -> object: ...


class _Nobody:
    """An inbox that nobody reads."""

    def send(self, message: Finished) -> None: ...

    def close(self) -> None: ...


NOBODY: Final = _Nobody()


class Kept:
    """The inbox of one call, which keeps how it ended, for whoever has waited until it is done."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None

    def send(self, message: Finished) -> None:
        """Keep the outcome, not the message: that holds the call, which holds this."""
        self.outcome = Outcome(message.value, message.error)

    def close(self) -> None:
        """Let go of the call. Its outcome may still be read."""


class Call:
    """One call of foreign code that is under way."""

    thread: threading.Thread | None = None
    task: TaskHandle | None = None
    feed: Feed[Any] | None = None
    tool_call_id: str | None = None  # where it is a tool that runs
    future: Future[None] | None = None
    traceback = ""  # where it failed
    said = ""  # and the exception in one line
    heard = True  # whether anybody may want to know why it failed
    _over = False

    def __init__(self, what: str, inbox: Inbox) -> None:
        self.what = what
        self.inbox = inbox
        self.began = time.monotonic()
        self._done: dict[None, Channel[None]] = {}  # made for the first who waits, whom most calls do not have
        self._unclaimed = [None]

    @property
    def done(self) -> Channel[None]:
        """Closes when the call is over."""
        done = self._done.get(None)
        if done is None:
            done = self._done.setdefault(None, Channel(name=f"{self.what} done"))
            if self._over:  # looked at when the channel is there; `end` looks for the channel when this is written
                done.close()
        return done

    @done.setter
    def done(self, done: Channel[None]) -> None:
        self._done[None] = done

    @property
    def over(self) -> bool:
        """Whether it is over, as far as one knows without waiting."""
        return self._over or (bool(self._done) and self._done[None].closed)

    def end(self) -> None:
        """The call is over. Harmless when it is said again."""
        self._over = True
        if self._done:
            self._done[None].close()

    @property
    def claimed(self) -> bool:
        """Whether somebody makes it, or has."""
        return not self._unclaimed

    def claim(self) -> bool:
        """Claim the call: True for the one caller that has to make it, else False. A single step."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Called once, on the thread where the call ran."""
        try:
            if error is not None:
                self.explain(error)
            self.inbox.send(Finished(value, error, self))
        except ChannelClosed:
            pass
        except BaseException:
            self.inbox.close()  # rather than let the worker wait for ever
            _logger.exception("%r could not say that it is over", self)
        finally:
            self.end()

    def explain(self, error: BaseException) -> None:
        """Put into words why it failed. On the thread where it ran: the text of an exception is foreign code."""
        if self.heard or _logger.isEnabledFor(_DEBUG):
            if not isinstance(error, Cancelled):
                self.traceback = _failed(self.what, error)
            self.said = describe(error)

    def cancel(self) -> None:
        """Ask the call to end: a task is cancelled, a job that has not begun is dropped, a thread cannot be
        interrupted."""
        if self.task is not None:
            self.task.cancel()
        if self.future is not None and self.future.cancel():
            self.end()

    def stack(self) -> str:
        """The stack of the call, for a report."""
        on_loop = self.task or self.feed
        if on_loop is not None:
            return on_loop.stack()
        return "" if self.thread is None else stack_of(self.thread)

    def __repr__(self) -> str:
        on_loop = self.task is not None or self.feed is not None
        where = "event loop" if on_loop else self.thread.name if self.thread is not None else "waiting"
        return f"<Call {self.what} on {where}{', done' if self.over else ''}>"


def _failed(what: str, error: BaseException) -> str:
    """The traceback of a failed call."""
    try:
        text = "".join(traceback.format_exception(error, limit=-FRAMES))
    except Exception:  # its `str` may fail in ways that `traceback` does not expect
        text = f"{type(error).__name__}, which cannot be shown"
    _logger.debug("%s failed\n%s", what, text)
    return text


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a call: its result, or its exception."""

    value: Any
    error: BaseException | None

    def result(self) -> Any:
        """The return value of the call; raises what the call raised."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class Finished(Outcome):
    """The last message of a call."""

    call: Call


class Calls:
    """The foreign calls of one stream. Used by its worker."""

    def __init__(
        self, token: CancelToken, helpers: HelperPool, loop: Callable[[], LoopThread], context: Context
    ) -> None:
        self.token = token
        self._helpers = helpers
        self._loop = loop
        self._context = context
        self._live: set[Call] = set()
        self.heard = 0.0  # when a model has last said something, of `monotonic`, where it was not the worker that heard
        self._nested: dict[Call, Calls] = {}  # nested streams, while there may be something left of them

    def start(
        self,
        what: str,
        inbox: Inbox,
        function: Callable[..., Any],
        /,
        *args: Any,
        within: Context | None = None,
        **kwargs: Any,
    ) -> Call:
        """Start ``function`` with its own copy of ``within``, by default of the caller's context; its last message to
        ``inbox`` is `Finished`.

        So it is where the system has no thread for it, or no event loop: one call of thousands that cannot be started
        fails, and not the stream.
        """
        call = Call(what, inbox)
        self.begin_or_withdraw(
            call, functools.partial(function, *args, **kwargs) if args or kwargs else function, within
        )
        return call

    def begin_or_withdraw(self, call: Call, function: Callable[[], Any], within: Context | None) -> None:
        """`begin`, for who has not told anybody of the call yet: interrupted, it is taken back."""
        try:
            self.begin(call, function, within)
        except BaseException:
            self.withdraw(call)
            raise

    def begin(self, call: Call, function: Callable[[], Any], within: Context | None = None) -> None:
        """`launch`, but where that fails the call has failed: it is told so by its last message."""
        try:
            self.launch(call, function, within)
        except Exception as error:
            if call.claim():
                self._done(call, None, error)

    def launch(self, call: Call, function: Callable[[], Any], within: Context | None = None) -> None:
        """Make ``call``. Launching it twice makes it once, for a worker that was interrupted and cannot know."""
        self._live.add(call)
        context = (within or self._context).copy()
        if is_coroutine_function(function):
            call.task = self._loop().start(
                lambda: _claimed(call, function),
                on_done=lambda value, error: None if value is _ELSEWHERE else self._done(call, value, error),
                context=context,
            )
        else:
            call.future = self._helpers.submit(functools.partial(self._help, call, context, function))

    def withdraw(self, call: Call) -> None:
        """Take back a call that could not be launched, unless it has begun all the same."""
        if call.claim():
            self._live.discard(call)

    @property
    def may_make_here(self) -> bool:
        """Whether the thread of the worker may make calls: threads are not those of an executor alone."""
        return self._helpers.unbounded

    def run(
        self, what: str, function: Callable[..., Any], /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Call ``function`` and wait for what it returns or raises.

        Raises `Cancelled` when the stream is cancelled first, `NotInTime` after ``timeout`` seconds; the call is then
        left to itself.
        """
        inbox: Channel[Finished] = Channel(1, name=what)
        call = self.start(what, inbox, function, *args, **kwargs)
        try:
            finished = inbox.recv(timeout=timeout, cancel=self.token)
        except TimeoutError:
            call.cancel()
            raise NotInTime(f"{what} did not end within {timeout:g} s") from None
        finally:
            inbox.close()
        return finished.result()

    def _help(self, call: Call, context: Context, function: Callable[[], Any]) -> None:
        if call.claim():
            self._done(call, *self._make(call, context, function))

    def _make(self, call: Call, context: Context, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Make a call that was claimed, in this thread. What it returned, and what it raised."""
        call.thread = threading.current_thread()
        try:
            value = context.run(function)
            if is_awaitable(value):  # of a plain function that returns a coroutine
                value = self._loop().call(value, cancel=self.token, context=context)
            return value, None
        except BaseException as error:  # SystemExit too: it ends the call, not the thread
            return None, error

    def _done(self, call: Call, value: Any, error: BaseException | None) -> None:
        self._live.discard(call)
        if error is None:
            call.finish(value, None)
        else:
            self._told(call, error, functools.partial(call.finish, value))

    def _told(self, call: Call, error: BaseException, tell: Callable[[BaseException], object]) -> None:
        """Tell of a call that failed, in the context of its stream: what is logged then is about that."""
        # A cancel ends many calls with an exception, and of many streams at once: to make a traceback for each one,
        # which looks for its source files, would take longer than all else.
        call.heard = not self.token.cancelled
        self._context.copy().run(tell, error)

    def abandon(self, keep: Container[Call] = ()) -> None:
        """Let go of all calls except ``keep``: inboxes are closed, tasks are cancelled, threads end by themselves."""
        for call in list(self._live):
            if call not in keep:
                call.inbox.close()
                call.cancel()

    def expect(self, what: str, other: Calls) -> Call:
        """A nested stream, of which these are the ``other`` calls, is to run: `join` waits until `ended` is called."""
        call = Call(what, Channel(name=what))
        self._nested[call] = other
        return call

    def ended(self, call: Call) -> None:
        """The expected stream is over. The calls that it leaves behind are this stream's to wait for, and to name."""
        call.end()
        for each, calls in list(self._nested.items()):
            if each.over and all(left.over for left in calls._all_live()):
                self._nested.pop(each, None)

    @contextlib.contextmanager
    def nested(self, call: Call) -> Iterator[None]:
        """The nested stream that was expected runs in the block."""
        call.thread = threading.current_thread()
        try:
            yield
        finally:
            self.ended(call)

    def forget(self) -> None:
        """In a forked child: drop these calls, whose threads and tasks do not exist there."""
        self._live.clear()
        self._nested.clear()

    def join(self, timeout: float, nested: CancelToken | None = None) -> list[Call]:
        """Wait for all calls. Returns those that have not ended after ``timeout`` seconds.

        The streams nested in them come first, until ``nested`` is cancelled: they have cleanup hooks that take their
        time, and the call that waits for such a stream is not what is stuck.
        """
        stuck = _join(self._all_nested, nested) if nested is not None else []
        return stuck + _join(self._all_live, CancelToken(timeout=timeout))

    def _all_live(self) -> Iterator[Call]:
        yield from list(self._live)
        for calls in list(self._nested.values()):
            yield from calls._all_live()

    def _all_nested(self) -> Iterator[Call]:
        for call, calls in list(self._nested.items()):
            yield call
            yield from calls._all_nested()

    def __repr__(self) -> str:
        return f"<Calls {len(self._live)} under way>"


def is_awaitable(value: Any) -> bool:
    """`inspect.isawaitable`, which takes its time to find out that a value is not."""
    kind = value.__class__
    return (hasattr(kind, "__await__") or kind is GeneratorType) and inspect.isawaitable(value)


def is_coroutine_function(function: Any) -> bool:
    """`inspect.iscoroutinefunction`, which takes its time to find out that a plain function is none."""
    plain = plain_function(function)
    return inspect.iscoroutinefunction(function) if plain is None else bool(plain.__code__.co_flags & _COROUTINE)


def plain_function(function: Any) -> FunctionType | None:
    """The function that is called, where it is one that is written in Python, and not marked as anything else."""
    while type(function) is functools.partial:
        function = function.func
    if type(function) is MethodType:
        function = function.__func__
    return function if type(function) is FunctionType and not function.__dict__ else None


async def _claimed(call: Call, function: Callable[[], Any]) -> Any:
    return await function() if call.claim() else _ELSEWHERE


def _join(under_way: Callable[[], Iterator[Call]], deadline: CancelToken) -> list[Call]:
    """Wait for the calls that are ``under_way``, also for those that become so meanwhile; those that have not ended."""
    me = threading.current_thread()
    stuck = []
    seen: set[Call] = set()
    while left := [call for call in under_way() if call not in seen]:
        seen.update(left)
        for call in left:
            if call.thread is me:
                continue  # a tool that closes its own stream does not wait for itself
            try:
                call.done.recv(cancel=deadline)
            except ChannelClosed:
                pass
            except Cancelled:
                if not call.over:
                    stuck.append(call)
    return stuck
