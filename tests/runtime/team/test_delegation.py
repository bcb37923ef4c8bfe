"""Sub-agents, hand-offs and agents in the background. Who acts belongs to the stream and its session. Laws 6, 7, 8, 16,
18.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    Agent,
    Decision,
    HookInput,
    HookResult,
    Permissions,
    Recording,
    RunError,
    Runtime,
    Session,
    StreamStuck,
    Team,
    Tool,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.events import (
    AgentInfo,
    AgentSwitching,
    Error,
    Event,
    HookStarted,
    StreamStopped,
    SubSessionCompleted,
    TeamInfo,
    ToolCallConfirmation,
    ToolsetInfo,
)
from runtime.models.replay import ReplayModel
from support.scripted import AsyncScripted, Scripted, Stall, call, say


def transfer(agent: str, task: str = "go", id: str = "t", index: int = 0) -> Any:
    return call("transfer_task", f'{{"agent": "{agent}", "task": "{task}"}}', id=id, index=index)


def hand(agent: str, id: str = "h", index: int = 0) -> Any:
    return call("handoff", f'{{"agent": "{agent}"}}', id=id, index=index)


def background(agent: str, id: str = "b", index: int = 0) -> Any:
    return call("run_background_agent", f'{{"agent": "{agent}", "task": "go"}}', id=id, index=index)


def of(kind: type[Event], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def results(session: Session) -> list[str]:
    return [message.content for message in session.messages if message.role == "tool"]


# -- transfer_task -----------------------------------------------------------------------------------------------------


def test_a_task_is_done_in_a_conversation_of_its_own() -> None:
    """The sub-agent sees the task and nothing else; its last words are the result."""
    cook = Agent("cook", Scripted([call("whisk"), *say("One moment.")], say("Ready: ", "omelette")), tools=[whisk])
    arguments = '{"agent": "cook", "task": "an omelette", "expected_output": "one line"}'
    model = Scripted([call("transfer_task", arguments)], say("Enjoy."))
    session = Session.from_user("I am hungry")
    with Runtime(Agent("waiter", model, sub_agents=[cook])) as runtime:
        stream = runtime.run_stream(session)
        events = list(stream)
        assert stream.result().text == "Enjoy."
    assert results(session) == ["Ready: omelette"]
    assert [m.content for m in cook.model.seen[0]] == ["an omelette\n\nExpected output: one line"]  # type: ignore[attr-defined]
    [completed] = of(SubSessionCompleted, events)
    assert completed.reason == "normal"
    assert {e.agent_name for e in events if e.session_id == completed.sub_session_id} == {"cook"}
    assert [event.agents for event in of(TeamInfo, events)] == [("waiter", "cook")]


@tool(read_only=True)
def whisk() -> str:
    """Whisks."""
    return "whisked"


def test_an_unknown_agent_is_an_error_that_the_model_can_mend() -> None:
    """It is told the names there are."""
    cook = Agent("cook", Scripted(say("omelette")))
    model = Scripted([transfer("butler")], [transfer("cook", id="2")], say("ok"))
    session = Session.from_user("go")
    with Runtime(Agent("waiter", model, sub_agents=[cook])) as runtime:
        assert runtime.run(session).text == "ok"
    assert results(session) == [
        "wrong arguments for transfer_task: agent must be one of 'cook', not 'butler'",
        "omelette",
    ]


def test_a_sub_agent_that_fails_is_a_result() -> None:
    """The model reads why."""
    cook = Agent("cook", Scripted([OSError("the stove is cold")]))
    session = Session.from_user("go")
    with Runtime(Agent("waiter", Scripted([transfer("cook")], say("Sorry.")), sub_agents=[cook])) as runtime:
        assert runtime.run(session).text == "Sorry."
    assert "the stove is cold" in results(session)[0]


def test_tasks_side_by_side() -> None:
    """Two in one turn run at the same time."""
    line = threading.Barrier(2, timeout=10)
    subs = [Agent(name, Scripted([lambda: line.wait() and None, *say(name)])) for name in ("one", "two")]
    turn = [transfer("one", id="1"), transfer("two", id="2", index=1)]
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(turn, say("ok")), sub_agents=subs)) as runtime:
        runtime.run(session)
    assert results(session) == ["one", "two"]


def test_what_a_sub_agent_uses_counts() -> None:
    """In the result of the parent's run."""
    sub = Agent("sub", Scripted([*say("x"), UsageDelta(10, 1)]))
    with Runtime(Agent("a", Scripted([transfer("sub"), UsageDelta(1, 1)], say("ok")), sub_agents=[sub])) as runtime:
        assert runtime.run(Session.from_user("go")).usage.tokens == 13


def test_an_agent_that_waits_is_not_asked() -> None:
    """A circle would be two agents that wait for each other."""
    one = Agent("one", Scripted([transfer("two")], say("ok")), sub_agents=["two"])
    two = Agent("two", Scripted([transfer("one")], say("done without")), sub_agents=["one"])
    session = Session.from_user("go")
    with Runtime(Team([one, two])) as runtime:
        stream = runtime.run_stream(session)
        events = list(stream)
    assert results(session) == ["done without"]
    refused = [e.response for e in events if e.type == "tool_call_response" and e.agent_name == "two"]  # type: ignore[attr-defined]
    assert refused == ["one is waiting for this task itself (one > two): do it without"]


def test_how_deep_agents_may_run_agents() -> None:
    """Ten below the first; the last is told."""
    agent = Agent("a11", Scripted(say("never")))
    for number in range(10, -1, -1):
        agent = Agent(f"a{number}", Scripted([transfer(agent.name)], say(f"{number} ok")), sub_agents=[agent])
    with Runtime(agent) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        refused = [e.response for e in stream if e.type == "tool_call_response" and e.agent_name == "a10"]  # type: ignore[attr-defined]
        assert stream.result().text == "0 ok"
    assert len(refused) == 1
    assert refused[0].startswith("RuntimeError: nested runs can be at most 10 deep: a0 > a1 >")


def test_law_18_a_cancel_ends_the_whole_line() -> None:
    """Wherever it stands."""
    with Stall() as stall:
        inner = Agent("inner", Scripted([*say("x"), stall]))
        middle = Agent("middle", Scripted([transfer("inner")]), sub_agents=[inner])
        outer = Agent("outer", Scripted([transfer("middle")]), sub_agents=[middle])
        with Runtime(outer) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            stream.cancel()
            assert [e.reason for e in of(StreamStopped, list(stream))] == ["canceled"]
            stall.go_on.set()


def test_the_hook_of_a_sub_agent_that_stops() -> None:
    """`subagent_stop` is told who, why, and what it said; it comes before the result."""
    told: list[HookInput] = []
    cook = Agent("cook", Scripted(say("omelette")))
    hooks = {"subagent_stop": [told.append]}
    agent = Agent("a", Scripted([transfer("cook")], say("ok")), sub_agents=[cook], hooks=hooks)
    session = Session.from_user("go")
    with Runtime(agent) as runtime:
        events = list(runtime.run_stream(session))
    [given] = told
    [completed] = of(SubSessionCompleted, events)
    assert (given.agent_name, given.sub_agent, given.reason, given.response) == ("a", "cook", "normal", "omelette")
    assert given.sub_session_id == completed.sub_session_id
    order = [event.type for event in events if event.agent_name == "a"]
    assert order.index("sub_session_completed") < order.index("hook_started") < order.index("tool_call_response")


# -- approvals ---------------------------------------------------------------------------------------------------------


@tool
def write(text: str = "") -> str:
    """Has to be approved."""
    return f"wrote {text}"


def writer(name: str, *ids: str) -> Agent:
    return Agent(name, Scripted(*([call("write", id=each)] for each in ids), say(f"{name} done")), tools=[write])


@pytest.mark.parametrize(("scope", "asked"), [("once", ["a", "sub", "sub", "a"]), ("tool", ["a"]), ("session", ["a"])])
def test_what_is_approved_in_the_parent_holds_in_the_child(scope: Any, asked: list[str]) -> None:
    """As the user said: once, this tool, this session; and what is approved in the child holds in the parent."""
    script = Scripted([call("write", id="1")], [transfer("sub")], [call("write", id="4")], say("ok"))
    agent = Agent("a", script, tools=[write], sub_agents=[writer("sub", "2", "3")])
    seen = []
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                seen.append(event.agent_name)
                stream.approve(event, scope)
    assert seen == asked


def test_what_is_approved_in_the_child_holds_in_the_parent() -> None:
    """The user has said so to the one conversation that there is."""
    script = Scripted([transfer("sub")], [call("write", id="4")], say("ok"))
    agent = Agent("a", script, tools=[write], sub_agents=[writer("sub", "2", "3")])
    asked = []

    def approve(event: Any) -> Decision:
        asked.append(event.agent_name)
        return Decision(True, "tool")

    with Runtime(agent) as runtime:
        runtime.run(Session.from_user("go"), on_request=approve)
    assert asked == ["sub"]


def test_delegation_itself_can_be_denied() -> None:
    """Its tools are tools."""
    agent = Agent("a", Scripted([transfer("sub")], say("ok")), sub_agents=[Agent("sub", Scripted())])
    session = Session.from_user("go")
    with Runtime(agent, permissions=Permissions(deny=["transfer_task:agent=s*"])) as runtime:
        runtime.run(session)
    assert "denied by the permission" in results(session)[0]


# -- hand-off ----------------------------------------------------------------------------------------------------------


def desk(billing_turns: Sequence[Any] = (), router_turns: Sequence[Any] = (), **more: Any) -> tuple[Agent, Agent]:
    billing = Agent(
        "billing",
        Scripted(*(billing_turns or [say("Paid.")])),
        "You do the bills.",
        description="bills",
        tools=[whisk],
        handoffs=["router"],
    )
    router = Agent(
        "router", Scripted(*(router_turns or [[hand("billing")]])), "You are the desk.", handoffs=[billing], **more
    )
    return router, billing


def test_a_hand_off_goes_on_with_the_other_agent() -> None:
    """The same stream and session; its instructions, tools and model; the events say so."""
    router, billing = desk()
    session = Session.from_user("my bill")
    with Runtime(router) as runtime:
        stream = runtime.run_stream(session)
        events = list(stream)
        assert stream.result().text == "Paid."
    [switch] = of(AgentSwitching, events)
    assert (switch.from_agent, switch.to_agent, switch.session_id) == ("router", "billing", session.id)
    assert [(e.agent_name, e.description) for e in of(AgentInfo, events)] == [("router", ""), ("billing", "bills")]
    assert [e.tools for e in of(ToolsetInfo, events)] == [("handoff",), ("whisk", "handoff")]
    [shown] = billing.model.seen  # type: ignore[attr-defined]
    assert shown[0].content == "You do the bills."
    assert [m.role for m in shown] == ["system", "user", "assistant", "tool"]
    assert results(session) == ["router has handed this conversation to billing. You are billing now: go on with it."]
    assert {e.session_id for e in events} == {session.id}
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].agent_name == "billing"
    assert [m.agent_name for m in session.messages if m.role == "assistant"] == ["router", "billing"]


def test_the_next_stream_goes_on_with_it() -> None:
    """The session remembers, also in another runtime; it can be handed back."""
    router, _ = desk([say("Paid."), [hand("router")]], [[hand("billing")], say("Anything else?")])
    session = Session.from_user("my bill")
    with Runtime(router) as runtime:
        assert runtime.run(session).text == "Paid."
        assert session.agent_name == "billing"
    session.add_user("thanks")
    with Runtime(router) as runtime:
        assert runtime.run(session).text == "Anything else?"
    assert session.agent_name == "router"


def test_a_session_whose_agent_is_not_here() -> None:
    """It is spoken to by the first of those that are."""
    session = Session.from_user("hi")
    session._agent_name = "gone"
    with Runtime(Agent("a", Scripted(say("hello")))) as runtime:
        assert runtime.run(session).text == "hello"


def test_two_streams_do_not_leak_into_each_other() -> None:
    """One is handed over, and stands still with the other agent; the other goes on with the first."""
    with Stall() as stall:
        router, billing = desk([[stall, *say("Paid.")]], [[hand("billing")], say("router here")])
        with Runtime(router) as runtime:
            one = runtime.run_stream(Session.from_user("one"))
            assert stall.reached.wait(10)
            assert runtime.run(Session.from_user("two")).text == "router here"
            stall.go_on.set()
            assert one.result().text == "Paid."
            assert [type(agent.model).__name__ for agent in (router, billing)] == ["Scripted"] * 2


def test_many_streams_at_once_keep_their_agents(threads: Any) -> None:
    """Each is handed over or not as its own model says."""

    class Router:
        id = "router"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            if "bill" in messages[-1].content and messages[-1].role == "user":
                yield hand("billing")
            else:
                yield from say("router")

    billing = Agent("billing", type("Billing", (), {"id": "b", "stream": lambda *_, cancel: iter(say("billing"))})())
    with Runtime(Agent("router", Router(), handoffs=[billing])) as runtime:

        def one(text: str) -> Any:
            return lambda: runtime.run(Session.from_user(text)).text

        wanted = ["bill", "hello"] * 8
        said = threads.all(*(one(text) for text in wanted))
    assert said == ["billing", "router"] * 8


def test_the_hooks_of_a_hand_off() -> None:
    """The agent that leaves has `turn_end` and `on_agent_switch`; turns are the other's; the session's hooks are of the
    agent that it began with.
    """
    fired: list[tuple[str, str]] = []

    def hooks(owner: str) -> dict[str, list[Any]]:
        def log(given: HookInput) -> None:
            fired.append((owner, given.hook_event_name))
            if given.hook_event_name == "on_agent_switch":
                assert (given.from_agent, given.to_agent) == ("router", "billing")

        points = ("session_start", "turn_start", "turn_end", "on_agent_switch", "stop", "session_end")
        return {point: [log] for point in points}

    billing = Agent("billing", Scripted(say("Paid.")), hooks=hooks("billing"))
    router = Agent("router", Scripted([hand("billing")]), handoffs=[billing], hooks=hooks("router"))
    with Runtime(router) as runtime:
        runtime.run(Session.from_user("go"))
    assert fired == [
        ("router", "session_start"),
        ("router", "turn_start"),
        ("router", "turn_end"),
        ("router", "on_agent_switch"),
        ("billing", "turn_start"),
        ("billing", "stop"),
        ("billing", "turn_end"),
        ("router", "session_end"),
    ]


def test_two_hand_offs_in_one_turn() -> None:
    """The first that ends stands; the other is told."""
    others = [Agent("one", Scripted(say("one"))), Agent("two", Scripted(say("two")))]
    router = Agent("router", Scripted([hand("one", "1"), hand("two", "2", 1)]), handoffs=others)
    session = Session.from_user("go")
    with Runtime(router) as runtime:
        text = runtime.run(session).text
    assert sorted("already" in each for each in results(session)) == [False, True]
    assert session.agent_name == text
    assert f"handed to {text} already" in "".join(results(session))


def test_law_16_the_session_knows_of_a_hand_off_that_the_cancel_cut_short() -> None:
    """The result is recorded, so the next stream goes on with the other agent."""
    with Stall() as stall:
        billing = Agent("billing", Scripted(say("Paid.")))
        router = Agent("router", Scripted([hand("billing")]), handoffs=[billing], hooks={"turn_end": [stall]})
        session = Session.from_user("go")
        with Runtime(router) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            stream.cancel()
            events = list(stream)
            stall.go_on.set()
            assert not of(AgentSwitching, events)
            stream.close()
            assert session.agent_name == "billing"
            assert runtime.run(session).text == "Paid."


def test_a_hand_off_that_is_refused_is_none() -> None:
    """A hook blocks the call: the agent stays."""
    blocks = {"pre_tool_use": [lambda given: HookResult(block=True, reason="stay")]}
    router, _ = desk((), [[hand("billing")], say("I stay.")], hooks=blocks)
    session = Session.from_user("go")
    with Runtime(router) as runtime:
        assert runtime.run(session).text == "I stay."
    assert session.agent_name is None


def test_a_sub_agent_hands_over_its_own_conversation() -> None:
    """The parent's stays with the parent."""
    router, _ = desk()
    agent = Agent("a", Scripted([transfer("router")], say("ok")), sub_agents=[router])
    session = Session.from_user("go")
    with Runtime(agent) as runtime:
        assert runtime.run(session).text == "ok"
    assert results(session) == ["Paid."]
    assert session.agent_name is None


# -- in the background -------------------------------------------------------------------------------------------------


def boss(*turns: Any, subs: Sequence[Agent], **more: Any) -> Agent:
    return Agent("boss", Scripted(*turns), sub_agents=subs, background_agents=True, **more)


def task_of(session: Session) -> str:
    return next(text for text in results(session) if text.startswith("task-")).partition(":")[0]


def later(name: str, session: Session, id: str = "l", **more: Any) -> Any:
    """A model's step that calls a tool with the task's id, which it knows by then."""

    class Later:
        def __iter__(self) -> Any:
            yield call(name, f'{{"task_id": "{task_of(session)}"}}', id=id)

    return Later()


class Lazy(Scripted):
    """Turns that are made when they come."""

    def __init__(self, *turns: Any) -> None:
        super().__init__()
        self.turns = list(turns)

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        self.turns[0] = list(self.turns[0])
        return super().stream(messages, tools, cancel=cancel)


def test_a_task_in_the_background_is_started_waited_for_and_read() -> None:
    """Meanwhile the agent goes on; at the end the consumer is told."""
    session = Session.from_user("go")
    with Stall() as stall:
        sub = Agent("sub", Scripted([*say("half "), stall, *say("done")]))

        @tool(read_only=True)
        def let_go() -> str:
            """Lets it go on."""
            assert stall.reached.wait(10)
            stall.go_on.set()
            return "ok"

        turns = [
            [background("sub")],
            [call("list_background_agents", id="1")],
            [call("let_go", id="2")],
            later("wait_background_agent", session, "3"),
            later("view_background_agent", session, "4"),
            say("bye"),
        ]
        agent = Agent("boss", Lazy(*turns), tools=[let_go], sub_agents=[sub], background_agents=True)
        with Runtime(agent) as runtime:
            stream = runtime.run_stream(session)
            events = list(stream)
            assert stream.result().text == "bye"
    task = task_of(session)
    said = results(session)
    assert said[0] == f"{task}: sub is at work in the background."
    assert said[1] == f"{task}: sub, running, 0 s"
    assert said[3] == said[4] == f"{task}: sub, completed\nhalf done"
    [completed] = of(SubSessionCompleted, events)
    assert completed.reason == "normal"
    assert {e.agent_name for e in events} == {"boss"}  # what it says is the agent's to read


def test_law_8_the_background_ends_with_its_stream() -> None:
    """Normally: it is stopped first, and the consumer is told before the last event."""
    with Stall() as stall:
        sub = Agent("sub", AsyncScripted([*say("x"), lambda: _forever(stall)]))
        with Runtime(boss([background("sub")], [stall.reached.wait, *say("bye")], subs=[sub])) as runtime:
            with runtime.run_stream(Session.from_user("go")) as stream:
                events = list(stream)
            assert [e.type for e in events[-2:]] == ["sub_session_completed", "stream_stopped"]
            assert [e.reason for e in of(SubSessionCompleted, events)] == ["canceled"]
            assert not runtime._shared.cores


async def _forever(stall: Stall) -> None:
    stall.reached.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize("how", ["cancel", "close", "fail"])
def test_law_8_however_that_ends(how: str) -> None:
    """Nothing is left of it."""
    with Stall() as stall:
        sub = Agent("sub", AsyncScripted([*say("x"), lambda: _forever(stall)]))
        waiting = Stall()
        last: list[Any] = [lambda: _forever(waiting)]
        if how == "fail":  # when the other is at work, which is on the same loop: not to be waited for there
            last = [lambda: asyncio.to_thread(stall.reached.wait, 10), OSError("broken")]
        agent = Agent("boss", AsyncScripted([background("sub")], last), sub_agents=[sub], background_agents=True)
        with Runtime(agent) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            if how != "fail":
                assert waiting.reached.wait(10)
            if how == "cancel":
                stream.cancel()
            if how != "close":
                reason = "canceled" if how == "cancel" else "error"
                assert [event.reason for event in of(StreamStopped, list(stream))] == [reason]
            stream.close()
            assert not runtime._shared.cores
            assert not len(runtime.bridge)


def test_law_8_what_is_stuck_in_the_background_is_named() -> None:
    """The stream ends without it, and its report says where it stands."""
    with Stall() as stall:

        @tool(read_only=True)
        def deaf() -> str:
            """Does not hear a cancel."""
            stall()
            return "late"

        sub = Agent("sub", Scripted([call("deaf")]), tools=[deaf])
        with Runtime(boss([background("sub")], [stall.reached.wait, *say("bye")], subs=[sub]), grace=0.1) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert of(StreamStopped, list(stream))[0].reason == "normal"
            with pytest.raises(StreamStuck, match="tool deaf"):
                stream.close()
            stall.go_on.set()


def test_law_7_a_background_agent_has_nobody_to_ask() -> None:
    """Its questions are declined, its calls refused, and its model is told."""

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks."""
        return context.elicit("Really?").action

    model = Scripted([call("ask", id="1"), call("write", id="2", index=1)], say("could not"))
    session = Session.from_user("go")
    turns = [[background("sub")], later("wait_background_agent", session), say("ok")]
    agent = Agent("boss", Lazy(*turns), sub_agents=[Agent("sub", model, tools=[ask, write])], background_agents=True)
    with Runtime(agent) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            assert not isinstance(event, ToolCallConfirmation)
    asked, refused = (message.content for message in model.seen[1] if message.role == "tool")
    assert asked.startswith("decline")
    assert "nobody is there to be asked" in asked
    assert "nobody is there to be asked" in refused


def test_what_the_user_has_approved_holds_in_the_background() -> None:
    """For the tool, before it was started."""
    model = Scripted([call("write", id="2")], say("done"))
    session = Session.from_user("go")
    turns = [[call("write", id="1")], [background("sub")], later("wait_background_agent", session), say("ok")]
    agent = Agent(
        "boss",
        Lazy(*turns),
        tools=[write],
        sub_agents=[Agent("sub", model, tools=[write])],
        background_agents=True,
    )
    with Runtime(agent) as runtime:
        runtime.run(session, on_request=lambda event: Decision(True, "tool"))
    assert model.seen[1][-1].content == "wrote "


def test_its_tools_for_the_consumer_run_there() -> None:
    """In the thread that iterates over the parent."""
    ran: list[int] = []

    @tool(read_only=True, on="consumer")
    def here() -> str:
        """Belongs to the consumer's thread."""
        ran.append(threading.get_ident())
        return "here"

    session = Session.from_user("go")
    turns = [[background("sub")], later("wait_background_agent", session), say("ok")]
    sub = Agent("sub", Scripted([call("here")], say("done")), tools=[here])
    with Runtime(Agent("boss", Lazy(*turns), sub_agents=[sub], background_agents=True)) as runtime:
        runtime.run(session)
    assert ran == [threading.get_ident()]
    assert results(session)[1].endswith("done")


def test_law_9_observers_see_what_happens_in_the_background() -> None:
    """The consumer is told of its end, and nothing else."""
    seen: list[Event] = []

    class Observer:
        def on_run_start(self, session: Session) -> None:
            """Nothing to see."""

        def on_event(self, session: Session, event: Event) -> None:
            seen.append(event)

    session = Session.from_user("go")
    turns = [[background("sub")], later("wait_background_agent", session), say("ok")]
    sub = Agent("sub", Scripted(say("quiet")))
    agent = Agent("boss", Lazy(*turns), sub_agents=[sub], background_agents=True)
    with Runtime(agent, observers=[Observer()]) as runtime:
        events = list(runtime.run_stream(session))
    assert [event for event in seen if event.agent_name == "boss"] == events
    assert [event.type for event in seen if event.agent_name == "sub"] == [
        "agent_info", "toolset_info", "user_message", "agent_choice"
    ]  # fmt: skip


def test_one_is_stopped() -> None:
    """The others go on; what it had said is there."""
    session = Session.from_user("go")
    with Stall() as stall:
        model = AsyncScripted([*say("half"), call("whisk")], [lambda: _forever(stall)])
        sub = Agent("sub", model, tools=[whisk])

        class Stopping:
            """A turn that stops the task, once that stands still."""

            def __iter__(self) -> Any:
                assert stall.reached.wait(10)
                return iter(later("stop_background_agent", session))

        agent = Agent(
            "boss", Lazy([background("sub")], Stopping(), say("ok")), sub_agents=[sub], background_agents=True
        )
        with Runtime(agent) as runtime:
            events = list(runtime.run_stream(session))
    assert results(session)[1] == f"{task_of(session)}: sub, stopped\nhalf"
    assert [e.reason for e in of(SubSessionCompleted, events)] == ["canceled"]


def test_an_unknown_task_is_an_error_that_the_model_can_mend() -> None:
    """It is told which there are."""
    session = Session.from_user("go")
    turn = [call("view_background_agent", '{"task_id": "task-0"}')]
    with Runtime(boss(turn, say("ok"), subs=[Agent("sub", Scripted())])) as runtime:
        runtime.run(session)
    assert results(session) == ["there is no task 'task-0' in the background; there are: none"]


def test_one_that_fails_says_why() -> None:
    """And the hooks of the parent are told."""
    told: list[HookInput] = []
    session = Session.from_user("go")
    sub = Agent("sub", Scripted([*say("half"), OSError("no ink")]))
    turns = [[background("sub")], later("wait_background_agent", session), say("ok")]
    agent = Agent(
        "boss", Lazy(*turns), sub_agents=[sub], background_agents=True, hooks={"subagent_stop": [told.append]}
    )
    with Runtime(agent) as runtime:
        events = list(runtime.run_stream(session))
    assert results(session)[1] == f"{task_of(session)}: sub, failed\nhalf\nscripted: OSError: no ink"
    assert [(given.sub_agent, given.reason) for given in told] == [("sub", "error")]
    assert not of(Error, events)
    assert [e.hook_event for e in of(HookStarted, events)] == ["subagent_stop"]


def test_how_many_may_run_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is an error for the model."""
    monkeypatch.setattr("runtime.team._background.MAX_RUNNING", 1)
    session = Session.from_user("go")
    with Stall() as stall:
        sub = Agent("sub", AsyncScripted([lambda: _forever(stall)]))
        with Runtime(boss([background("sub", "1")], [background("sub", "2")], say("ok"), subs=[sub])) as runtime:
            runtime.run(session)
    assert results(session)[1].startswith("RuntimeError: 1 agents run in the background, and no more may")


# -- records -----------------------------------------------------------------------------------------------------------


def test_the_record_of_a_team_runs_again(tmp_path: Path) -> None:
    """Without any of its models and tools: tasks, the background and hand-offs happen again."""

    def team(model: Any) -> Team:
        scout = Agent("scout", model([call("whisk", id="s")], say("All clear.")), tools=[whisk])
        cook = Agent("cook", model([call("whisk", id="c")], say("Ready.")), tools=[whisk])
        billing = Agent("billing", model([transfer("cook", id="b")], say("Paid."), say("Thanks.")), sub_agents=[cook])
        wait = call("wait_background_agent", '{"task_id": "task-1"}', id="w")
        desk = model([background("scout")], [wait], [hand("billing")])
        return Team(
            [Agent("desk", desk, sub_agents=[scout], handoffs=[billing], background_agents=True)],
            permissions=Permissions(approve_all=True),
        )

    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    session = Session.from_user("go")
    with Runtime(team(Scripted)) as runtime:
        assert runtime.run(session, record=first).text == "Paid."
        session.add_user("more")
        assert runtime.run(session, record=second).text == "Thanks."
    for path, text in ((first, "Paid."), (second, "Thanks.")):
        recording = Recording(path)
        model = ReplayModel(recording)

        def again(agent: Agent, model: ReplayModel = model, recording: Recording = recording) -> Agent:
            return replace(agent, model=model, tools=recording.tools(agent.name))

        with Runtime(team(lambda *turns: Scripted()).map(again)) as runtime:
            assert runtime.run(recording.session()).text == text
        assert model.left == 0


# -- who there is ------------------------------------------------------------------------------------------------------


def test_names_that_lead_nowhere_or_to_two() -> None:
    """At the start, not in the middle of a conversation."""
    model = Scripted()
    with pytest.raises(ValueError, match="agent 'a' names 'b', who is not in the team; there are: a, c"):
        Runtime(Team([Agent("a", model, handoffs=["b"]), Agent("c", model)]))
    with pytest.raises(ValueError, match="two different agents are named 'b'"):
        Runtime(Agent("a", model, sub_agents=[Agent("b", model)], handoffs=[Agent("b", model)]))
    with pytest.raises(TypeError, match="sub_agents must be a list of agents and names of agents, not 'b'"):
        Agent("a", model, sub_agents="b")
    with pytest.raises(ValueError, match="agent 'a' has no sub_agents to run in the background"):
        Agent("a", model, background_agents=True)


def test_a_tool_of_the_same_name() -> None:
    """It is an error, rather than one of the two."""
    clash = Tool("transfer_task", lambda: "x")
    agent = Agent("a", Scripted(say("never")), tools=[clash], sub_agents=[Agent("b", Scripted())])
    with Runtime(agent) as runtime, pytest.raises(RunError, match="the agent has a tool named 'transfer_task'"):
        runtime.run(Session.from_user("go"))


def test_the_tools_for_a_team_are_made_once_for_all_turns() -> None:
    """Their schemas name every agent: made anew each turn, they cost more than the turn."""
    offered: list[list[Any]] = []

    class Model(Scripted):
        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            offered.append([each.parameters for each in tools])
            return super().stream(messages, tools, cancel=cancel)

    helper = Agent("helper", Scripted(*[say("done")] * 2))
    agent = Agent("a", Model([transfer("helper")], [transfer("helper")], say("ok")), sub_agents=[helper])
    with Runtime(agent) as runtime:
        runtime.run(Session.from_user("go"))
    assert len(offered) == 3
    assert all(now is first for turn in offered for now, first in zip(turn, offered[0], strict=True))
