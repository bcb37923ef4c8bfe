"""Streams inside streams, processes inside processes, loops around them. Laws 1, 3, 6, 8, 11, 15."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from runtime import Agent, EventStream, RunError, Runtime, Session, Tool, ToolContext, tool
from runtime.events import (
    AgentChoice,
    ElicitationRequest,
    Error,
    Event,
    StreamStarted,
    StreamStopped,
    SubSessionCompleted,
    ToolCallResponse,
)
from support.scripted import AsyncScripted, Scripted, Stall, call, say

FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks."""
    return f"{context.agent_name} {dict(context.elicit('How many?', FORM).content)}"


def delegating(child: Agent, name: str = "delegate") -> Tool:
    def delegate(context: ToolContext) -> str:
        return context.run_agent(child, "your turn").text

    return Tool(name, delegate, read_only=True)


def three_deep() -> Agent:
    inner = Agent("inner", Scripted([call("ask")], say("inner text")), tools=[ask])
    middle = Agent("middle", Scripted([call("delegate")], say("middle text")), tools=[delegating(inner)])
    return Agent("outer", Scripted([call("delegate")], say("outer text")), tools=[delegating(middle)])


def answering(stream: EventStream) -> list[Event]:
    events = []
    for event in stream:
        events.append(event)
        if isinstance(event, ElicitationRequest):
            stream.respond(event, "accept", {"n": 3})
    return events


@pytest.mark.parametrize("capacity", [0, 1, 128])
def test_three_deep(capacity: int) -> None:
    """Events carry their own session id, questions are answered by the one consumer, each end gives the place back."""
    session = Session.from_user("go")
    with Runtime(three_deep(), event_capacity=capacity) as runtime:
        places: list[int] = []
        events = []
        with runtime.run_stream(session) as stream:
            for event in stream:
                events.append(event)
                if isinstance(event, ElicitationRequest):
                    places.append(len(runtime.bridge))
                    stream.respond(event, "accept", {"n": 3})
                if isinstance(event, ToolCallResponse) and event.agent_name == "outer":
                    assert runtime.bridge.current is stream._core.events or stream.reason is not None
        assert places == [3]
        assert len(runtime.bridge) == 0
    assert sum(isinstance(event, StreamStarted) for event in events) == 1
    assert sum(isinstance(event, StreamStopped) for event in events) == 1
    said = [(event.agent_name, event.content) for event in events if isinstance(event, AgentChoice)]
    assert said == [("inner", "inner text"), ("middle", "middle text"), ("outer", "outer text")]
    ids = {event.agent_name: event.session_id for event in events}
    assert ids["outer"] == session.id
    assert len(set(ids.values())) == 3
    completed = [event for event in events if isinstance(event, SubSessionCompleted)]
    assert [(event.agent_name, event.reason) for event in completed] == [("middle", "normal"), ("outer", "normal")]
    assert completed[0].sub_session_id == ids["inner"]


def test_cancelled_three_deep() -> None:
    """The innermost question is open; the cancel ends all three, and leaves nothing on the bridge."""
    with Runtime(three_deep()) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        events = []
        for event in stream:
            events.append(event)
            if isinstance(event, ElicitationRequest):
                stream.cancel("enough")
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "canceled"
        stream.close()
        assert len(runtime.bridge) == 0
        assert not runtime._shared.asks.pending()
        assert not runtime._shared.cores
        assert not [t for t in threading.enumerate() if t.name.startswith("lockgate-stream")]


def test_a_nested_stream_that_fails_is_a_result_for_the_parent() -> None:
    """Its Error and its reason are seen, the parent goes on."""
    child = Agent("child", Scripted([ValueError("broken")]))
    agent = Agent("outer", Scripted([call("delegate")], say("I see")), tools=[delegating(child)])
    with Runtime(agent) as runtime:
        session = Session.from_user("go")
        events = list(runtime.run_stream(session))
        assert [event.agent_name for event in events if isinstance(event, Error)] == ["child"]
        assert [event.reason for event in events if isinstance(event, SubSessionCompleted)] == ["error"]
        assert isinstance(events[-1], StreamStopped)
        assert events[-1].reason == "normal"
        assert "broken" in session.messages[2].content
        assert session.messages[2].is_error


def test_several_nested_at_once() -> None:
    """Two agents asked in one turn run side by side; each question goes back to its own call."""
    tools = [
        delegating(Agent(f"child{i}", Scripted([call("ask")], say(f"text {i}")), tools=[ask]), f"delegate{i}")
        for i in range(4)
    ]
    turn = [call(each.name, id=str(i), index=i) for i, each in enumerate(tools)]
    with Runtime(Agent("outer", Scripted(turn, say("ok")), tools=tools)) as runtime:
        session = Session.from_user("go")
        stream = runtime.run_stream(session)
        requests: list[ElicitationRequest] = []
        responses = {}
        for event in stream:
            if isinstance(event, ElicitationRequest):
                requests.append(event)
                if len(requests) == 4:
                    for number, request in reversed(list(enumerate(requests))):
                        stream.respond(request, "accept", {"n": number})
                    numbers = {request.agent_name: number for number, request in enumerate(requests)}
            if isinstance(event, ToolCallResponse) and event.agent_name != "outer":
                responses[event.agent_name] = event.response
        assert responses == {name: f"{name} {{'n': {number}}}" for name, number in numbers.items()}
        assert [m.content for m in session.messages if m.role == "tool"] == [f"text {i}" for i in range(4)]


def test_a_slow_consumer_slows_the_nested_stream_down() -> None:
    """The parent's inbox does not fill up with what nobody reads."""
    child = Agent("child", Scripted(say(*["word "] * 2000)))
    agent = Agent("outer", Scripted([call("delegate")], say("ok")), tools=[delegating(child)])
    with Runtime(agent, event_capacity=4) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                break
        # 64 on their way from the child, and what the buffers of both streams and of the model's inbox hold
        inner = next(core for core in runtime._shared.cores if core.agent.name == "child")
        while "sender waiting" not in repr(inner.events):
            threading.Event().wait(0.001)


def test_run_inside_a_tool() -> None:
    """A synchronous tool may use the runtime it runs in, and another one."""

    @tool(read_only=True)
    def inner() -> str:
        """Runs another stream."""
        return runtime.run(Session.from_user("inside")).text

    with Runtime(Agent("a", Scripted([call("inner")], say("nested"), say("ok")), tools=[inner])) as runtime:
        session = Session.from_user("go")
        assert runtime.run(session).text == "ok"
        assert session.messages[2].content == "nested"


def test_inside_somebody_elses_loop() -> None:
    """From a notebook, or any thread with a running event loop."""

    @tool(read_only=True)
    async def slow() -> str:
        """Asynchronous."""
        await asyncio.sleep(0.001)
        return "async"

    async def main() -> list[str]:
        with Runtime(Agent("a", Scripted([call("slow")], say("one"), say("two")), tools=[slow])) as runtime:
            here = runtime.run(Session.from_user("go")).text
            elsewhere = await asyncio.to_thread(runtime.run, Session.from_user("go"))
            return [here, elsewhere.text]

    assert asyncio.run(main()) == ["one", "two"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork() -> None:
    """In the child an idle runtime works, an inherited stream raises at once, its session can be used; and it exits."""

    @tool(read_only=True)
    async def slow() -> str:
        """Asynchronous: needs the loop's thread."""
        return "async"

    turns = [[[call("slow")], say(f"run {i}")] for i in range(3)]
    model = Scripted(*[step for turn in turns for step in turn])
    with Stall() as stall, Runtime(Agent("a", model, tools=[slow])) as runtime:
        assert runtime.run(Session.from_user("go")).text == "run 0"
        live = Session.from_user("live")
        busy = Runtime(Agent("b", Scripted([*say("x"), stall])))
        stream = busy.run_stream(live)
        assert stall.reached.wait(5)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with pytest.raises(RuntimeError, match="forked"):
                    next(stream)
                stream.close()
                assert runtime.run(live).text == "run 1"
                assert runtime.run(Session.from_user("go")).text.startswith("run ")
                runtime.close()
                busy.close()
                status = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        stall.go_on.set()
        assert any(isinstance(event, AgentChoice) for event in stream)
        busy.close()


def test_a_session_that_is_busy_inside() -> None:
    """Law 15, nested: the parent's own session cannot be run inside it."""

    @tool(read_only=True)
    def again(context: ToolContext) -> str:
        """Tries."""
        return context.run_agent(Agent("b", Scripted(say("never"))), session).text

    with Runtime(Agent("a", Scripted([call("again")], say("ok")), tools=[again])) as runtime:
        session = Session.from_user("go")
        assert runtime.run(session).text == "ok"
        assert "SessionBusy" in session.messages[2].content
    with Runtime(Agent("c", Scripted([OSError("x")]))) as other, pytest.raises(RunError, match="OSError: x"):
        other.run(session)


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_an_agent_inside_an_asynchronous_tool(model: type[Scripted]) -> None:
    """Its events and questions reach the consumer, and the loop goes on meanwhile, for others of its kind."""
    inner = Agent("inner", model([call("ask")], say("inner text")), tools=[ask])
    beside = asyncio.Event()

    @tool(read_only=True)
    async def delegate(context: ToolContext) -> str:
        """Runs an agent."""
        result = await context.arun_agent(inner, "your turn")
        await asyncio.wait_for(beside.wait(), 10)
        return result.text

    @tool(read_only=True)
    async def other() -> str:
        """Runs beside it."""
        beside.set()
        return "other"

    calls = [call("delegate", id="1"), call("other", id="2", index=1)]
    with Runtime(Agent("outer", model(calls, say("ok")), tools=[delegate, other])) as runtime:
        events = answering(runtime.run_stream(Session.from_user("go")))
    assert {e.response for e in events if isinstance(e, ToolCallResponse) and e.agent_name == "outer"} == {
        "inner text",
        "other",
    }
    assert {e.agent_name for e in events if isinstance(e, AgentChoice)} == {"inner", "outer"}
    assert [e.reason for e in events if isinstance(e, SubSessionCompleted)] == ["normal"]


def test_a_task_that_is_cancelled_ends_its_agent() -> None:
    with Stall() as stall:
        inner = Agent("inner", Scripted([stall]))

        @tool(read_only=True)
        async def delegate(context: ToolContext) -> str:
            """Does not wait for long."""
            waiting = asyncio.ensure_future(context.arun_agent(inner, "your turn"))
            await asyncio.to_thread(stall.reached.wait, 10)
            waiting.cancel()
            await asyncio.wait([waiting])
            return f"cancelled: {waiting.cancelled()}"

        agent = Agent("outer", Scripted([call("delegate")], say("ok")), tools=[delegate])
        with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
            events = list(stream)
            stall.go_on.set()
    assert [e.response for e in events if isinstance(e, ToolCallResponse)] == ["cancelled: True"]
    assert [e.reason for e in events if isinstance(e, SubSessionCompleted)] in ([], ["canceled"])


def test_what_would_stop_the_loop_is_refused() -> None:
    """In a coroutine, at once, and says what to await instead: the whole process would wait for it, for ever."""
    inner = Agent("inner", AsyncScripted(say("never")))
    with Runtime(inner) as other:
        other.run_stream(Session.from_user("first")).result()

        def tools() -> list[Tool]:
            async def asks(context: ToolContext) -> str:
                return str(context.elicit("?"))

            async def delegates(context: ToolContext) -> str:
                return context.run_agent(inner, "go").text

            async def runs() -> str:
                return other.run(Session.from_user("go")).text

            async def iterates() -> str:
                return str(list(other.run_stream(Session.from_user("go"))))

            return [Tool(each.__name__, each, read_only=True) for each in (asks, delegates, runs, iterates)]

        made = tools()
        calls = [call(each.name, id=each.name, index=i) for i, each in enumerate(made)]
        with Runtime(Agent("outer", AsyncScripted(calls, say("ok")), tools=made)) as runtime:
            events = list(runtime.run_stream(Session.from_user("go")))
        said = {e.tool_call.id: e.response for e in events if isinstance(e, ToolCallResponse)}
        assert "await context.aelicit" in said["asks"]
        assert "await context.arun_agent" in said["delegates"]
        assert "to_thread" in said["runs"]
        assert "to_thread" in said["iterates"]
