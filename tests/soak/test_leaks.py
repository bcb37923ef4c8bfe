"""Threads, file descriptors and memory are flat, however many streams there were, and however they ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pathlib
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from channels import CancelToken, after
from runtime import Agent, EventStream, HookInput, RunError, Runtime, Session, TextDelta, ToolContext, tool
from runtime.events import ElicitationRequest, Event
from runtime.stream import _at_exit as exit_module
from support.scripted import call
from support.waiting import eventually

FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SAMPLES = 5


# -- an agent that can be run again and again --------------------------------------------------------------------------


class Model:
    """What it does is in the last message: a tool's name, or text to say."""

    id = "by request"

    def stream(self, messages: Any, tools: Any, *, cancel: CancelToken) -> Iterator[Any]:
        """`Model.stream`."""
        last = messages[-1]
        if last.role == "user" and last.content == "fail":
            raise LookupError("as requested")
        if last.role == "user" and last.content in {each.name for each in tools}:
            yield call(last.content)
            return
        for _ in range(8):
            yield TextDelta("some text ")


class AsyncModel(Model):
    """The same, asynchronously."""

    async def stream(self, messages: Any, tools: Any, *, cancel: CancelToken) -> AsyncIterator[Any]:  # type: ignore[override]
        """`Model.stream`."""
        for delta in super().stream(messages, tools, cancel=cancel):
            await asyncio.sleep(0)
            yield delta


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks."""
    return context.elicit("How many?", FORM, timeout=3600).action


@tool(read_only=True)
async def ask_async(context: ToolContext) -> str:
    """Asks, on the loop."""
    return (await context.aelicit("How many?", FORM, timeout=3600)).action


@tool(read_only=True)
def timers(context: ToolContext) -> str:
    """Leaves all kinds of timers and callbacks behind."""
    token = CancelToken(context.cancel, timeout=3600)
    context.cancel.on_cancel(lambda: None)
    token.on_cancel(lambda: None)
    after(3600)
    with contextlib.suppress(TimeoutError):
        after(3600).recv(timeout=0, cancel=token)
    return "left"


@tool(read_only=True)
def nested(context: ToolContext) -> str:
    """Runs another agent."""
    return context.run_agent(Agent("sub", Model(), tools=[timers]), "timers").text


def hook(given: HookInput) -> None:
    """Nothing."""


class Watching:
    """An observer that keeps nothing."""

    def on_run_start(self, session: Session) -> None:
        """Nothing."""

    def on_event(self, session: Session, event: Event) -> None:
        """Nothing."""


def _agent(model: Any) -> Agent:
    tools = [ask, ask_async, timers, nested]
    return Agent("a", model, tools=tools, hooks={"session_start": [hook], "session_end": [hook]})


# -- ways to use it ----------------------------------------------------------------------------------------------------


def normal(runtime: Runtime) -> None:
    """To its end."""
    runtime.run(Session.from_user("hi"))


def failing(runtime: Runtime) -> None:
    """To its end, which is an error."""
    with contextlib.suppress(RunError):
        runtime.run(Session.from_user("fail"))


def _answering(name: str) -> Callable[[Runtime], None]:
    def answering(runtime: Runtime) -> None:
        runtime.run(Session.from_user(name), on_request=lambda request: {"n": 1})

    return answering


def unanswered(runtime: Runtime) -> None:
    """A question that nobody answers, in a stream that is left."""
    with runtime.run_stream(Session.from_user("ask")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                break


def cancelled(runtime: Runtime) -> None:
    """Cancelled after two events, read to the end."""
    with runtime.run_stream(Session.from_user("hi")) as stream:
        next(stream)
        next(stream)
        stream.cancel("enough")
        for _ in stream:
            pass


def _drop(stream: EventStream) -> None:
    next(stream)


def dropped(runtime: Runtime) -> None:
    """Forgotten after an event; then the end is waited for, so that streams do not pile up."""
    stream = runtime.run_stream(Session.from_user("ask_async"))
    _drop(stream)
    core = stream._core
    del stream
    with contextlib.suppress(Exception):
        core.over.recv(timeout=10)


WAYS = [
    normal, failing, unanswered, cancelled, dropped,
    _answering("ask"), _answering("ask_async"), _answering("timers"), _answering("nested"),
]  # fmt: skip


# -- what is measured --------------------------------------------------------------------------------------------------


def _settled_threads() -> int:
    """The number of threads, once those that are about to end have."""

    def settled() -> bool:
        return not any(t.name.startswith(("lockgate-stream", "lockgate-observe")) for t in threading.enumerate())

    assert eventually(settled), threading.enumerate()
    return threading.active_count()


def _descriptors() -> int:
    folder = pathlib.Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def _measure() -> tuple[int, int, int]:
    """Threads, file descriptors, bytes."""
    threads = _settled_threads()
    for _ in range(3):
        gc.collect()
    return threads, _descriptors(), tracemalloc.get_traced_memory()[0]


def _leaks(streams: int, use: Callable[[int], None], tell: Callable[[str], None], name: str, slack: int) -> None:
    """Warm up, then measure again and again; ``slack`` bytes may be gained, of all streams together."""
    for number in range(max(100, streams // 10)):
        use(number)
    tracemalloc.start()
    try:
        for number in range(100):  # what is replaced in caches was allocated before tracing began
            use(number)
        samples = [_measure()]
        for _ in range(SAMPLES):
            for number in range(streams // SAMPLES):
                use(number)
            samples.append(_measure())
        if samples[-1][2] - samples[0][2] > slack:
            _explain(use, streams)
    finally:
        tracemalloc.stop()
    threads, descriptors, sizes = (list(each) for each in zip(*samples, strict=True))
    grown = (sizes[-1] - sizes[0]) / streams
    tell(f"{name}: {streams} streams, {grown:+.1f} bytes each, threads {threads}, descriptors {descriptors}")
    assert max(threads) <= threads[0] + 2, f"threads: {threads}"
    assert descriptors[-1] <= descriptors[0], f"file descriptors: {descriptors}"
    assert sizes[-1] - sizes[0] <= slack, f"bytes: {sizes}"


def _explain(use: Callable[[int], None], streams: int) -> None:
    """Print what grows."""
    before = tracemalloc.take_snapshot()
    for number in range(streams // SAMPLES):
        use(number)
    gc.collect()
    for line in tracemalloc.take_snapshot().compare_to(before, "lineno")[:15]:
        print(line)


def _one_runtime(streams: int, tell: Callable[[str], None], model: Any, observed: bool, slack: int) -> None:
    with Runtime(_agent(model), observers=[Watching()] if observed else ()) as runtime:

        def use(number: int) -> None:
            WAYS[number % len(WAYS)](runtime)

        name = f"one runtime, {type(model).__name__}{', observed' if observed else ''}"
        _leaks(streams, use, tell, name, slack)
        shared = runtime._shared
        assert not shared.asks.pending()
        assert not len(runtime.bridge)
        assert not shared.cores
        assert not exit_module.live


def _many_runtimes(streams: int, tell: Callable[[str], None], slack: int) -> None:
    models = [Model(), AsyncModel()]

    def use(number: int) -> None:
        with Runtime(_agent(models[number % 2])) as runtime:
            WAYS[number // 2 % len(WAYS)](runtime)

    _leaks(streams, use, tell, "a runtime for each stream", slack)


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [False, True], ids=["", "observed"])
@pytest.mark.parametrize("model", [Model(), AsyncModel()], ids=["sync", "async"])
def test_nothing_leaks(model: Any, observed: bool, tell: Callable[[str], None]) -> None:
    """Five hundred streams on one runtime."""
    _one_runtime(500, tell, model, observed, slack=64 * 1024)


def test_nothing_leaks_with_many_runtimes(tell: Callable[[str], None]) -> None:
    """A runtime for each stream."""
    _many_runtimes(200, tell, slack=64 * 1024)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("observed", [False, True], ids=["", "observed"])
@pytest.mark.parametrize("model", [Model(), AsyncModel()], ids=["sync", "async"])
def test_nothing_leaks_over_ten_thousand_streams(model: Any, observed: bool, tell: Callable[[str], None]) -> None:
    """Flat: not more than ten bytes a stream."""
    _one_runtime(10_000, tell, model, observed, slack=100_000)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_nothing_leaks_over_a_thousand_runtimes(tell: Callable[[str], None]) -> None:
    """The same, with a runtime for each stream."""
    _many_runtimes(2_000, tell, slack=100_000)
