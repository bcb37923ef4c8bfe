"""Every span is ended, whatever ends its stream, and says why."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

import support.faults as faults
from runtime import (
    Agent,
    Budget,
    HookResult,
    ModelError,
    RunError,
    Runtime,
    Session,
    StreamStuck,
    ToolContext,
    tool,
)
from runtime.events import AgentChoice, ToolCallConfirmation, ToolCallStarted
from runtime.stores import MemoryStore
from support.fault_scenarios import SCENARIOS
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.telemetry import Telemetry
from support.waiting import eventually

MODELS = pytest.mark.parametrize("model", [Scripted, AsyncScripted])


def run(telemetry: Telemetry, agent: Agent, **more: Any) -> RunError:
    """A run that fails."""
    with telemetry.instrument(Runtime(agent, **more)) as runtime, pytest.raises(RunError) as caught:
        runtime.run(Session.from_user("go"))
    assert telemetry.is_whole()
    return caught.value


@MODELS
def test_a_model_that_raises(telemetry: Telemetry, model: type[Scripted]) -> None:
    run(telemetry, Agent("a", model([*say("x"), LookupError("not here")])))
    assert telemetry.outcomes() == {"chat scripted": "LookupError", "invoke_agent a": "model_error"}
    chat = telemetry.span("chat scripted")
    assert chat.status.status_code is StatusCode.ERROR
    assert chat.status.description == "LookupError: not here"
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("interrupted",)
    agent = telemetry.span("invoke_agent a")
    assert agent.status.status_code is StatusCode.ERROR
    assert agent.attributes["lockgate.stop_reason"] == "error"


@MODELS
def test_a_model_error_says_its_code(telemetry: Telemetry, model: type[Scripted]) -> None:
    run(telemetry, Agent("a", model([ModelError("rate_limited", "too much", retryable=True)])))
    assert telemetry.outcomes() == {"chat scripted": "rate_limited", "invoke_agent a": "model_error"}


def test_descriptions_hold_no_secrets(telemetry: Telemetry) -> None:
    run(telemetry, Agent("a", Scripted([LookupError("api_key=sk-abcdefghijklmnopqrstuvwxyz")])))
    for span in telemetry.kept.ended:
        assert "redacted" in span.status.description
        assert "sk-abc" not in span.status.description


def test_a_tool_that_raises_or_says_that_it_failed_or_takes_too_long(telemetry: Telemetry) -> None:
    """What it says is its result, which is not told unless content is asked for."""
    stall = Stall()

    class OutOfStock(Exception):
        pass

    @tool(read_only=True)
    def raises() -> str:
        """Raises."""
        raise OutOfStock("no eggs")

    @tool(read_only=True, timeout=0.05)
    def late() -> str:
        """Takes too long."""
        stall()
        return ""

    turns = [call("raises", id="1"), call("late", id="2", index=1)], say("x")
    with stall, telemetry.instrument(Runtime(Agent("a", Scripted(*turns), tools=[raises, late]))) as runtime:
        runtime.run(Session.from_user("go"))
    kind = f"{OutOfStock.__module__}.{OutOfStock.__qualname__}"
    assert telemetry.outcomes() == {
        "chat scripted": None,
        "execute_tool raises": kind,
        "execute_tool late": "timeout",
        "invoke_agent a": None,
    }
    assert telemetry.span("execute_tool raises").status.status_code is StatusCode.ERROR
    assert telemetry.span("execute_tool raises").status.description is None


def leave(stream: Any, stalled: threading.Event) -> None:
    """The consumer breaks out of its loop."""
    for event in stream:
        if isinstance(event, (AgentChoice, ToolCallStarted)):
            assert stalled.wait(10)
            break


def cancel(stream: Any, stalled: threading.Event) -> None:
    """Somebody cancels it."""
    assert stalled.wait(10)
    stream.cancel("enough")
    for _ in stream:
        pass


def fail(stream: Any, stalled: threading.Event) -> None:
    """The body of the loop raises."""
    for _ in stream:
        if stalled.is_set():
            break
        stalled.wait(10)
    raise KeyboardInterrupt


@MODELS
@pytest.mark.parametrize("way", [leave, cancel, fail])
def test_a_consumer_that_leaves_in_the_middle_of_a_model_call(
    telemetry: Telemetry, model: type[Scripted], way: Callable[..., None]
) -> None:
    with Stall() as stall:
        step: Any = (lambda: asyncio.to_thread(stall)) if model is AsyncScripted else stall
        runtime = telemetry.instrument(Runtime(Agent("a", model([*say("x"), step])), grace=0.05))
        try:
            with runtime, runtime.run_stream(Session.from_user("go")) as stream:
                way(stream, stall.reached)
        except (KeyboardInterrupt, StreamStuck):
            pass
        assert eventually(telemetry.is_whole)  # the grace time is short
        assert telemetry.outcomes() == {"chat scripted": "canceled", "invoke_agent a": "canceled"}
        assert telemetry.span("invoke_agent a").attributes["lockgate.stop_reason"] == "canceled"


@pytest.mark.parametrize("way", [leave, cancel, fail])
def test_tools_that_are_left_behind_are_ended_with_their_stream(telemetry: Telemetry, way: Callable[..., None]) -> None:
    """Those of a sub-agent too, which stands still inside of one. What a tool opens itself ends when the tool does."""
    with Stall() as stall:

        @tool(read_only=True)
        def stuck() -> str:
            """Stands still."""
            with telemetry.tracer.start_as_current_span("by itself"):
                stall()
            return ""

        sub = Agent("sub", Scripted([call("stuck")]), tools=[stuck])

        @tool(read_only=True)
        def outer(context: ToolContext) -> str:
            """Runs an agent."""
            return context.run_agent(sub, "go").text

        agent = Agent("a", Scripted([call("outer")]), tools=[outer])
        runtime = telemetry.instrument(Runtime(agent, grace=0.05))
        try:
            with runtime, runtime.run_stream(Session.from_user("go")) as stream:
                way(stream, stall.reached)
        except (KeyboardInterrupt, StreamStuck):
            pass
        assert eventually(lambda: len(telemetry.kept.ended) == 6)
        assert set(telemetry.outcomes().values()) == {"canceled", None}
        assert {name for name, why in telemetry.outcomes().items() if why is None} == {"chat scripted"}
    assert eventually(telemetry.is_whole)
    assert ("by itself", "execute_tool stuck") in telemetry.parents()


def test_a_stream_that_is_forgotten(telemetry: Telemetry) -> None:
    with Stall() as stall, telemetry.instrument(Runtime(Agent("a", Scripted([stall])), grace=0.05)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        del stream
        gc.collect()
        assert eventually(telemetry.is_whole)
        assert telemetry.outcomes() == {"chat scripted": "canceled", "invoke_agent a": "canceled"}


def test_a_stream_that_has_ended_is_gone_without_the_garbage_collector(telemetry: Telemetry) -> None:
    """Its trace holds it, and would keep a busy program waiting for the next collection."""
    with telemetry.instrument(Runtime(Agent("a", Scripted(say("x"))))) as runtime:
        gc.collect()
        gc.disable()
        try:
            with runtime.run_stream(Session.from_user("go")) as stream:
                core = weakref.ref(stream._core)
                for _ in stream:
                    pass
            del stream
            assert eventually(lambda: core() is None)
        finally:
            gc.enable()


def test_a_runtime_that_is_closed(telemetry: Telemetry) -> None:
    with Stall() as stall:
        runtime = telemetry.instrument(Runtime(Agent("a", Scripted([stall])), grace=0.05))
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        runtime.close()
        assert eventually(telemetry.is_whole)
        assert telemetry.outcomes() == {"chat scripted": "canceled", "invoke_agent a": "canceled"}
        del stream


def test_limits_and_hooks_say_which(telemetry: Telemetry) -> None:
    @tool(read_only=True)
    def again() -> str:
        """Does nothing."""
        return "ok"

    def block(given: Any) -> HookResult:
        return HookResult(block=True, reason="the word is not said")

    def endless() -> Scripted:
        return Scripted(*[[call("again", id=str(n))] for n in range(9)])

    cases = {
        "hook_blocked": Agent("a", Scripted(say("x")), hooks={"user_prompt_submit": [block]}),
        "loop_detected": Agent("a", endless(), tools=[again], max_repeated_calls=3),
        "max_iterations": Agent("a", endless(), tools=[again], max_iterations=2, max_repeated_calls=None),
    }
    for reason, agent in cases.items():
        telemetry.kept.ended.clear()
        telemetry.kept.started.clear()
        run(telemetry, agent)
        span = telemetry.span("invoke_agent a")
        assert span.attributes["error.type"] == reason
        assert span.attributes["lockgate.stop_reason"] == reason
        assert span.status.description is None  # a reason may be made of what was said


def test_a_budget_of_time_is_the_reason_of_what_it_cuts_off(telemetry: Telemetry) -> None:
    with Stall() as stall:
        agent = Agent("a", Scripted([stall]), budget=Budget(seconds=2))
        run(telemetry, agent, grace=0.5)
    assert telemetry.outcomes() == {"chat scripted": "budget_exceeded", "invoke_agent a": "budget_exceeded"}


def test_a_stream_that_cannot_be_started(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, cold: None) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("lockgate-stream"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with telemetry.instrument(Runtime(Agent("a", Scripted(say("x"))))) as runtime:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            runtime.run_stream(Session.from_user("go"))
        monkeypatch.undo()
        assert telemetry.is_whole()
        assert telemetry.outcomes() == {"invoke_agent a": "internal"}


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 3), reason="this Python starts no thread at its exit")
def test_the_interpreter_that_exits(script: Callable[..., str]) -> None:
    """Spans are ended before the SDK shuts down, which is told at exit."""
    said = script(
        """
import sys
sys.path[:0] = ["tests"]
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, BatchSpanProcessor
from runtime import Agent, Runtime, Session
from runtime.otel import instrument
from support.scripted import Scripted, Stall, say

provider = TracerProvider()
tell = lambda span: f"{span.name} {span.attributes.get('error.type')}\\n"
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=tell)))
trace.set_tracer_provider(provider)
stall = Stall()
runtime = Runtime(Agent("a", Scripted([stall])), grace=0.5)  # also for what ends the spans
instrument(runtime)
stream = runtime.run_stream(Session.from_user("go"))
assert stall.reached.wait(10)
"""
    )
    assert sorted(said.splitlines()) == ["chat scripted canceled", "invoke_agent a canceled"]


def test_a_run_that_is_parked_is_no_failure_and_the_next_goes_on_with_the_conversation(telemetry: Telemetry) -> None:
    """A call whose approval is awaited has no span: that begins when the tool is called."""

    @tool
    def write() -> str:
        """Has to be approved."""
        return "written"

    session = Session.from_user("go")
    store = MemoryStore()
    agent = Agent("a", Scripted([call("write")], say("x")), tools=[write])
    with telemetry.instrument(Runtime(agent, store=store)) as runtime:
        with runtime.run_stream(session) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.park()
        assert stream.reason == "waiting"
        assert telemetry.is_whole()
        assert telemetry.outcomes() == {"chat scripted": None, "invoke_agent a": None}
        assert telemetry.span("invoke_agent a").attributes["lockgate.stop_reason"] == "waiting"
        with runtime.run_stream(store.load(session.id)) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.approve(event)
    assert telemetry.is_whole()
    assert [span.name for span in telemetry.kept.ended] == [
        "chat scripted",
        "invoke_agent a",
        "execute_tool write",
        "chat scripted",
        "invoke_agent a",
    ]
    assert {span.attributes["gen_ai.conversation.id"] for span in telemetry.kept.ended} == {session.id}


NAMES = (
    *("tools", "asynchronous", "questions", "hooks", "out of time"),
    *("nested", "in the background", "approval", "expired", "blocked late", "visits"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each.name in NAMES], ids=lambda each: each.name)
def test_every_span_is_ended_whatever_fails(
    telemetry: Telemetry, scenario: faults.Scenario, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault at the first two calls of each kind, in turn an exception, a cancel, a consumer that leaves, a call that
    stands still.
    """
    caplog.set_level("CRITICAL")

    def traced(*args: Any, **more: Any) -> Runtime:
        telemetry.kept.started.clear()
        telemetry.kept.ended.clear()
        return telemetry.instrument(Runtime(*args, **more))

    check = faults._check

    def check_spans(this: faults.Run, runtime: Runtime) -> None:
        check(this, runtime)
        if not eventually(telemetry.is_whole):
            left = {span.name for span in telemetry.kept.started} - {span.name for span in telemetry.kept.ended}
            this.wrong(f"spans are left open: {left or len(telemetry.kept.started) - len(telemetry.kept.ended)}")
        reason: Any = next((e.reason for e in reversed(this.events) if e.type == "stream_stopped"), None)
        [root] = [span for span in telemetry.kept.ended if span.parent is None] or [None]
        if root is None or (reason is not None and root.attributes.get("lockgate.stop_reason") != reason):
            this.wrong(f"the span says {root and root.attributes}, and the stream {reason}")

    monkeypatch.setattr(faults, "Runtime", traced)
    monkeypatch.setattr(faults, "_check", check_spans)
    first = NAMES.index(scenario.name)
    kinds = [*faults.PLAIN, *faults.SLOW]

    def choose(point: faults.Point) -> list[faults.Fault]:
        if point.number > 2 or (point.name.startswith("observer") and point.number > 1):
            return []
        turn = first + 5 * point.number + len(point.name)
        return [kinds[turn % len(kinds)], kinds[(turn + 3) % len(kinds)]]

    wrong = faults.inject(scenario, choose)
    assert not wrong, "\n".join(wrong)
