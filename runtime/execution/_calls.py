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
from collections.abc import AsyncIterator, Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from channels import Cancelled, CancelToken, Channel, ChannelClosed
from channels._lazy import lazy, lazy_logger

from .._dataclasses import dataclass
from .._errors import NotInTime, describe
from ._helpers import HelperPool
from ._pump import Pump, reading
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
DELTAS: Final = 256  # how far a model may run ahead of the worker
#: The most items in a batch. What the worker does with the last of a batch, the first has to wait for; and one step for
#: so many costs each of them next to nothing.
BATCH: Final = 32

Batches: TypeAlias = Generator[Sequence[Any], None, None]


_COROUTINE: Final = 0x80  # `inspect.CO_COROUTINE` and `CO_ASYNC_GENERATOR`, flags of the code of a function
_ASYNC_GENERATOR: Final = 0x200

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
            if error is not None and (self.heard or _logger.isEnabledFor(_DEBUG)):
                if not isinstance(error, Cancelled):
                    self.traceback = _failed(self.what, error)
                self.said = describe(error)
            self.inbox.send(Finished(value, error, self))
        except ChannelClosed:
            pass
        except BaseException:
            self.inbox.close()  # rather than let the worker wait for ever
            _logger.exception("%r could not say that it is over", self)
        finally:
            self.end()

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
    """The traceback of a failed call, made here and not by the worker: the text of an exception is foreign code."""
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


class After:
    """What has to be done with the items of `Calls.batches` when the last of them is put, on the helper that they come
    from: it is at work, and another would have to be woken. The items are taken meanwhile. An asynchronous source runs
    on no helper, so then it is not done at all; nor is it where the items are not taken to their end.
    """

    kind: type  # of the items that it has to see
    what: str  # it does, for reports

    def __init__(self) -> None:
        self._call: Call | None = None

    def see(self, item: Any) -> None:
        """An item of its ``kind``. On the helper."""
        raise NotImplementedError

    def act(self) -> None:
        """The last item was put. On the helper."""
        raise NotImplementedError

    def feed(
        self, call: Call, pump: Pump[Any], source: AbstractContextManager[Iterator[Any]], context: Context
    ) -> None:
        """The function of ``call``: put the items, say that this was all, and do the rest, in a copy of ``context``.
        On the helper.
        """
        self._call = call
        if pump.feed(source, self.kind, self.see) and pump.end():
            call.what = self.what
            context.copy().run(self.act)

    def wait(self, cancel: CancelToken) -> None:
        """Wait until all is done. On the thread that has taken the items. Raises `Cancelled`."""
        call = self._call
        if call is not None and not call.over:
            with contextlib.suppress(ChannelClosed):
                call.done.recv(cancel=cancel)


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
        self._start(call, functools.partial(function, *args, **kwargs) if args or kwargs else function, within)
        return call

    def _start(self, call: Call, function: Callable[[], Any], within: Context | None) -> None:
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
        if _is_coroutine_function(function):
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

    def batches(
        self,
        what: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        within: Context | None = None,
        after: After | None = None,
        **kwargs: Any,
    ) -> Batches:
        """Iterate over what ``function`` returns, an iterator or an asynchronous one, in batches: an item comes with
        those that have come with it, and never waits for another. ``within`` is as in `start`.

        ``after`` is something to do behind the last item, on the same helper: see there.
        """
        source = functools.partial(function, *args, **kwargs)
        return (
            self._iterate_async(what, source, within)
            if _is_async_generator_function(function)
            else self._iterate_sync(what, source, within, after)
        )

    def _iterate_async(self, what: str, source: Callable[[], AsyncIterator[Any]], within: Context | None) -> Batches:
        call = Call(what, Channel(name=what))
        context = (within or self._context).copy()
        with self._loop().iterate(source, cancel=self.token, buffer=DELTAS, context=context) as items:
            call.done, call.feed = items.done._channel, items  # type: ignore[assignment]
            self._live.add(call)  # leaving the block cancels the task; `join` waits for its end
            yield from _small(items.batches())
        if call.over:
            self._live.discard(call)

    def _iterate_sync(
        self, what: str, source: Callable[[], Any], within: Context | None, after: After | None
    ) -> Batches:
        pump: Pump[Any] = Pump(DELTAS, what)
        call = Call(what, pump)
        items = reading(source, self._loop, self.token)
        feed: Callable[[], Any] = functools.partial(pump.feed, items)
        if after is not None:
            feed = functools.partial(after.feed, call, pump, items, self._context)
        self._start(call, feed, within)
        yield from pump.batches(self.token, most=BATCH)

    def _help(self, call: Call, context: Context, function: Callable[[], Any]) -> None:
        if not call.claim():
            return
        call.thread = threading.current_thread()
        try:
            value, error = context.run(function), None
            if value is not None and inspect.isawaitable(value):  # a plain function that returns a coroutine
                value = self._loop().call(value, cancel=self.token, context=context)
        except BaseException as caught:  # SystemExit too: it ends the call, not the helper
            value, error = None, caught
        self._done(call, value, error)

    def _done(self, call: Call, value: Any, error: BaseException | None) -> None:
        self._live.discard(call)
        if error is None:
            call.finish(value, None)
        else:  # what is logged then is about the stream of the call
            # A cancel ends many calls with an exception, and of many streams at once: to make a traceback for each one,
            # which looks for its source files, would take longer than all else.
            call.heard = not self.token.cancelled
            self._context.copy().run(call.finish, value, error)

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


def _small(batches: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """The same items, in batches of one and more, up to `BATCH`."""
    for batch in batches:
        if 0 < len(batch) <= BATCH:
            yield batch
        else:
            for first in range(0, len(batch), BATCH):
                yield batch[first : first + BATCH]


def _is_coroutine_function(function: Any) -> bool:
    """`inspect.iscoroutinefunction`, which takes its time to find out that a plain function is none."""
    plain = _plain(function)
    return inspect.iscoroutinefunction(function) if plain is None else bool(plain.__code__.co_flags & _COROUTINE)


def _is_async_generator_function(function: Any) -> bool:
    """`inspect.isasyncgenfunction`, likewise."""
    plain = _plain(function)
    return inspect.isasyncgenfunction(function) if plain is None else bool(plain.__code__.co_flags & _ASYNC_GENERATOR)


def _plain(function: Any) -> FunctionType | None:
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
