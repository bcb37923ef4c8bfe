"""A randomised soak: many streams at once, on a few runtimes, with consumers of every kind and faults everywhere.

Everything that is decided by chance is decided by one seed; which thread runs when is not, so a seed gives the same
load, not the same run.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import itertools
import random
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from channels import Cancelled, CancelToken, ChannelClosed, after
from runtime import (
    Agent,
    EventStream,
    HookInput,
    HookResult,
    InvalidAnswer,
    NotPending,
    RunError,
    Runtime,
    Session,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.events import ElicitationRequest, Error, Event, StreamStopped
from runtime.stream._core import StreamCore
from support.waiting import eventually

LONG = 30.0  # seconds after which something will never happen, on a machine that is as busy as this
FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Abrupt(BaseException):
    """What nobody expects."""


class Dice:
    """One random number generator for many threads."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, chance: float) -> bool:
        """True with that probability."""
        with self._lock:
            return self._random.random() < chance

    def upto(self, most: float) -> float:
        """A number from 0 to ``most``, small ones more often."""
        with self._lock:
            return self._random.random() ** 3 * most

    def choose(self, options: Any) -> Any:
        """One of them."""
        with self._lock:
            return self._random.choice(options)

    def maybe_fail(self, chance: float) -> None:
        """Raise something, with that probability."""
        if self(chance):
            raise self.choose(
                [RuntimeError, LookupError, TimeoutError, MemoryError, Cancelled, ChannelClosed, SystemExit, Abrupt]
            )("by chance")


# -- what runs ---------------------------------------------------------------------------------------------------------


class Wild:
    """A model that says and calls what chance wants, synchronously."""

    def __init__(self, dice: Dice, tools: list[str]) -> None:
        self.id = "wild"
        self.dice = dice
        self.tools = tools

    def turn(self) -> Iterator[Any]:
        """The deltas of one turn."""
        dice = self.dice
        for _ in range(dice.choose([0, 1, 2, 5, 20])):
            yield TextDelta(dice.choose(["x", "yy", "zzz"]))
        if self.tools and dice(0.5):
            for index in range(dice.choose([1, 1, 2, 4])):
                name = dice.choose([*self.tools, *self.tools, "unknown"])
                arguments = "{" if dice(0.05) else "{}"
                yield ToolCallDelta(index, f"call-{index}", name, arguments)  # ids come again and again
        yield UsageDelta(3, 4)

    def stream(self, messages: Any, tools: Any, *, cancel: CancelToken) -> Iterator[Any]:
        """`Model.stream`."""
        self.dice.maybe_fail(0.02)
        for delta in self.turn():
            time.sleep(self.dice.upto(0.003))
            self.dice.maybe_fail(0.01)
            yield delta


class AsyncWild(Wild):
    """The same, asynchronously."""

    async def stream(self, messages: Any, tools: Any, *, cancel: CancelToken) -> AsyncIterator[Any]:  # type: ignore[override]
        """`Model.stream`."""
        self.dice.maybe_fail(0.02)
        try:
            for delta in self.turn():
                await asyncio.sleep(self.dice.upto(0.003))
                self.dice.maybe_fail(0.01)
                yield delta
        finally:
            await asyncio.sleep(0)


def wild_agent(dice: Dice, name: str = "wild", depth: int = 0) -> Agent:
    """An agent that does everything."""

    @tool(read_only=True)
    def work() -> str:
        """Takes its time, whatever happens."""
        time.sleep(dice.upto(0.02))
        dice.maybe_fail(0.1)
        return "worked"

    @tool(read_only=True)
    async def work_async() -> str:
        """The same, on the loop."""
        await asyncio.sleep(dice.upto(0.02))
        dice.maybe_fail(0.1)
        return "worked"

    @tool(read_only=True)
    def wait(context: ToolContext) -> str:
        """Waits until it is cancelled, or a moment; leaves timers behind."""
        token = CancelToken(context.cancel, timeout=60)
        later = after(60)
        with contextlib.suppress(TimeoutError):
            later.recv(timeout=dice.upto(0.02), cancel=token)
        return "waited"

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks."""
        return context.elicit("How many?", FORM, timeout=dice.choose([None, 0.001, 0.05])).action

    @tool(read_only=True)
    async def ask_async(context: ToolContext) -> str:
        """Asks, on the loop."""
        return (await context.aelicit("How many?", FORM, timeout=dice.choose([None, 0.001, 0.05]))).action

    @tool(read_only=True, parallel=False)
    def alone() -> str:
        """Must not run beside others."""
        return "alone"

    tools: list[Tool] = [work, work_async, wait, ask, ask_async, alone]
    if depth < 2:
        inner = [wild_agent(dice, f"{name}-{i}", depth + 1) for i in range(2)]

        @tool(read_only=True)
        def delegate(context: ToolContext) -> str:
            """Runs another agent."""
            return context.run_agent(dice.choose(inner), "do").text

        tools.append(delegate)

    def hook(given: HookInput) -> HookResult:
        time.sleep(dice.upto(0.003))
        dice.maybe_fail(0.05)
        return HookResult(block=dice(0.02) and given.hook_event_name != "session_end", reason="by chance", context="!")

    async def hook_async(given: HookInput) -> None:
        await asyncio.sleep(dice.upto(0.003))
        dice.maybe_fail(0.05)

    model = (AsyncWild if dice(0.5) else Wild)(dice, [each.name for each in tools])
    points = ("session_start", "user_prompt_submit", "session_end", "notification", "on_error")
    return Agent(
        name,
        model,
        tools=tools,
        toolsets=[Shelf(dice)] if depth == 0 else [],
        hooks={point: [hook, hook_async] for point in points if dice(0.5)},
        max_iterations=6,
    )


class Shelf:
    """A toolset that sometimes does not start."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice

    def start(self) -> None:
        """`ToolSet.start`."""
        self.dice.maybe_fail(0.3)

    def tools(self) -> list[Tool]:
        """`ToolSet.tools`."""
        self.dice.maybe_fail(0.01)
        return [Tool("shelved", lambda: "from the shelf", read_only=True)]

    def stop(self) -> None:
        """`ToolSet.stop`."""


class Watching:
    """An observer that checks the order of what it sees, and sometimes raises."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.seen: dict[str, list[Event]] = {}

    def on_run_start(self, session: Session) -> None:
        """A stream starts."""
        self.seen[session.id] = []

    def on_event(self, session: Session, event: Event) -> None:
        """Keep it."""
        self.seen[session.id].append(event)
        self.dice.maybe_fail(0.01)


# -- who consumes ------------------------------------------------------------------------------------------------------


@dataclass
class Soak:
    """The whole of it."""

    seed: int
    seconds: float
    consumers: int = 100
    dice: Dice = field(init=False)
    wrong: list[str] = field(default_factory=list)
    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    behaviours: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0  # seconds from a cancel to the end of the consumer's loop

    def __post_init__(self) -> None:
        self.dice = Dice(self.seed)

    def run(self) -> None:
        """Soak for the time given, and check that nothing is left."""
        dice = self.dice
        observer = Watching(dice)
        before = set(threading.enumerate())
        pool = ThreadPoolExecutor(64, "soak-executor")
        settings: list[dict[str, Any]] = [
            {"event_capacity": 1},
            {"event_capacity": 128},
            {"event_capacity": 2, "observers": [observer]},
            {"event_capacity": 0},
            {"event_capacity": 16, "executor": pool},
        ]
        runtimes = [Runtime(wild_agent(dice), answer_timeout=0.2, grace=LONG / 3, **setting) for setting in settings]
        deadline = time.monotonic() + self.seconds
        threads = [
            threading.Thread(
                target=self._consume, args=(runtimes, observer, deadline), name=f"consumer-{i}", daemon=True
            )
            for i in range(self.consumers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline + LONG - time.monotonic()))
        hanging = [thread for thread in threads if thread.is_alive()]
        if hanging:
            frames = sys._current_frames()
            stacks = ["".join(traceback.format_stack(frames[t.ident])) for t in hanging if t.ident in frames]
            self.wrong.append(f"{len(hanging)} consumers hang:\n" + "\n".join(stacks[:3]))
            return
        for runtime in runtimes:
            runtime.close()
            self._check_runtime(runtime)
        pool.shutdown(wait=True)
        self._check_threads(before)

    def _consume(self, runtimes: list[Runtime], observer: Watching, deadline: float) -> None:
        number = itertools.count()
        while time.monotonic() < deadline and not self.wrong:
            runtime = self.dice.choose(runtimes)
            name = self.dice.choose(list(BEHAVIOURS))
            self.behaviours[name] += 1
            try:
                _One(self, runtime, observer, name).run()
            except BaseException:
                self.wrong.append(f"{name}, stream {next(number)} of its thread:\n{traceback.format_exc()}")

    def _check_runtime(self, runtime: Runtime) -> None:
        shared = runtime._shared
        if runtime.bridge.current is not None or len(runtime.bridge):
            self.wrong.append(f"law 1: the bridge is left with {runtime.bridge!r}")
        if shared.asks.pending():
            self.wrong.append(f"law 6: {shared.asks!r}")
        if shared.cores:
            self.wrong.append(f"law 8: {shared.cores}")

    def _check_threads(self, before: set[threading.Thread]) -> None:
        ours = ("lockgate-stream", "lockgate-observe", "lockgate-help")

        def left() -> list[threading.Thread]:
            return [each for each in threading.enumerate() if each not in before and each.name.startswith(ours)]

        if not eventually(lambda: not left(), LONG):
            self.wrong.append(f"law 8: threads are left: {left()}")

    def __str__(self) -> str:
        ends = ", ".join(f"{number} {reason}" for reason, number in self.ends.most_common())
        return f"seed {self.seed}: {self.ends.total()} streams ({ends}); slowest cancel {self.slowest * 1000:.0f} ms"


class _One:
    """One stream, its consumer, and the laws at its end."""

    def __init__(self, soak: Soak, runtime: Runtime, observer: Watching, behaviour: str) -> None:
        self.soak = soak
        self.dice = soak.dice
        self.runtime = runtime
        self.observer = observer
        self.behave = BEHAVIOURS[behaviour]
        self.session = Session.from_user("go")
        self.events: list[Event] = []
        self.whole = False  # the consumer read to the end, and nobody else did
        self.touched = False  # somebody cancelled it
        self.cancelled_at = 0.0
        self.threads: list[threading.Thread] = []

    def run(self) -> None:
        stream = self.runtime.run_stream(self.session, interactive=not self.dice(0.1))
        core = stream._core
        self.behave(self, stream)
        dropped = self.behave is drop
        del stream
        for thread in self.threads:
            thread.join(LONG)
            assert not thread.is_alive(), "law 8: close() from another thread does not end"
        if dropped:
            gc.collect(0)
        self._check(core)

    def read(self, stream: EventStream, *, most: int | None = None, pause: float = 0.0, answer: float = 0.9) -> None:
        """Read on; answer with that probability."""
        for number, event in enumerate(stream):
            self.events.append(event)
            if isinstance(event, ElicitationRequest) and self.dice(answer):
                self._answer(stream, event)
            if pause:
                time.sleep(self.dice.upto(pause))
            if number == most:
                return
        self.whole = True
        if self.cancelled_at:
            self.soak.slowest = max(self.soak.slowest, time.monotonic() - self.cancelled_at)

    def _answer(self, stream: EventStream, request: ElicitationRequest) -> None:
        with contextlib.suppress(NotPending):
            if self.dice(0.2):
                with contextlib.suppress(InvalidAnswer):
                    stream.respond(request, "accept", {"n": "many"})
            if self.dice(0.2):
                self.runtime.resume_elicitation("accept", {"n": 1}, request.elicitation_id)
            else:
                stream.respond(request, self.dice.choose(["accept", "decline", "cancel"]), {"n": 1})

    def elsewhere(self, function: Callable[[], None]) -> None:
        """Call it in another thread, in a moment."""
        self.touched = True

        def act() -> None:
            time.sleep(self.dice.upto(0.05))
            self.cancelled_at = time.monotonic()
            function()

        self.threads.append(threading.Thread(target=act, daemon=True))
        self.threads[-1].start()

    def _check(self, core: StreamCore) -> None:
        with contextlib.suppress(ChannelClosed):
            core.over.recv(timeout=LONG)
        reason = core.ending.reason
        self.soak.ends[reason] += 1
        assert core.events.closed
        assert core.out.closed, "law 1"
        stops = [event for event in self.events if isinstance(event, StreamStopped)]
        assert len(stops) == 1 if self.whole else len(stops) <= 1, "law 2"
        if stops:
            assert self.events[-1] is stops[0], "law 2"
            assert stops[0].reason == reason, "law 2"
        if reason == "canceled":
            assert self.touched, "law 2: nobody cancelled it"
        if self.whole:
            errors = [e.code for e in self.events if isinstance(e, Error) and e.session_id == self.session.id]
            failed = reason in ("error", "hook_blocked", "loop_detected")
            assert bool(errors) == failed or self.touched, (reason, errors)
        assert not self.runtime._shared.asks.pending(core), "law 6"
        assert self.session._lease is None, "law 15"
        made = [call.id for message in self.session.messages for call in message.tool_calls]
        answered = [message.tool_call_id for message in self.session.messages if message.role == "tool"]
        assert sorted(made) == sorted(each or "" for each in answered), "law 16"
        assert len(set(made)) == len(made), "law 16: ids"
        gone = eventually(lambda: not any(thread.is_alive() for thread in core.threads), LONG)
        assert gone, f"law 8: {core.threads}"
        seen = self.observer.seen.pop(self.session.id, None)
        if seen is not None:
            assert [e for e in seen if isinstance(e, StreamStopped)] == seen[-1:], (
                f"law 9: {[e.type for e in seen]} {reason} {self.events[-1:]}"
            )
            got = iter(seen)
            assert all(any(event is each for each in got) for event in self.events), "law 9"


def eager(one: _One, stream: EventStream) -> None:
    """Reads and answers."""
    with stream:
        one.read(stream)
        with contextlib.suppress(RunError):
            stream.result()


def slow(one: _One, stream: EventStream) -> None:
    """Reads slowly, and does not always answer."""
    with stream:
        one.read(stream, pause=0.02, answer=0.5)


def leaves(one: _One, stream: EventStream) -> None:
    """Has enough after a few events."""
    one.touched = True
    with stream:
        one.read(stream, most=one.dice.choose([0, 1, 3, 10]))
    one.whole = False


def absent(one: _One, stream: EventStream) -> None:
    """Does not read at all, then leaves."""
    one.touched = True
    with stream:
        time.sleep(one.dice.upto(0.05))


def late(one: _One, stream: EventStream) -> None:
    """Does not read at first; cancelled meanwhile, it still gets the end."""
    with stream:
        one.elsewhere(lambda: stream.cancel("late"))
        time.sleep(one.dice.upto(0.05))
        one.read(stream)


def cancelling(one: _One, stream: EventStream) -> None:
    """Cancelled by another thread."""
    with stream:
        one.elsewhere(lambda: stream.cancel("by chance"))
        one.read(stream)


def closing(one: _One, stream: EventStream) -> None:
    """Closed by another thread."""
    with stream:
        one.elsewhere(stream.close)
        one.read(stream)
    one.whole = False


def raising(one: _One, stream: EventStream) -> None:
    """Its body raises."""
    one.touched = True
    try:
        with stream:
            one.read(stream, most=2)
            raise Abrupt("mine")
    except Abrupt:
        pass
    one.whole = False


def drop(one: _One, stream: EventStream) -> None:
    """Forgets the stream."""
    one.touched = True
    one.read(stream, most=one.dice.choose([0, 1, 5]))
    one.whole = False


def waiting(one: _One, stream: EventStream) -> None:
    """Receives with timeouts, and does not answer."""
    with stream:
        while True:
            try:
                one.events.append(stream.recv(timeout=one.dice.upto(0.01)))
            except TimeoutError:
                continue
            except ChannelClosed:
                break
        one.whole = True


BEHAVIOURS: dict[str, Callable[[_One, EventStream], None]] = {
    each.__name__: each
    for each in (eager, eager, slow, leaves, absent, late, cancelling, closing, raising, drop, waiting)
}
