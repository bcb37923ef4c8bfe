"""Faults in the finalisation itself: whatever part of it fails, and however the stream ends, the consumer's loop
ends.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import runtime.stream._core as core_module
import runtime.stream._ending as ending_module
import runtime.stream._worker as worker
from channels import Cancelled, Channel, ChannelClosed
from runtime import (
    Agent,
    ElicitationBridge,
    HookInput,
    HookResult,
    RunError,
    Runtime,
    Session,
    StreamStuck,
    ToolContext,
    stream_scope,
    tool,
)
from runtime.events import Event, StreamStopped
from runtime.execution._calls import Calls
from runtime.execution._driver import Carrier
from runtime.human._asks import Asks
from runtime.loop._loop import _Run
from runtime.session._session import SessionLog
from runtime.stream._core import StreamCore
from runtime.stream._end_hooks import Cleanup, _Stage
from runtime.stream._end_reason import Ending
from runtime.stream._tracing import UNTRACED
from support.faults import INJECTED, LONG, Abrupt
from support.scripted import Scripted, call, say

PARTS: list[tuple[Any, str]] = [
    (Ending, "stopped"),
    (Ending, "decide"),
    (SessionLog, "settle"),
    (SessionLog, "release"),
    (Calls, "abandon"),
    (Calls, "join"),
    (Asks, "withdraw"),
    (Asks, "register"),
    (Cleanup, "due"),
    (Cleanup, "resume"),
    (Cleanup, "finish"),
    (StreamCore, "hook_input"),
    (type(UNTRACED), "end"),
    (StreamCore, "record"),
    (StreamCore, "emit"),
    (StreamCore, "fire"),
    (ElicitationBridge, "enter"),
    (ElicitationBridge, "drop"),
    (ElicitationBridge, "send"),
    (worker, "_run"),
    (worker, "_report"),
    (logging.getLogger("runtime"), "exception"),
]


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks."""
    return context.elicit("?").action


NOTED: list[str] = []


def _noted(given: HookInput) -> None:
    NOTED.append(given.hook_event_name)


async def _noted_async(given: HookInput) -> None:
    NOTED.append(given.hook_event_name)


def normal() -> Agent:
    """Two turns."""
    hooks = {"turn_start": [_noted], "turn_end": [_noted], "session_end": [_noted, _noted_async]}
    return Agent("a", Scripted([*say("x"), call("ask")], say("y")), tools=[ask], hooks=hooks)


def cancelled() -> Agent:
    """Cancelled while it asks, for its consumer does not answer."""
    return normal()


def failed() -> Agent:
    """The model raises."""
    hooks = {"on_error": [_noted], "session_end": [_noted, _noted_async]}
    return Agent("a", Scripted([*say("x"), LookupError("no")]), hooks=hooks)


def blocked() -> Agent:
    """A hook stops it."""
    hook = lambda given: HookResult(block=True, reason="no")  # noqa: E731
    hooks = {"user_prompt_submit": [hook], "notification": [_noted], "session_end": [_noted, _noted_async]}
    return Agent("a", Scripted(say("x")), hooks=hooks)


class _Ways:
    """How often the part fails."""

    def __init__(self, error: BaseException, always: bool) -> None:
        self.error = error
        self.left = [None] * (1_000_000 if always else 1)
        self.failed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left:
            self.left.pop()
            self.failed += 1
            raise self.error
        return None


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("error", [MemoryError, Abrupt])
@pytest.mark.parametrize("ending", [normal, cancelled, failed, blocked])
def test_faults_in_the_finalisation(
    ending: Callable[[], Agent], error: type[BaseException], always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of it in turn. What it raises may come out of the worker, for whoever watches threads die."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    wrong: list[str] = []
    for owner, name in PARTS:
        with monkeypatch.context() as patch:
            ways = _Ways(error("injected"), always)
            real = getattr(owner, name)

            def part(*args: Any, _ways: _Ways = ways, _real: Any = real, **kwargs: Any) -> Any:
                _ways()
                return _real(*args, **kwargs)

            patch.setattr(owner, name, part)
            wrong += [f"{name}: {each}" for each in _run(ending, ways, name, always)]
        INJECTED["finalisation"] += bool(ways.failed)
    assert not wrong, "\n".join(wrong)


def _run(ending: Callable[[], Agent], ways: _Ways, name: str, always: bool) -> Iterator[str]:
    session = Session.from_user("go")
    runtime = Runtime(ending(), grace=0.3)
    events: list[Event] = []
    stuck: list[BaseException] = []

    def consume() -> None:
        try:
            with runtime.run_stream(session) as stream:
                for event in stream:
                    events.append(event)
                    if event.type == "elicitation_request":
                        if ending is cancelled:
                            stream.cancel()
                        else:
                            stream.respond(event, "accept")  # type: ignore[arg-type]
                with contextlib.suppress(RunError):
                    stream.result()
        except (StreamStuck, MemoryError, Abrupt) as error:
            stuck.append(error)

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    consumer.join(LONG)
    if consumer.is_alive():
        yield "law 2: the consumer's loop does not end"
        return
    stops = [event for event in events if isinstance(event, StreamStopped)]
    if name == "stopped" and ways.failed:
        stops = stops or [StreamStopped()]  # there is none to be had
    if len(stops) != 1 or (events and stops[0] in events and events[-1] is not stops[0]):
        yield f"law 2: {[event.type for event in events]}"
    if runtime.bridge.current is not None:
        yield "law 3: the bridge points at a closed channel"
    if session._lease is not None and not (name == "release" and always):
        yield "law 15: the session is still leased"
    if stuck and name != "join":
        yield f"law 8: {stuck}"
    ways.left.clear()
    runtime.close()
    deadline = time.monotonic() + LONG
    while threads := [t for t in threading.enumerate() if t.name.startswith(("lockgate-stream", "lockgate-helper"))]:
        if time.monotonic() > deadline:
            yield f"law 8: {threads}"
            return
        time.sleep(0.001)


def _functions(kind: type) -> list[Any]:
    return [each for each in vars(kind).values() if inspect.isfunction(each) and each.__name__ != "__init__"]


_endings = [each for each in vars(ending_module).values() if getattr(each, "__module__", "") == ending_module.__name__]
WAY_OUT: list[Any] = [
    worker.work, *_endings, core_module.insist, stream_scope.__exit__, stream_scope.leave,
    ElicitationBridge.drop, SessionLog.settle, SessionLog.release, SessionLog.__exit__, Ending.decide, Ending.stopped,
    Calls.start, Calls.launch, Calls.abandon, Asks.withdraw, _Run.turn,
    *_functions(Cleanup), *_functions(_Stage),
]  # fmt: skip


@pytest.mark.parametrize("ending", [normal, cancelled, failed, blocked])
def test_an_asynchronous_exception_anywhere_on_the_way_out(
    ending: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laws 1 and 10: the hooks that are owed run, once each. CPython throws such exceptions where a call begins or has
    returned; here, once at each such place.
    """
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    codes, carry = {function.__code__ for function in WAY_OUT}, Carrier._carry
    wrong: list[str] = []
    place = reached = 0
    while place <= reached:
        place, reached = place + 1, 0
        ways = _Ways(Abrupt("injected"), False)
        where = ""
        NOTED.clear()

        def profile(frame: Any, event: str, arg: Any, place: int = place, ways: _Ways = ways) -> None:
            nonlocal reached, where
            # A generator returns where it yields, too: what a profiler raises there would end it without its `finally`.
            yields = event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR
            if frame.f_code in codes and event != "c_call" and not yields:
                reached += 1
                if reached == place:
                    where = f"{event} in {frame.f_code.co_name}, line {frame.f_lineno}"
                    ways()

        monkeypatch.setattr(Carrier, "_carry", functools.partialmethod(_profiled, carry, profile))
        wrong += [f"{where}: {each}" for each in _run(ending, ways, "anywhere", False)]
        starts, ends = NOTED.count("turn_start"), NOTED.count("turn_end")
        if NOTED.count("session_end") != 2 or not starts <= ends <= starts + 1:
            wrong.append(f"{where}: law 10: {NOTED}")
        INJECTED["finalisation"] += bool(ways.failed)
    assert not wrong, "\n".join(wrong)
    assert place > 40


def _profiled(carrier: Carrier, carry: Callable[..., None], profile: Any, sent: Any) -> None:
    sys.setprofile(profile)  # of this thread only
    try:
        carry(carrier, sent)
    finally:
        sys.setprofile(None)  # it goes on with something else


@pytest.mark.parametrize("ending", [normal, cancelled, failed, blocked])
def test_a_channel_that_cannot_be_closed_at_once(ending: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing with the last event fails: the loop ends all the same, without it. (Answers close channels, too.)"""
    real = Channel.close
    failed: list[Any] = []

    def close(self: Any, *args: Any, **kwargs: Any) -> bool:
        if isinstance(kwargs.get("final"), StreamStopped) and not failed:
            failed.append(self)
            raise MemoryError("injected")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Channel, "close", close)
    ways = _Ways(MemoryError(), False)
    ways.failed = 1
    assert list(_run(ending, ways, "stopped", False)) == []
    assert failed
    INJECTED["finalisation"] += 1


@pytest.mark.parametrize("error", [MemoryError, Abrupt, Cancelled, ChannelClosed, SystemExit])
@pytest.mark.parametrize("hooks", [1, 3])
def test_cleanup_hooks_that_raise(error: type[BaseException], hooks: int) -> None:
    """Law 10: one that raises, whatever it raises, does not keep the others from ending before the last event."""
    done: list[int] = []

    def raising(given: HookInput) -> None:
        raise error("injected")

    def slow(given: HookInput) -> None:
        time.sleep(0.02)
        done.append(1)

    agent = Agent("a", Scripted(say("x")), hooks={"session_end": [raising, *[slow] * hooks]})
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, StreamStopped):
                assert event.reason == "normal"
                assert len(done) == hooks
    INJECTED["finalisation"] += 1
