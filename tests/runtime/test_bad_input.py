"""What users get wrong is an error where they say it, and the error says what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runtime import (
    Agent,
    Answer,
    Budget,
    Compaction,
    Hook,
    Image,
    InvalidAnswer,
    Message,
    NotPending,
    Permissions,
    Price,
    Runtime,
    Session,
    Team,
    Tool,
    tool,
)
from runtime.events import Event, MaxIterationsReached, ToolCallConfirmation, Warning
from runtime.models import Fallback, IdleTimeout, Retry
from support.scripted import Scripted, call, say


@tool
def write() -> str:
    """Has to be approved."""
    return "written"


def agent(**more: Any) -> Agent:
    return Agent("a", Scripted(say("x")), **more)


def started(**more: Any) -> Runtime:
    return Runtime(agent(), **more)


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Permissions, {"allow": [""]}, "a permission must be TOOL or TOOL:ARGUMENT=PATTERN"),
    (Permissions, {"deny": ["shell(rm*)"]}, "a permission must be TOOL or TOOL:ARGUMENT=PATTERN"),
    (Permissions, {"deny": ["shell:rm*"]}, "a permission must be TOOL or TOOL:ARGUMENT=PATTERN"),
    (Permissions, {"deny": ["shell cmd=rm*"]}, "a permission must be TOOL or TOOL:ARGUMENT=PATTERN"),
    (Permissions, {"ask": [3]}, "a pattern of ask must be text"),
    (Permissions, {"deny": None}, "deny must be a list of patterns"),
    (Permissions, {"allow": "shell"}, "allow is a list of patterns"),
    (Permissions, {"approve_all": "no"}, "approve_all must be True or False, not 'no'"),
    (agent, {"hooks": {"pre_tool": [print]}}, "unknown hook point 'pre_tool'; known are session_start"),
    (agent, {"hooks": {"stop": print}}, "must be a list of callables and commands"),
    (agent, {"hooks": {"stop": [3]}}, "a hook must be a callable, a text for the shell or a list of arguments, not 3"),
    (agent, {"hooks": {"stop": [[]]}}, "a hook must be a callable"),
    (agent, {"hooks": {"stop": [Hook(print, matcher="x")]}}, "no tool is called at this point"),
    (Hook, {"target": print, "matcher": ["a"]}, "matcher must be text"),
    (Hook, {"target": print, "timeout": "3"}, "a number of seconds above 0"),
    (Budget, {"tokens": -1}, "a budget's tokens must be a number above 0, or None for no limit, not -1"),
    (Budget, {"tokens": 0}, "a budget's tokens must be a number above 0"),
    (Budget, {"cost": "1"}, "a budget's cost must be a number above 0"),
    (Budget, {"seconds": float("nan")}, "a budget's seconds must be a number above 0"),
    (agent, {"budget": 100}, "budget must be a Budget"),
    (agent, {"max_iterations": "3"}, "max_iterations must be a whole number, 1 or more"),
    (agent, {"max_repeated_calls": 1}, "max_repeated_calls must be 2 or more, or None"),
    (agent, {"tools": write}, "tools must be a list of functions"),
    (agent, {"tools": ["write"]}, "tools must be a list of functions and Tool objects; 'write' is none"),
    (agent, {"instructions": [write]}, r"text, or a function that returns it, .* Agent\(name, model, tools="),
    (agent, {"instructions": lambda session, agent: ""}, r"takes nothing, or the session, not \(session, agent\)"),
    (agent, {"description": None}, "description must be text"),
    (agent, {"toolsets": [print]}, "objects with the methods start, tools and stop"),
    (agent, {"sub_agents": "b"}, "sub_agents must be a list of agents"),
    (agent, {"handoffs": [3]}, "handoffs must be a list of agents and names of agents; 3 is none"),
    (agent, {"hooks": [print]}, "hooks must be a mapping"),
    (agent, {"background_agents": 1}, "background_agents must be True or False"),
    (agent, {"compaction": True}, "compaction must be a Compaction, or None"),
    (Agent, {"name": Scripted(say("x")), "model": "a"}, "the name of an agent must be text"),
    (Agent, {"name": "a", "model": Scripted}, "an id and a stream method, not the class Scripted itself"),
    (Agent, {"name": "a", "model": "gpt"}, "an object with an id and a stream method, not 'gpt'"),
    (Team, {"agents": ["a"]}, "each made with Agent"),
    (Team, {"agents": agent()}, "a list of agents"),
    (Team, {"agents": [agent()], "permissions": ["shell"]}, r"made with Permissions\(allow="),
    (Session, {"messages": "hello"}, r"for a text, use Session.from_user\('hello'\), not 'hello'"),
    (Session, {"messages": ["hello"]}, "a list of messages; .*; 'hello' is none"),
    (Session, {"title": 3}, "the title of a session must be text"),
    (Session.from_user, {"text": None}, "what the user says must be text, not None"),
    (Message, {"role": "human"}, "the role of a message must be one of system, user, assistant, tool, not 'human'"),
    (Message, {"role": "user", "content": b"x"}, "the content of a message must be text"),
    (Image, {"data": b"", "media_type": None}, "the media type of an image must be text"),
    (Answer, {"action": "yes"}, "an answer must be one of accept, decline, cancel, not 'yes'"),
    (Answer, {"action": "accept", "content": "large"}, "the content of an answer must be a mapping"),
    (Compaction, {"at": "0.8"}, "keep is less than at"),
    (Compaction, {"window": 1.5}, "a window must be a whole number of tokens"),
    (Compaction, {"model": "gpt"}, "an object with an id and a stream method"),
    (Tool, {"name": 3, "function": print}, "the name of a tool must be text"),
    (Tool, {"name": "f", "function": "print"}, "the function of tool 'f' must be callable"),
    (Tool, {"name": "f", "function": len, "parameters": ["x"]}, "a JSON schema of type object"),
    (Tool, {"name": "f", "function": len, "timeout": "1"}, "a number of seconds above 0, not '1'"),
    (Tool, {"name": "f", "function": len, "result_limit": 0}, "a whole number of characters, not 0"),
    (Retry, {"model": "gpt"}, "a model must be an object with an id and a stream method"),
    (Retry, {"model": Scripted(), "attempts": 0}, "attempts must be a whole number, 1 or more, not 0"),
    (Retry, {"model": Scripted(), "patience": None}, "patience must be a number of seconds, 0 or more"),
    (Fallback, {"model": Scripted}, "not the class Scripted itself"),
    (Fallback, {"model": Scripted(), "cooldown": -1}, "cooldown must be a number of seconds, 0 or more"),
    (IdleTimeout, {"model": Scripted(), "seconds": 0}, "the idle timeout must be a number of seconds above 0"),
    (Price, {"input": "2", "output": "10"}, "a number of dollars per million tokens, 0 or more, not '2'"),
    (Price, {"input": 2, "output": 10, "above": 200_000}, "above must be a pair"),
    (started, {"prices": {"x": (1, 2)}}, r"prices\['x'\] must be a Price"),
    (started, {"prices": Price(1, 2)}, "prices must be a mapping of model ids"),
    (started, {"permissions": ["shell"]}, r"made with Permissions\(allow="),
    (started, {"grace": -1}, "grace must be a number of seconds, 0 or more"),
    (started, {"answer_timeout": "1"}, "answer_timeout must be a number of seconds"),
    (started, {"result_limit": 0}, "result_limit must be a whole number of characters"),
    (started, {"event_capacity": 1.5}, "event_capacity must be a whole number"),
    (started().run, {"session": "hello"}, r"a Session, such as Session.from_user\('hello'\), not 'hello'"),
    (started().run, {"session": Session.from_user("x"), "budget": 100}, "budget must be a Budget"),
]


# What a row is called says nothing of the values: with an address or a random id in it, no two processes agree on it.
NAMES = [f"{made.__name__} {' '.join(given)}" for made, given, _ in WRONG]


@pytest.mark.parametrize(("made", "given", "says"), WRONG, ids=NAMES)
def test_wrong_values(made: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        made(**given)


def test_names_of_servers_may_be_anything() -> None:
    assert Permissions(deny=["mcp:booking desk:book*"]).deny


def answer(kind: type[Event], answers: Callable[[Any, Any], Any]) -> None:
    """Let ``answers`` answer the event of this kind."""
    writing = Agent("a", Scripted([call("write")], say("ok")), tools=[write], max_iterations=1)
    with Runtime(writing) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, kind):
                answers(stream, event)
                return
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event)


@pytest.mark.parametrize("iterations", [-1, "3", 1.5, True])
def test_more_turns_are_a_number(iterations: Any) -> None:
    """It waits on, and takes the right one."""

    def extend(stream: Any, event: MaxIterationsReached) -> None:
        with pytest.raises(InvalidAnswer, match="a whole number of turns, 0 or more"):
            stream.extend(event, iterations)
        stream.extend(event, 1)
        with pytest.raises(NotPending, match="it was answered, withdrawn or timed out"):
            stream.extend(event, 1)

    answer(MaxIterationsReached, extend)


def test_answers_to_something_else() -> None:
    """Each event has its method; the wrong one says what it answers, and the call waits on."""

    def mixed_up(stream: Any, event: ToolCallConfirmation) -> None:
        with pytest.raises(TypeError, match="the event ElicitationRequest, or its elicitation_id"):
            stream.respond(event, "accept")
        with pytest.raises(TypeError, match="the event ToolCallConfirmation, or its confirmation_id"):
            stream.approve(event.tool_call)
        with pytest.raises(ValueError, match="once, tool or session"):
            stream.approve(event, "always")
        stream.approve(event)
        with pytest.raises(NotPending, match="it was answered, withdrawn or timed out"):
            stream.reject(event)

    answer(ToolCallConfirmation, mixed_up)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("exit 3", "hook exit 3 at session_start failed: exit status 3: nothing on standard error"),
        (["sh", "-c", "echo oops >&2; exit 4"], "hook sh -c 'echo oops >&2; exit 4' at session_start failed: exit"),
        ("echo '{bad'", "its output is not a hook result"),
        (Hook("sleep 5", timeout=0.05), "hook sleep 5 at session_start failed: hook sleep 5 did not end within 0.05 s"),
        (lambda given: "x", "returns a HookResult or None, not 'x'"),
    ],
)
def test_hooks_that_fail_are_told_by_name(hook: Any, says: str) -> None:
    with Runtime(agent(hooks={"session_start": [hook]})) as runtime:
        warnings = [event for event in runtime.run_stream(Session.from_user("go")) if isinstance(event, Warning)]
    assert says in warnings[0].message
