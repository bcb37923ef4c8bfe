"""What the calls of one turn owe each other, and whoever waits for them: late hooks, late tools, answers that come
twice, a turn that ends before its messages are read.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import runtime.toolcalls._dispatch as dispatch
import runtime.toolcalls._running as running
from runtime import (
    Agent,
    Answer,
    Budget,
    ConsumerCall,
    Hook,
    HookInput,
    HookResult,
    RunError,
    Runtime,
    Session,
    Tool,
    ToolContext,
    tool,
)
from runtime.events import (
    ElicitationRequest,
    Event,
    HookFinished,
    HookStarted,
    ToolCallConfirmation,
    ToolCallOutput,
)
from runtime.execution._calls import Finished
from runtime.toolcalls._messages import Asked, Fire
from support.scripted import Scripted, Stall, approving, call, say
from support.waiting import eventually

LONG = 10.0  # seconds after which something will never happen
BEGINS = 0.3  # seconds in which a coroutine has begun: one that has not is never called, and cannot tell its end


class Slow:
    """A coroutine function that goes on until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def __call__(self, *_: Any) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def results(session: Session) -> list[str]:
    return [message.content for message in session.messages if message.role == "tool"]


# -- what takes too long is ended there and then, not with the stream --------------------------------------------------


@pytest.mark.parametrize("point", ["turn_start", "pre_tool_use", "on_tool_approval_decision", "turn_end"])
def test_a_hook_whose_time_is_up_is_cancelled(point: str) -> None:
    slow = Slow()
    in_time: list[bool] = []

    def look() -> None:
        in_time.append(slow.cancelled.wait(LONG))

    hooks = {point: [Hook(slow, timeout=BEGINS)]}
    agent = Agent("a", Scripted([call("none")], [look, *say("ok")]), tools=[Tool("none", str)], hooks=hooks)
    with approving(agent) as runtime:
        runtime.run(Session.from_user("go"))
    assert in_time == [True]


def test_a_tool_whose_time_is_up_is_cancelled() -> None:
    slow = Slow()
    in_time: list[bool] = []

    @tool(timeout=BEGINS)
    async def late() -> None:
        """Does not end."""
        await slow()

    def look() -> None:
        in_time.append(slow.cancelled.wait(LONG))

    with approving(Agent("a", Scripted([call("late")], [look, *say("ok")]), tools=[late])) as runtime:
        runtime.run(Session.from_user("go"))
    assert in_time == [True]


# -- what comes twice counts once --------------------------------------------------------------------------------------


def test_an_answer_that_is_delivered_twice_starts_the_clock_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the tool stands still as long as another question is open."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(dispatch, "time", clock)
    monkeypatch.setattr(running, "time", clock)

    @tool(read_only=True, timeout=100)
    def ask(context: ToolContext) -> str:
        """Asks twice at once."""
        answers: list[str] = []

        def one() -> None:
            answers.append(context.elicit("?").action)
            context.progress("answered")

        asking = [threading.Thread(target=one) for _ in range(2)]
        for each in asking:
            each.start()
        for each in asking:
            each.join(LONG)
        return " ".join(answers)

    session = Session.from_user("go")
    with (
        Runtime(Agent("a", Scripted([call("ask")], say("ok")), tools=[ask])) as runtime,
        runtime.run_stream(session) as stream,
    ):
        events = iter(stream)
        asked = [next(event for event in events if isinstance(event, ElicitationRequest)) for _ in range(2)]
        waiting = runtime._shared.asks.find(asked[0].elicitation_id)
        waiting.settled(Answer("accept"))  # as where its deliverer was interrupted
        stream.respond(asked[0], "accept")
        assert next(event for event in events if isinstance(event, ToolCallOutput)).output == "answered"
        clock.now += 1000  # the user thinks about the other
        stream.respond(asked[1], "decline")
        list(events)
    assert results(session) == ["accept decline"]


def test_what_is_approved_for_later_calls_is_remembered_once() -> None:
    """Also where the stream ends while the call is made."""
    session = Session.from_user("go")
    with Stall() as stall:
        agent = Agent("a", Scripted([call("write")], say("ok")), tools=[Tool("write", stall)])
        with Runtime(agent, grace=5) as runtime, runtime.run_stream(session) as stream:
            stream.approve(next(event for event in stream if isinstance(event, ToolCallConfirmation)), "tool")
            assert stall.reached.wait(LONG)
            stream.cancel()
            list(stream)
            stall.go_on.set()
    assert len(list(session.permissions.allow)) == 1


# -- a result, or none -------------------------------------------------------------------------------------------------


def test_what_a_tool_says_because_of_a_cancel_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cancel comes between the result and the worker's look at it."""
    takes = dispatch._Dispatcher._take
    stop = threading.Event()

    def take(dispatcher: Any, message: Any) -> None:
        if isinstance(message, Finished):
            stop.set()
            assert eventually(lambda: dispatcher.core.token.cancelled)
        takes(dispatcher, message)

    monkeypatch.setattr(dispatch._Dispatcher, "_take", take)
    session = Session.from_user("go")
    agent = Agent("a", Scripted([call("ends")], say("ok")), tools=[Tool("ends", lambda: "said", read_only=True)])
    with Runtime(agent) as runtime, runtime.run_stream(session) as stream:
        assert stop.wait(LONG)
        stream.cancel()
        list(stream)
    assert stream.reason == "canceled"
    [result] = results(session)
    assert result.startswith("interrupted: ")


def test_the_first_hook_that_ends_the_run_says_why() -> None:
    """post_tool_use: others that want it too, of calls that end later, change nothing."""
    first = threading.Event()

    def wait() -> str:
        assert first.wait(LONG)
        return ""

    def block(given: HookInput) -> HookResult:
        return HookResult(block=True, reason=given.tool_name)

    tools = [Tool("one", str, read_only=True), Tool("two", wait, read_only=True)]
    turn = [call("two", id="2"), call("one", id="1", index=1)]
    agent = Agent("a", Scripted(turn, say("never")), tools=tools, hooks={"post_tool_use": [block]})
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, HookFinished) and event.hook_event == "post_tool_use":
                first.set()
        with pytest.raises(RunError) as raised:
            stream.result()
    assert raised.value.message == "one"
    assert raised.value.code == "hook_blocked"


def test_a_thread_that_a_tool_left_behind_is_not_heard_once_the_tool_has_returned() -> None:
    """The hooks that look at the result may take their time: the call is over for those who ask in its name."""
    answers: list[str] = []
    seen: list[Event] = []
    asking: list[threading.Thread] = []
    looking = threading.Event()

    def leaves(context: ToolContext) -> str:
        def ask() -> None:
            assert looking.wait(LONG)
            context.progress("still here")
            answers.append(context.elicit("?").action)

        asking.append(threading.Thread(target=ask))
        asking[0].start()
        return "left"

    def look(given: HookInput) -> None:
        looking.set()
        asking[0].join(LONG)

    hooks = {"tool_response_transform": [look]}
    agent = Agent(
        "a", Scripted([call("leaves")], say("ok")), tools=[Tool("leaves", leaves, read_only=True)], hooks=hooks
    )
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            seen.append(event)
            if isinstance(event, ElicitationRequest):
                stream.respond(event, "accept")
    assert answers == ["cancel"]
    assert not [event for event in seen if isinstance(event, (ElicitationRequest, ToolCallOutput))]


# -- a turn that ends before its messages are read ---------------------------------------------------------------------


def failing(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker fail when a message of this kind is there to be read."""
    waits = dispatch._Dispatcher._wait

    def wait(dispatcher: Any) -> Any:
        while dispatcher.turn.held:  # on threads of their own, so that the message is read from the inbox
            dispatcher.turn.held.pop().start()
        posted = eventually(lambda: any(isinstance(each, kind) for each in list(dispatcher.turn.inbox._buffer)), 0.5)
        if dispatcher.core.parent is None and posted:
            raise MemoryError("injected")
        yield from waits(dispatcher)

    monkeypatch.setattr(dispatch._Dispatcher, "_wait", wait)


@pytest.mark.parametrize("kind", [Asked, Fire])
def test_who_waits_for_the_worker_goes_on_where_that_fails(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the hooks at the end of the stream run, not with the token that ends after them."""
    over = threading.Event()
    in_time: list[bool] = []

    def asks(context: ToolContext) -> str:
        try:
            if kind is Asked:
                return context.elicit("?").action
            return context.run_agent(Agent("inner", Scripted(say("hello"))), "go").text
        finally:
            over.set()

    def look(given: HookInput) -> None:
        in_time.append(over.wait(LONG))

    failing(kind, monkeypatch)
    agent = Agent(
        "a",
        Scripted([call("asks")], say("ok")),
        tools=[Tool("asks", asks, read_only=True)],
        hooks={"subagent_stop": [lambda given: None], "session_end": [look]},
    )
    with Runtime(agent) as runtime, pytest.raises(RunError, match="injected"):
        runtime.run(Session.from_user("go"))
    assert in_time == [True]


def test_a_call_for_the_consumer_is_withdrawn_when_the_time_is_up() -> None:
    """The consumer, who comes to it while the stream goes on to say so, does not make it any more."""
    made: list[str] = []
    telling, told = threading.Event(), threading.Event()

    def tell(given: HookInput) -> None:
        telling.set()
        assert told.wait(LONG)

    here = Tool("here", lambda: made.append("made"), read_only=True, on="consumer")
    agent = Agent(
        "a",
        Scripted([call("here")], say("ok")),
        tools=[here],
        budget=Budget(seconds=600),
        hooks={"notification": [tell]},
    )
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        (core,) = runtime._shared.cores
        assert eventually(lambda: any(isinstance(each, ConsumerCall) for each in list(core.events._buffer)))
        core.token.cancel("as its timer does")
        assert telling.wait(LONG)
        for event in stream:
            if isinstance(event, HookStarted):
                assert not core.token.cancelled  # so that alone does not keep the call from being made
                told.set()
    assert stream.reason == "budget_exceeded"
    assert made == []
