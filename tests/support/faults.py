"""Fault injection at every step.

A `Scenario` builds an agent. The harness wraps everything that the loop calls of the outside - model, deltas, tools,
hooks, toolsets, observers, the bridge, the channel, the consumer itself - so that each such call is a numbered
`Point`. One run without a fault finds the points; then the scenario is run again, once for each point and each
`Fault`, and after each run the laws are checked. A feature joins by adding a scenario.

Nothing here sleeps to let something happen: a fault is set off by the call it hits, on the thread that makes that call.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import ctypes
import functools
import gc
import inspect
import logging
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

import runtime.agent._hooks as hooks_module
import runtime.stream._core as core_module
import runtime.stream._forwarder as forwarder_module
from channels import Cancelled, CancelToken, Channel, ChannelClosed
from runtime import (
    Agent,
    Answer,
    Decision,
    EventStream,
    Hook,
    HookInput,
    NotPending,
    NotRunning,
    Recording,
    RunError,
    Runtime,
    Session,
    SessionNotFound,
    StreamStuck,
    Tool,
    ToolSet,
)
from runtime.events import (
    AgentChoice,
    ElicitationRequest,
    Error,
    Event,
    MaxIterationsReached,
    Paused,
    StreamStopped,
    ToolCallConfirmation,
    ToolCallResponse,
)
from runtime.execution import _threads
from runtime.session._journal import Entry, Journal, Status
from runtime.stores import MemoryStore, Parent
from runtime.stream import _at_exit
from runtime.stream._core import StreamCore
from support import figures
from support.interrupts import between, press_ctrl_c, uncalled_by_collections
from support.waiting import eventually

LONG = 10.0  # seconds after which something will never happen
PROMPT = 0.25  # seconds from a cancel to the end of the consumer's loop; test_cancel.py measures 0.05
GRACE = 0.5  # of the runtime: long enough for an observer on a busy machine
_eventually = functools.partial(eventually, seconds=3.0)  # what a stream leaves to others is done soon
TRIES = 3  # a run that was only slow is run again: what is slow by itself is slow each time

INJECTED = figures.counted[figures.FAULTS]  # scenario -> faults


class Point(NamedTuple):
    """The ``number``-th call of ``name``."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} #{self.number}"


class Abrupt(BaseException):
    """What nobody expects."""


class Thrown(Abrupt):
    """Thrown into a thread, wherever it was."""


Kind = Literal["raise", "cancel", "close", "leave", "drop", "stall", "stuck", "interrupt"]


@dataclass(frozen=True)
class Fault:
    """What happens at a point.

    ``raise``: the call raises. ``cancel``: another thread cancels the stream meanwhile. ``close``: another thread
    closes it. ``leave``: the consumer leaves its ``with`` block. ``drop``: it forgets the stream. ``stall``: the call
    stands still; the consumer cancels, and reads to the end. ``stuck``: the call stands still while the consumer
    leaves. ``interrupt``: an asynchronous exception is thrown into the worker, wherever that is.
    """

    kind: Kind
    error: Callable[[], BaseException] | None = None

    def __str__(self) -> str:
        return self.kind if self.error is None else f"raise {self.error().__class__.__name__}"

    @property
    def needs_consumer(self) -> bool:
        """Whether the consumer has to act."""
        return self.kind in ("leave", "drop", "stall", "stuck")


def raising(*kinds: type[BaseException]) -> list[Fault]:
    """One fault for each kind of exception."""
    return [Fault("raise", functools.partial(kind, "injected")) for kind in kinds]


PLAIN = [
    *raising(RuntimeError, Abrupt),
    *(Fault(kind) for kind in ("cancel", "close", "leave", "drop", "stall", "interrupt")),
]
EXOTIC = raising(
    MemoryError, TimeoutError, StopIteration, StopAsyncIteration, Cancelled, ChannelClosed, asyncio.CancelledError,
    GeneratorExit, SystemExit, KeyboardInterrupt, RecursionError, AssertionError,
)  # fmt: skip
SLOW = [Fault("stuck")]  # each takes the grace time where the call is on a helper thread, which cannot be cancelled


@dataclass(frozen=True)
class Scenario:
    """What runs. ``build`` gets the `Outside`, for agents that tools run; the agent it returns is wrapped already."""

    name: str
    build: Callable[[Outside], Agent]
    reason: str = "normal"  # of the end, where nothing fails
    code: str = "tool_failed"  # of the error, where that is "error"
    observed: bool = False
    recorded: bool = False
    stored: bool = False  # in a store, whose journals are numbered calls, too
    capacity: int = 128
    interactive: bool = True
    executor: bool = False
    aside: tuple[str, ...] = ("observer", "consumer")  # points that the worker does not wait for
    hinge: Point | None = None  # the call that ``reason`` hangs on: when it fails, the end is normal
    answer: Callable[[ElicitationRequest], Answer] = lambda request: Answer("accept", {"n": 1})
    more: int = 0  # turns that are granted, once
    interrupted: bool = False  # Ctrl-C comes into each answer, at another point each time; then it is given again
    decision: Callable[[ToolCallConfirmation], Decision] = lambda request: Decision(True)


# -- the numbered calls ------------------------------------------------------------------------------------------------


class Outside:
    """Everything the loop calls, wrapped; and the one call that is hit."""

    def __init__(self, target: Point | None = None, fault: Fault | None = None) -> None:
        self.target = target
        self.fault = fault
        self.points: list[Point] = []
        self.threads_of: dict[Point, str] = {}
        self.left: set[Point] = set()  # where the thread of a worker has left it
        self.opened = threading.Event()  # the consumer has its stream
        self.core: StreamCore | None = None
        self.stream: Callable[[], EventStream | None] = lambda: None  # weak: the consumer alone holds it
        self.wake = CancelToken()  # tells the consumer that it is its turn
        self.release = threading.Event()  # lets stalled calls go on
        self.root_events: Channel[Any] | None = None
        self.cleanups = 0  # session_end hooks that have to be called
        self.counts_turns = False  # one hook at either end of a turn
        self.hit = False
        self.hit_at = 0.0
        self.decided = False  # whether the end was decided when the fault struck
        self.injected: BaseException | None = None
        self.threads: list[threading.Thread] = []
        self.sessions: list[Session] = []  # of nested streams, put here by the scenario
        self.told: list[str] = []  # what the stream has taken of what was said to it meanwhile
        self.left_out: list[Any] = []  # observers that took longer than the grace time: they are told no more
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def _mine(self, name: str) -> bool:
        with self._lock:
            self._counts[name] += 1
            point = Point(name, self._counts[name])
            self.points.append(point)
            self.threads_of[point] = name_of_thread = threading.current_thread().name
            for core in list(_at_exit.live):
                if name_of_thread == f"lockgate-stream-{core.number}" and core.driver and core.driver.rest:
                    self.left.add(point)
            return point == self.target

    def reach(self, name: str, stall: Callable[[], None] | None = None) -> None:
        """A call of ``name`` begins. ``stall`` is how it stands still, where that is not waiting for `release`."""
        if self._mine(name) and self._strike():
            (stall or functools.partial(self.release.wait, 3 * LONG))()

    async def areach(self, name: str) -> None:
        """The same, in a task."""
        if self._mine(name) and self._strike():
            deadline = time.monotonic() + 3 * LONG
            while not self.release.is_set() and time.monotonic() < deadline:
                await asyncio.sleep(0.002)

    def _strike(self) -> bool:
        """Do what the fault says; whether the call shall stand still."""
        fault = self.fault
        assert fault is not None
        assert self.opened.wait(LONG)
        assert self.core is not None
        self.hit = True
        self.hit_at = time.monotonic()
        self.decided = self.core.ending.decided
        if fault.error is not None:
            self.injected = fault.error()
            raise self.injected
        if fault.kind == "interrupt":
            self.hit = _throw_into(self.core.threads[0])
        elif fault.kind == "cancel":
            self._elsewhere(lambda stream: stream.cancel("injected")).join(LONG)
        elif fault.kind == "close":
            self._elsewhere(EventStream.close)
        else:
            self.wake.cancel()
        mine = self.target is not None and self.target.name.startswith("consumer")
        if fault.kind == "close" or (fault.kind in ("leave", "drop") and not mine):
            with contextlib.suppress(ChannelClosed, TimeoutError):
                self.core.token.done.recv(timeout=LONG)
        return fault.kind in ("stall", "stuck")

    def _elsewhere(self, function: Callable[[EventStream], None]) -> threading.Thread:
        """Call it in another thread."""

        def act() -> None:
            stream = self.stream()
            if stream is not None:
                with contextlib.suppress(StreamStuck):
                    function(stream)

        return self.start(act)

    def start(self, function: Callable[[], None]) -> threading.Thread:
        """A thread that has to end with the run."""
        thread = threading.Thread(target=function, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    @property
    def anywhere(self) -> bool:
        """Whether the fault struck where nobody can say what the loop was doing; then fewer laws hold."""
        at_start = self.target is not None and self.target.name == "thread"
        return self.hit and (at_start or (self.fault is not None and self.fault.kind == "interrupt"))

    # -- wrapping ------------------------------------------------------------------------------------------------------

    def wrap(self, agent: Agent, prefix: str = "") -> Agent:
        """``agent``, with all its calls numbered; ``prefix`` tells the points of several agents apart."""
        if not prefix:
            hooks = agent.hooks or {}
            self.cleanups = sum(callable(each) for each in hooks.get("session_end", ()))
            self.counts_turns = len(hooks.get("turn_start", ())) == len(hooks.get("turn_end", ())) == 1
        return replace(
            agent,
            model=_Model(self, prefix, agent.model),
            tools=[self._tool(each, prefix) for each in agent.tools],  # type: ignore[arg-type]
            toolsets=[_ToolSet(self, prefix, each) for each in agent.toolsets],
            hooks={
                point: [self._hook(each, f"{prefix}hook {point}") for each in hooks]
                for point, hooks in (agent.hooks or {}).items()
            },
        )

    def wrap_model(self, model: Any, prefix: str) -> Any:
        """A model that is not that of an agent."""
        return _Model(self, prefix, model)

    def _tool(self, tool: Tool, prefix: str) -> Tool:
        wrapped = copy.copy(tool)
        where = "consumer tool" if tool.on == "consumer" else f"{prefix}tool"
        function, name = tool.function, f"{where} {tool.name}"
        if tool.is_async:

            async def call_async(**arguments: Any) -> Any:
                await self.areach(name)
                value = await function(**arguments)
                await self.areach(f"{name} returns")
                return value

            wrapped.function = call_async
            return wrapped

        stall = self._stay_away if tool.on == "consumer" else None

        def call(**arguments: Any) -> Any:
            self.reach(name, stall)
            value = function(**arguments)
            self.reach(f"{name} returns", stall)
            return value

        wrapped.function = call
        return wrapped

    def _stay_away(self) -> None:
        """A tool that keeps its consumer: cancelled by another thread, the stream has to end without it."""
        self._elsewhere(lambda stream: stream.cancel("injected"))
        assert self.core is not None
        if not _closes(self.core.finished, LONG):
            raise AssertionError("law 2: the stream waits for a tool in the consumer's thread")
        self.release.set()

    def _hook(self, hook: Any, name: str) -> Any:
        if isinstance(hook, Hook):
            return replace(hook, target=self._hook(hook.target, name))
        if not callable(hook):
            return hook  # a command: numbered by `_patched`
        if inspect.iscoroutinefunction(hook):

            async def call_async(given: HookInput) -> Any:
                await self.areach(name)
                return await hook(given)

            return call_async

        def call(given: HookInput) -> Any:
            self.reach(name)
            return hook(given)

        return call


def _throw_into(thread: threading.Thread) -> bool:
    """Whether the thread was there to be hit."""
    if not thread.is_alive():
        return False
    if sys.version_info < (3, 12) and threading._limbo:  # type: ignore[attr-defined]
        return False  # a thread that is about to begin goes by the ident of the one that starts it, and would be hit
    ident = ctypes.c_ulong(thread.ident or 0)
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Thrown)) == 1


class _Model:
    def __init__(self, outside: Outside, prefix: str, model: Any) -> None:
        self.id = model.id
        self._outside = outside
        self._prefix = prefix
        self._model = model
        self.stream: Any = self._async if inspect.isasyncgenfunction(model.stream) else self._sync

    def _sync(self, messages: Any, tools: Any, *, cancel: CancelToken) -> Any:
        self._outside.reach(f"{self._prefix}model start")
        deltas = self._model.stream(messages, tools, cancel=cancel)
        return self._numbered_async(deltas) if hasattr(deltas, "__aiter__") else self._numbered(deltas)

    def _numbered(self, deltas: Iterable[Any]) -> Iterator[Any]:
        try:
            for delta in deltas:
                self._outside.reach(f"{self._prefix}delta")
                yield delta
        finally:
            self._outside.reach(f"{self._prefix}model end")

    async def _numbered_async(self, deltas: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for delta in deltas:
                await self._outside.areach(f"{self._prefix}delta")
                yield delta
        finally:
            await self._outside.areach(f"{self._prefix}model end")

    async def _async(self, messages: Any, tools: Any, *, cancel: CancelToken) -> AsyncIterator[Any]:
        await self._outside.areach(f"{self._prefix}model start")
        async with contextlib.aclosing(
            self._numbered_async(self._model.stream(messages, tools, cancel=cancel))  # type: ignore[type-var]
        ) as deltas:
            async for delta in deltas:
                yield delta


class _ToolSet:
    def __init__(self, outside: Outside, prefix: str, toolset: ToolSet) -> None:
        self.name = type(toolset).__name__
        self._outside = outside
        self._prefix = prefix
        self._toolset = toolset

    def start(self) -> None:
        self._outside.reach(f"{self._prefix}toolset start")
        self._toolset.start()

    def tools(self) -> Sequence[Tool]:
        self._outside.reach(f"{self._prefix}toolset tools")
        return [self._outside._tool(each, self._prefix) for each in self._toolset.tools()]

    def stop(self) -> None:
        self._toolset.stop()


class _Observer:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def on_run_start(self, session: Session) -> None:
        self._outside.reach("observer start")

    def on_event(self, session: Session, event: Event) -> None:
        self._outside.reach("observer event")


class _Recorder:
    """The observer that no fault hits."""

    def __init__(self) -> None:
        self.starts = 0
        self.events: list[Event] = []

    def on_run_start(self, session: Session) -> None:
        self.starts += 1

    def on_event(self, session: Session, event: Event) -> None:
        self.events.append(event)


@contextlib.contextmanager
def _patched(outside: Outside) -> Iterator[None]:
    """The channels of streams, and the start of commands and helper threads, numbered. The tested code knows nothing of
    it.
    """

    class Numbered(Channel[Any]):
        """A stream's channel. Other channels pass."""

        __slots__ = ()

        def __init__(self, capacity: int = 0, *, name: str | None = None) -> None:
            super().__init__(capacity, name=name)
            if outside.root_events is None and (name or "").startswith("events "):
                outside.root_events = self

    def send(self: Any, value: Any, timeout: float | None = None, cancel: Any = None) -> None:
        if (self.name or "").startswith("events "):
            worker = threading.current_thread().name.startswith("lockgate-stream")  # or a reader of the background
            prefix = "" if self is outside.root_events and worker else "sub "
            # It stands still as a full channel does.
            outside.reach(f"{prefix}send", lambda: Channel[Any]().send(value, timeout, cancel))
        Channel.send(self, value, timeout, cancel)

    def send_many(self: Any, values: Any, timeout: float | None = None, cancel: Any = None) -> None:
        sent = 0
        try:
            for value in values:
                self.send(value, timeout, cancel)
                sent += 1
        except BaseException as error:
            error.sent = sent  # type: ignore[attr-defined]  # as `Channel.send_many` tells it
            raise

    # Behind the back of Channel, which lets nobody override them.
    Numbered.send = send  # type: ignore[method-assign]
    Numbered.send_many = send_many  # type: ignore[method-assign]

    run_command = hooks_module.run_command

    def numbered_command(*args: Any) -> Any:
        outside.reach("command")
        return run_command(*args)

    start = threading.Thread.start

    def numbered_start(thread: threading.Thread) -> None:
        if thread.name.startswith("lockgate-helper"):
            outside.reach("thread")
        start(thread)

    class Log:
        """What the forwarder logs."""

        def __getattr__(self, name: str) -> Any:
            return getattr(logging.getLogger("runtime"), name)

        def warning(self, text: str, *args: Any) -> None:
            if "in time" in text:
                outside.left_out.append(args[0])

    with uncalled_by_collections(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwarder_module, "_logger", Log())
        patch.setattr(_threads, "_idle", _threads._Idle())  # so that each run starts as many threads
        patch.setattr(threading.Thread, "start", numbered_start)
        patch.setattr(threading, "excepthook", lambda args: None)  # of a worker that was interrupted
        patch.setattr(core_module, "Channel", Numbered)
        patch.setattr(hooks_module, "run_command", numbered_command)
        yield
        _threads.end_idle(LONG)


class NumberedStore:
    """A store in memory whose journals are numbered calls."""

    def __init__(self, outside: Outside) -> None:
        self.inner = MemoryStore()
        self._outside = outside

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, session: Session, *, parent: Parent | None = None) -> NumberedJournal:
        return NumberedJournal(self._outside, self.inner.open(session, parent=parent), parent is not None)


class NumberedJournal:
    """Its writes fail, or stand still, as those of a disk do."""

    def __init__(self, outside: Outside, inner: Journal, nested: bool) -> None:
        self._outside = outside
        self._nested = nested
        self._released = False
        self._inner = inner
        self._posted: list[Entry] = []

    def post(self, *entries: Entry) -> None:
        self._posted.extend(entries)

    def append(self, *entries: Entry, cancel: Any = None) -> None:
        self.post(*entries)
        self._reach("append", None, cancel)
        self._write()

    def release(self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: Any = None) -> None:
        if self._released:
            return
        self._released = True
        try:
            self._reach("release", timeout, cancel)
            self._write()
        finally:
            self._inner.release(status, reason, timeout=timeout)

    def _reach(self, what: str, timeout: float | None, cancel: Any) -> None:
        worker = threading.current_thread().name.startswith("lockgate-stream")
        prefix = "sub " if self._nested else "" if worker else "other "  # who steers, or a tool's step
        self._outside.reach(f"{prefix}journal {what}", lambda: Channel[Any]().recv(timeout, cancel))

    def _write(self) -> None:
        posted, self._posted = self._posted, []
        self._inner.append(*posted)


# -- one run -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run of a scenario, and what its consumer saw."""

    scenario: Scenario
    outside: Outside
    session: Session = field(default_factory=lambda: Session.from_user("go"))
    recorder: _Recorder = field(default_factory=_Recorder)
    record: Path | None = None
    store: NumberedStore | None = None
    events: list[Event] = field(default_factory=list)
    ended: bool = False  # the consumer's loop came to its end
    ended_at: float = 0.0
    left_at: float = 0.0
    messages_at_end: tuple[Any, ...] | None = None
    result_error: BaseException | None = None
    stuck: StreamStuck | None = None
    raised: BaseException | None = None  # out of the consumer
    faults: list[str] = field(default_factory=list)
    slow: int = 0  # so many of them say only that something took its time

    def wrong(self, text: str) -> None:
        """Note a law that was broken."""
        self.faults.append(text)

    def late(self, text: str) -> None:
        """The same, of a bound that is missed too where the machine stands still."""
        self.slow += 1
        self.wrong(text)

    # -- the consumer --------------------------------------------------------------------------------------------------

    def consume(self, runtime: Runtime) -> None:
        """What the consumer's thread runs."""
        try:
            self._consume(runtime)
        except BaseException as error:
            self.raised = error

    def _consume(self, runtime: Runtime) -> None:
        outside = self.outside
        stream = runtime.run_stream(self.session, interactive=self.scenario.interactive, record=self.record)
        outside.core = stream._core
        outside.stream = weakref.ref(stream)
        outside.opened.set()
        fault = outside.fault
        dropping = fault is not None and fault.kind == "drop"
        try:
            with contextlib.nullcontext() if dropping else stream:
                if fault is not None and fault.needs_consumer:
                    self._read_awake(stream)
                else:
                    self._read(stream)
                    self._look_at_result(stream)
        except StreamStuck as stuck:
            self.stuck = stuck
        finally:
            self.left_at = time.monotonic()
        if not dropping and self.stuck is None:
            self._look_what_is_left(stream._core)

    def _look_what_is_left(self, core: StreamCore) -> None:
        left = [thread.name for thread in core.threads if thread.is_alive()]
        left += [repr(call) for call in list(core.calls._live) if not call.done.closed]
        if left:
            self.wrong(f"law 8: the block was left, and {left} were still there")

    def _read(self, stream: EventStream) -> None:
        """As people write it."""
        for event in stream:
            self._take(stream, event)
        self._at_end()

    def _read_awake(self, stream: EventStream) -> None:
        """The same, for a consumer that the fault wakes."""
        fault = self.outside.fault
        assert fault is not None
        try:
            while True:
                event = stream.recv(cancel=self.outside.wake)
                self._take(stream, event)
        except ChannelClosed:
            self._at_end()
            if fault.kind == "stall":  # in what the stream had left behind
                self.outside.release.set()
        except Cancelled:
            if fault.kind == "stall":
                stream.cancel("injected")
                self._read(stream)
                self.outside.release.set()
            # leave, drop, stuck: gone

    def _take(self, stream: EventStream, event: Event) -> None:
        self.events.append(event)
        self.outside.reach("consumer", functools.partial(self._be_absent, stream))
        if isinstance(event, ElicitationRequest):
            answer = self.scenario.answer(event)
            self._answer(stream, event, lambda: stream.respond(event, answer.action, answer.content))
            self.outside.reach("consumer answered", functools.partial(self._be_absent, stream))
        elif isinstance(event, MaxIterationsReached) and event.request_id:
            first = sum(isinstance(each, MaxIterationsReached) for each in self.events) == 1
            self._answer(stream, event, lambda: stream.extend(event, self.scenario.more if first else 0))
            self.outside.reach("consumer answered", functools.partial(self._be_absent, stream))
        elif isinstance(event, Paused):
            with contextlib.suppress(NotRunning):
                stream._core.mailbox.resume()
            self.outside.reach("consumer resumed", functools.partial(self._be_absent, stream))
        elif isinstance(event, ToolCallConfirmation):
            decision = self.scenario.decision(event)
            if decision.approved:
                self._answer(stream, event, lambda: stream.approve(event, decision.scope))
            else:
                self._answer(stream, event, lambda: stream.reject(event, decision.reason))
            self.outside.reach("consumer decided", functools.partial(self._be_absent, stream))

    def _answer(self, stream: EventStream, event: Event, give: Callable[[], object]) -> None:
        """Interrupted, an answer has arrived, or its question waits: or the run comes to no end."""
        if self.scenario.interrupted:
            target = self.outside.target
            number = 5 * len(self.events) + (0 if target is None else 3 * target.number + len(target.name))
            with contextlib.suppress(NotPending, KeyboardInterrupt):
                between(number % 60, give, press_ctrl_c)
            if event not in stream.pending:
                return
        with contextlib.suppress(NotPending):  # the stream was cancelled meanwhile
            give()

    def _be_absent(self, stream: EventStream) -> None:
        """A consumer that stands still: cancelled by another thread, the stream has to end without it."""
        self.outside._elsewhere(lambda stream: stream.cancel("injected"))
        core = stream._core
        # What had ended before waits to be read, if there are observers.
        if not _closes(core.finished, LONG) or (core.ending.reason == "canceled" and not _closes(core.over, LONG)):
            self.wrong("law 2: the stream waits for a consumer that is absent")
        self.outside.release.set()

    def _at_end(self) -> None:
        self.ended = True
        self.ended_at = time.monotonic()
        if self.events and isinstance(self.events[-1], StreamStopped):  # or else another thread has closed the stream
            self.messages_at_end = self.session.messages

    def _look_at_result(self, stream: EventStream) -> None:
        try:
            self.stuck = stream.result().stuck
        except RunError as error:
            self.result_error = error
            self.stuck = error.stuck


def _closes(channel: Channel[Any], timeout: float) -> bool:
    try:
        channel.recv(timeout=timeout)
    except ChannelClosed:
        return True
    except TimeoutError:
        pass
    return False


def run(scenario: Scenario, target: Point | None = None, fault: Fault | None = None) -> Run:
    """Run the scenario, with ``fault`` at ``target``, and check the laws; `Run.faults` tells which were broken."""
    for _ in range(TRIES):
        done = _run(scenario, target, fault)
        if not done.slow or done.slow < len(done.faults):
            break
    return done


def _run(scenario: Scenario, target: Point | None, fault: Fault | None) -> Run:
    outside = Outside(target, fault)
    this = Run(scenario, outside)
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        if scenario.stored:
            this.store = NumberedStore(outside)
        if scenario.recorded:
            this.record = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run.jsonl"
        stack.enter_context(_patched(outside))
        executor = stack.enter_context(ThreadPoolExecutor(4, "executor")) if scenario.executor else None
        runtime = Runtime(
            outside.wrap(scenario.build(outside)),
            observers=[_Observer(outside), this.recorder] if scenario.observed else (),
            executor=executor,
            event_capacity=scenario.capacity,
            grace=GRACE,
            store=this.store,
        )
        send = runtime.bridge.send

        def numbered_send(event: Event, *, to: Any = None, timeout: Any = None, cancel: Any = None) -> None:
            prefix = "" if to is outside.root_events else "sub "
            outside.reach(f"{prefix}bridge send", lambda: Channel[Any]().send(event, timeout, cancel))
            send(event, to=to, timeout=timeout, cancel=cancel)

        runtime.bridge.send = numbered_send  # type: ignore[method-assign]
        consumer = threading.Thread(target=this.consume, args=(runtime,), daemon=True, name="consumer")
        try:
            consumer.start()
            consumer.join(LONG)
            if consumer.is_alive():
                where = "".join(traceback.format_stack(sys._current_frames().get(consumer.ident or 0)))
                this.wrong(f"law 2: the consumer's loop does not end; it is here:\n{where}")
                return this
            _check_while_stalled(this)
            outside.release.set()
            for thread in outside.threads:
                thread.join(LONG)
                if thread.is_alive():
                    this.wrong(f"law 8: {thread} does not end")
            if fault is not None and fault.kind == "drop":
                gc.collect()
                outside.wake.cancel()
            _check(this, runtime)
        finally:
            outside.release.set()
            started = time.monotonic()
            runtime.close()
            if time.monotonic() - started > 3 * GRACE + 1:
                this.late("Runtime.close() is not bounded")
            del runtime
            _check_threads(this, before)
    return this


# -- the laws ----------------------------------------------------------------------------------------------------------


def reasons(this: Run) -> set[str]:
    """What `StreamStopped` may say, given the fault."""
    outside, base = this.outside, this.scenario.reason
    if not outside.hit or outside.decided:
        return {base}
    assert outside.target is not None
    assert outside.fault is not None
    name = outside.target.name
    if outside.anywhere:
        return {base, "error", "normal"}
    if name.startswith("journal release"):  # the end is near, and decided when the store has it
        return {base, "error"} if outside.fault.kind == "raise" else {base, "canceled"}
    if name.startswith("other journal"):  # the run ends as soon as it meets that
        return {base, "error"} if outside.fault.kind == "raise" else {base, "canceled"}
    if outside.fault.kind != "raise":
        return {"canceled", base} if name.startswith(this.scenario.aside) else {"canceled"}  # it may be at its end
    if name.startswith("consumer"):
        return {"canceled", base} if surfaces(outside) else {base}
    if outside.target == this.scenario.hinge:
        return {"normal"}
    if name.startswith(("model", "delta", "toolset", "bridge", "send", "journal")):
        return {"error"}
    return {base}  # tools, hooks, commands, observers, and whatever happens in a nested stream


def surfaces(outside: Outside) -> bool:
    """Whether what was injected is raised to the consumer: in its own code, and in a tool that runs there, of which
    ordinary failures are results, and so is a wait of the tool's that was cancelled.
    """
    if not outside.hit or outside.target is None or not outside.target.name.startswith("consumer"):
        return False
    in_tool = outside.target.name.startswith("consumer tool")
    return not (in_tool and isinstance(outside.injected, (Exception, Cancelled)))


def _check_while_stalled(this: Run) -> None:
    """With the call still standing there, if it does."""
    outside, fault = this.outside, this.outside.fault
    if fault is None or not outside.hit:
        return
    aside = outside.target is not None and outside.target.name.startswith("observer")
    bound = PROMPT + (2 * GRACE if aside else 0)  # an observer has that long before it is left out
    if fault.kind in ("cancel", "stall") and this.ended and this.ended_at - outside.hit_at > bound:
        this.late(f"law 18: the loop ended {this.ended_at - outside.hit_at:.3f} s after the cancel")
    if fault.kind in ("leave", "drop") and this.left_at - outside.hit_at > bound:
        this.late(f"law 8: the block was left {this.left_at - outside.hit_at:.3f} s after the consumer wanted to")
    if fault.kind == "stuck":
        helper = on_helper(outside, outside.target) if outside.target else False
        if helper and (this.stuck is None or "did not end" not in str(this.stuck)):
            this.wrong("law 8: a helper was left behind that nobody named")
        if not helper and this.stuck is not None:
            this.late(f"law 8: {this.stuck}")


def _check(this: Run, runtime: Runtime) -> None:
    outside, fault = this.outside, this.outside.fault
    core = outside.core
    assert core is not None
    if not _closes(core.finished, LONG):
        this.wrong("law 1: the worker does not end")
        return
    expected = reasons(this)
    if core.ending.reason not in expected:
        this.wrong(f"law 2: the reason is {core.ending.reason!r}, should be {' or '.join(sorted(expected))}")
    if fault is not None and fault.kind == "drop":  # the end is in the background, nested streams' too
        _eventually(lambda: not runtime._shared.cores and len(runtime.bridge) == 0)
    if not core.events.closed or (not core.out.closed and not _eventually(lambda: core.out.closed)):
        this.wrong("law 1: the channel is not closed")
    _check_events(this, core)
    if runtime.bridge.current is not None or len(runtime.bridge):
        this.wrong(f"law 1: the bridge is left with {runtime.bridge!r}")
    if runtime._shared.asks.pending():
        this.wrong(f"law 6: questions are left pending: {runtime._shared.asks!r}")
    if runtime._shared.confirmations.pending():
        this.wrong(f"law 6: confirmations are left pending: {runtime._shared.confirmations!r}")
    if runtime._shared.cores and not _eventually(lambda: not runtime._shared.cores):
        this.wrong(f"streams are left over: {runtime._shared.cores}")
    no_thread = outside.anywhere and fault is not None and fault.kind == "raise"  # for a hook, it may have been
    if not no_thread and not _eventually(lambda: outside._counts["hook session_end"] == outside.cleanups):
        this.wrong(f"law 10: {outside._counts['hook session_end']} of {outside.cleanups} cleanup hooks ran")
    starts, ends = outside._counts["hook turn_start"], outside._counts["hook turn_end"]
    counted = outside.counts_turns and not no_thread
    if counted and not starts <= ends <= starts + 1:  # cancelled before its turn_start hook ran, a turn began
        this.wrong(f"law 10: {starts} turns started, {ends} turn_end hooks ran")
    _check_session(this)
    if this.store is not None:
        _check_store(this, this.store)
    for session in outside.sessions:
        _check_calls(this, session)
    if this.raised is not None and this.raised is not outside.injected:
        this.wrong(f"law 17: the consumer met {this.raised!r}")
    if outside.injected is not None and surfaces(outside):
        if this.raised is not outside.injected:
            this.wrong(f"law 17: the body's exception was masked by {this.raised!r}")
    elif this.stuck is not None and not (fault is not None and fault.kind in ("stuck", "leave", "close")):
        this.late(f"law 8: {this.stuck}")
    if this.ended and this.result_error is not None:
        _check_result(this, this.result_error)
    if scenario_observed(this):
        _check_observer(this, core)
    if this.record is not None and not (outside.anywhere and fault is not None and fault.kind == "raise"):
        _check_record(this, this.record, core)


def scenario_observed(this: Run) -> bool:
    """Whether there are observers, who have to see the end by now."""
    if not this.scenario.observed or (this.outside.anywhere and this.outside.fault.kind == "raise"):  # type: ignore[union-attr]
        return False
    if not _eventually(lambda: _told_the_end(this)):
        this.wrong("law 9: the observer did not see the end")
    return True


def _told_the_end(this: Run) -> bool:
    recorder = this.recorder
    return recorder in this.outside.left_out or (
        bool(recorder.events) and isinstance(recorder.events[-1], StreamStopped)
    )


def _check_store(this: Run, store: NumberedStore) -> None:
    """Laws 19 and 20: what the consumer was told is there, and unless the store has failed, the whole session."""
    try:
        found = store.inner.load(this.session.id)
    except SessionNotFound:
        this.wrong("law 19: the session is not in the store")
        return
    results = {message.tool_call_id for message in found.messages if message.role == "tool"}
    for event in this.events:
        mine = isinstance(event, ToolCallResponse) and event.session_id == this.session.id
        if mine and event.tool_call.id not in results:
            this.wrong(f"law 19: the consumer was told the result of {event.tool_call.id}, and the store was not")
    failed = this.outside.target is not None and "journal" in this.outside.target.name
    if not failed and not this.outside.anywhere and found.messages != this.session.messages:
        this.wrong(f"law 19: the store has {len(found.messages)} messages, the session {len(this.session.messages)}")


def _check_events(this: Run, core: StreamCore) -> None:
    """Law 2: `StreamStopped` once, last, with the reason."""
    stops = [event for event in this.events if isinstance(event, StreamStopped)]
    closed = this.outside.hit and this.outside.fault is not None and this.outside.fault.kind == "close"
    if this.ended and not closed and len(stops) != 1:
        this.wrong(f"law 2: {len(stops)} StreamStopped in {[event.type for event in this.events]}")
    if len(stops) > 1 or (stops and this.events[-1] is not stops[0]):
        this.wrong(f"law 2: StreamStopped is not last in {[event.type for event in this.events]}")
    if stops and stops[0].reason != core.ending.reason:
        this.wrong(f"law 2: StreamStopped says {stops[0].reason}, the stream {core.ending.reason}")
    if not this.ended or closed:
        return
    if this.outside.anywhere:
        return
    codes = [e.code for e in this.events if isinstance(e, Error) and e.session_id == this.session.id]
    lost = this.outside.decided and core.ending.reason != "normal"  # the fault hit the report itself
    if core.ending.reason in ("normal", "canceled", "max_iterations", "budget_exceeded"):
        if codes:
            this.wrong(f"the stream ended with {core.ending.reason}, and an error {codes}")
    elif codes != [_code(this)] and not lost:
        this.wrong(f"the error codes are {codes}, should be {_code(this)}")


def _code(this: Run) -> str:
    outside = this.outside
    if outside.injected is not None and outside.target is not None and "journal" in outside.target.name:
        return "store_failed" if isinstance(outside.injected, Exception) else "internal"
    if not outside.hit or outside.decided or outside.injected is None or reasons(this) != {"error"}:
        return this.scenario.reason if this.scenario.reason != "error" else this.scenario.code
    assert outside.target is not None
    name = outside.target.name
    if name.startswith(("model", "delta")):
        return "model_error"
    return "tool_failed" if name.startswith("toolset") else "internal"


def _check_result(this: Run, error: BaseException) -> None:
    """Law 17: `result` raises from the original."""
    injected = this.outside.injected
    if injected is None or this.outside.anywhere or reasons(this) != {"error"} or this.outside.decided:
        return
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if not any(each is injected or type(each) is Cancelled for each in chain):
        this.wrong(f"law 17: result() raised {chain!r}, without {injected!r}")


def _check_session(this: Run) -> None:
    """Law 16: sealed and consistent."""
    session = this.session
    messages = session.messages
    if this.messages_at_end is not None and this.messages_at_end != messages:
        this.wrong("law 16: the session was written after the last event")
    _check_calls(this, session)
    if this.outside.anywhere:
        return
    users = [message.content for message in messages if message.role == "user"][1:]
    heard = [text for text in users if text in this.outside.told]  # hooks and wrong output make others
    if heard != this.outside.told:
        this.wrong(f"{this.outside.told} was said to the stream, the session has {heard}")
    seen = "".join(e.content for e in this.events if isinstance(e, AgentChoice) and e.session_id == session.id)
    said = "".join(message.content for message in messages if message.role == "assistant")
    if not said.startswith(seen):
        this.wrong(f"the consumer saw {seen!r}, the session has {said!r}")
    stop = next((event for event in this.events if isinstance(event, StreamStopped)), None)
    if stop is not None and stop.reason == "normal" and seen != said:
        this.wrong(f"the consumer saw {seen!r}, the session has {said!r}")


def _check_calls(this: Run, session: Session) -> None:
    """Law 16: every call has one result, and it stands before the next message; law 15: nobody holds the lease."""
    messages = session.messages
    if session._lease is not None:
        this.wrong("law 15: the session is still leased")
    made = [call.id for message in messages for call in message.tool_calls]
    answered = [message.tool_call_id for message in messages if message.role == "tool"]
    if len(set(made)) != len(made):
        this.wrong(f"two calls share an id: {made}")
    if sorted(made) != sorted(each or "" for each in answered):
        this.wrong(f"law 16: the calls are {made}, the results {answered}")
    open_calls: set[str | None] = set()
    for message in messages:
        if message.role == "tool":
            open_calls.discard(message.tool_call_id)
        elif open_calls:
            this.wrong("law 16: a result stands behind the next message")
            break
        else:
            open_calls = {call.id for call in message.tool_calls}


def _check_observer(this: Run, core: StreamCore) -> None:
    """Law 9: every event once, in order; all of them, unless the observer took longer than the grace time."""
    recorded = this.recorder.events
    left_out = this.recorder in this.outside.left_out
    if this.recorder.starts != 1:
        this.wrong(f"law 9: on_run_start was called {this.recorder.starts} times")
    if [e for e in recorded if isinstance(e, StreamStopped)] != recorded[-1:] and not left_out:
        this.wrong(f"law 9: the observer saw {[event.type for event in recorded]}")
    if len({id(event) for event in recorded}) != len(recorded):
        this.wrong("law 9: the observer saw an event twice")
    told = this.outside._counts["observer event"]
    if told != len(recorded) and not this.outside.left_out:
        this.wrong(f"law 9: one observer was told of {told} events, the other of {len(recorded)}")
    got = iter(recorded)
    if not left_out and not all(any(event is each for each in got) for event in this.events):
        this.wrong("law 9: the observer did not see what the consumer saw, in that order")


def _check_record(this: Run, path: Path, core: StreamCore) -> None:
    """Law 9, for the file: it is closed, has its end, and before that what the consumer saw, in that order."""
    assert core.recorder is not None
    if not _eventually(lambda: core.recorder._file.closed):  # type: ignore[union-attr]
        this.wrong("the record is not closed")
        return
    recorded = list(Recording(path).events())
    if [e for e in recorded if isinstance(e, StreamStopped)] != recorded[-1:]:
        this.wrong(f"law 9: the record has {[event.type for event in recorded]}")
    got = iter(recorded)
    if not all(any(event == each for each in got) for event in this.events):
        this.wrong("law 9: the record has not what the consumer saw, in that order")
    for request in Recording(path).requests:
        if request.reply is None:
            this.wrong(f"the record has no reply to request {request.number}")


def _check_threads(this: Run, before: set[threading.Thread]) -> None:
    """Law 8: what the stream and the runtime started is gone."""

    def left() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in before
            and thread.name.startswith(("lockgate-stream", "lockgate-observe", "lockgate-help", "lockgate-back"))
        ]

    if not _eventually(lambda: not left()):
        this.wrong(f"law 8: threads are left: {left()}")


# -- many runs ---------------------------------------------------------------------------------------------------------


def inject(scenario: Scenario, choose: Callable[[Point], Iterable[Fault]]) -> list[str]:
    """Run the scenario without a fault, then with each of ``choose(point)`` at each point; what went wrong."""
    # What the tests before have left is set aside: each consumer that forgets its stream has a collection of the whole
    # heap after it, which took as long as the grace time of observers at the end of a long run.
    gc.collect()
    gc.freeze()
    quiet = run(scenario)
    wrong = [f"without a fault: {each}" for each in quiet.faults]
    for point in quiet.outside.points:
        for fault in dict.fromkeys([*choose(point), *([] if on_helper(quiet.outside, point) else SLOW)]):
            if not applies(scenario, point, fault):
                continue
            done = run(scenario, point, fault)
            if done.outside.hit:
                INJECTED[scenario.name] += 1
            wrong += [f"{fault} at {point}: {each}" for each in done.faults]
    return wrong


def on_helper(outside: Outside, point: Point) -> bool:
    """Whether the call was made where a cancel leaves it behind: on a helper, or on a thread that left its worker."""
    return point in outside.left or outside.threads_of[point].startswith(("lockgate-helper", "executor"))


def applies(scenario: Scenario, point: Point, fault: Fault) -> bool:
    """Whether the fault can happen there."""
    if scenario.interrupted and fault.kind == "interrupt" and sys.version_info < (3, 12):
        # CPython 3.11 itself hangs: as long as an asynchronous exception is pending for a thread that is parked, a
        # thread with a profile function, as `between` sets, repeats the RESUME of the function that it enters, for ever
        return False
    if point.name == "thread":
        return fault.error is not None and isinstance(fault.error(), (RuntimeError, MemoryError))
    if ("send" in point.name or "journal" in point.name) and fault.error is not None:
        return not isinstance(fault.error(), (Cancelled, ChannelClosed))  # what a channel may say, and means
    return not (point.name.startswith("consumer") and fault.kind == "stuck")
