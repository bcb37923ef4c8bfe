"""What users get wrong is an error where they say it, and the error says what would be right."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from channels import Channel
from runtime import (
    Agent,
    Answer,
    Budget,
    Compaction,
    Decision,
    ElicitationBridge,
    Hook,
    Image,
    InvalidAnswer,
    Message,
    NotPending,
    Permissions,
    Price,
    Recording,
    Rule,
    Runtime,
    Session,
    Team,
    Tool,
    ToolContext,
    ToolResult,
    stream_scope,
    tool,
)
from runtime.events import (
    ElicitationRequest,
    Event,
    MaxIterationsReached,
    StreamStarted,
    ToolCallConfirmation,
    ToolCallOutput,
    Warning,
)
from runtime.models import Fallback, IdleTimeout, Retry, exponential
from runtime.stores import MemoryStore
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
    (Permissions, {"allow": "shell"}, "allow must be a list of patterns"),
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
    (Decision, {"approved": "no"}, "approved must be True or False, not 'no'"),
    (Decision, {"approved": False, "reason": 3}, "the reason of a decision must be text, not 3"),
    (Rule, {"tool": None}, "the tool of a rule must be text, such as 'shell', not None"),
    (Rule, {"tool": "shell", "arguments": {"cmd": "git*"}}, "must be pairs of a name and a pattern"),
    (Rule, {"tool": "shell", "arguments": [("cmd",)]}, r"pairs of a name and a pattern, .*; \('cmd',\) is none"),
    (agent, {"hooks": {"stop": 3}}, r"hooks\['stop'\] must be a list of callables and commands, not 3"),
    (Team([agent()]).map, {"change": None}, "change must be a function from an agent to an agent, not None"),
    (
        Team([agent()]).map,
        {"change": print},
        "what change returns for <Agent 'a' .* must be an agent, not None",
    ),
    (Answer, {"action": "decline", "note": 3}, "the note of an answer must be text"),
    (ToolResult, {"content": "x", "is_error": "no"}, "is_error must be True or False, not 'no'"),
    (Tool, {"name": "", "function": len}, "a tool needs a name"),
    (Tool, {"name": "f", "function": len, "read_only": "no"}, "read_only must be True or False, not 'no'"),
    (Tool, {"name": "f", "function": len, "parallel": 0}, "parallel must be True or False, not 0"),
    (Tool, {"name": "f", "function": len, "server": None}, "the server of tool 'f' must be text, not None"),
    (Tool, {"name": "f", "function": len, "convert": {}}, "convert of tool 'f' must be a function of the arguments"),
    (Tool, {"name": "f", "function": len, "on": "worker"}, "on must be 'helper' or 'consumer', not 'worker'"),
    (tool(name="f"), {"function": 3}, r"what tool\(\) makes a tool of must be a function, not 3"),
    (tool(name="f"), {"function": write}, r"<Tool write\(\)> is a tool already"),
    (
        Message,
        {"role": "user", "images": "x.png"},
        "must be a list of Image objects, not 'x.png'",
    ),
    (Message, {"role": "assistant", "tool_calls": [3]}, "a list of ToolCall objects; 3 is none"),
    (Message, {"role": "tool", "tool_call_id": 3}, "the tool_call_id of a message must be text, or None, not 3"),
    (Message, {"role": "user", "is_error": None}, "is_error must be True or False"),
    (Message, {"role": "assistant", "usage": {}}, "the usage of a message must be a Usage"),
    (Message, {"role": "user", "created_at": datetime(2026, 1, 1)}, r"a time zone, such as datetime.now\(UTC\)"),
    (Message.from_dict, {"data": {}}, "this is not a message as to_dict.* writes it: KeyError: 'role'"),
    (Message.from_dict, {"data": None}, "a mapping is wanted, not None"),
    (
        Image.from_dict,
        {"data": {"data": "", "media_type": 3}},
        "this is not an image .* media type of an image must",
    ),
    (Event.from_dict, {"data": "warning"}, "this is not an event as .*: a mapping is wanted, not 'warning'"),
    (Event.from_dict, {"data": {"type": "warning"}}, "this is not an event .* missing .* 'message'"),
    (Session, {"agent_name": agent()}, "agent_name must be the name of an agent, or None"),
    (Session.from_user, {"text": "x", "images": Image(b"")}, "images must be a list of images"),
    (
        Session.from_user("x").add_user,
        {"text": "x", "images": ["x.png"]},
        "; 'x.png' is none",
    ),
    (Recording, {"path": None}, "the file of a recording must be a path, as text or a pathlib.Path, not None"),
    (Recording, {"path": "x", "redact": "x"}, "redact must be a function from a text to a text"),
    (Retry, {"model": Scripted(), "backoff": 2}, "backoff must be a function from the number of an attempt"),
    (Retry, {"model": Scripted(), "when": ()}, "when must be a function from an exception to"),
    (Fallback, {"model": Scripted(), "clock": 3}, "clock must be a function that returns the time"),
    (exponential, {"first": "1"}, "first must be a number of seconds, 0 or more, not '1'"),
    (Runtime, {"agent": "a"}, "what a runtime runs must be an Agent or a Team, not 'a'"),
    (started, {"executor": 4}, "executor must be a ThreadPoolExecutor, or None, not 4"),
    (started, {"store": "sessions.db"}, r"store must be a store, such as SQLiteStore\('sessions.db'\)"),
    (started, {"store": MemoryStore}, "store must be a store, .* not <class"),
    (started, {"titles": "no"}, "titles must be True or False, not 'no'"),
    (started, {"permissions": []}, r"made with Permissions\(allow="),
    (started, {"result_directory": 3}, "result_directory must be a path"),
    (started, {"grace": 10**400}, "grace must be a number of seconds, 0 or more, not 1000"),
    (started, {"observers": print}, r"observers must be a list, such as \[observer\], not"),
    (
        started().run_stream,
        {"session": Session.from_user("x"), "interactive": 0},
        "interactive must be True or False",
    ),
    (started().run_stream, {"session": Session.from_user("x"), "record": 3}, "the file of a recording must be a path"),
    (
        started().run,
        {"session": Session.from_user("x"), "on_request": True},
        "on_request must be a function",
    ),
    (started().map, {"sessions": [], "progress": None}, "progress must be True or False"),
    (started().steer, {"session": None, "text": "x"}, "the session must be a Session, or the id of one, not None"),
    (started().follow_up, {"session": "s", "text": b"x"}, "the text of a message must be text, not b'x'"),
    (started().pause, {"session": 3}, "the session must be a Session, or the id of one"),
    (
        started().approve,
        {"confirmation_id": True},
        "the confirmation_id of a ToolCallConfirmation",
    ),
    (started().resume_elicitation, {"action": "accept", "content": "x"}, "content must be a mapping of the fields"),
    (started().resume_elicitation, {"action": "accept", "elicitation_id": 3}, "the elicitation_id of an Elicitation"),
    (stream_scope, {"bridge": None, "events": Channel()}, "the bridge of a stream_scope must be an ElicitationBridge"),
    (stream_scope, {"bridge": ElicitationBridge(), "events": []}, "the events of a stream_scope must be a Channel"),
    (ElicitationBridge().swap, {"channel": None}, "what takes the place on the bridge must be a Channel"),
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


@pytest.mark.parametrize("content", ["large", 3, [("size", "large")]])
def test_content_that_is_no_mapping_leaves_the_question_open(content: Any) -> None:
    @tool(read_only=True)
    def order(context: ToolContext) -> str:
        """Ask."""
        return context.elicit("Which size?", {"type": "object", "properties": {}}).action

    asking = Agent("a", Scripted([call("order")], say("ok")), tools=[order])
    with Runtime(asking) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                with pytest.raises(InvalidAnswer, match=r"content must be a mapping, such as \{'size': 'large'\}, not"):
                    stream.respond(event, "accept", content)
                stream.respond(event, "decline")


def test_a_wrong_limit_or_timeout_takes_no_event() -> None:
    with Runtime(agent()) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for wrong in (0, -1, True, "2"):
            with pytest.raises(ValueError, match="limit must be a whole number of events, 1 or more"):
                stream.recv_many(wrong)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="limit must be a whole number of events, 1 or more"):
                stream.try_recv_many(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not '1'"):
            stream.recv(timeout="1")  # type: ignore[arg-type]
        assert isinstance(stream.recv(timeout=5), StreamStarted)


IN_A_TOOL: list[tuple[Callable[[ToolContext], object], str]] = [
    (lambda context: context.elicit(None), "the message of a question must be text, not None"),  # type: ignore[arg-type]
    (lambda context: context.elicit("?", "size"), "the schema of a question must be a JSON schema"),  # type: ignore[arg-type]
    (lambda context: context.elicit("?", url=3), "the url of a question must be text"),  # type: ignore[arg-type]
    (
        lambda context: context.elicit("?", timeout=float("nan")),
        "the timeout of a question must be a number",
    ),
    (lambda context: context.elicit("?", cancel=3), "cancel must be a CancelToken, or None"),  # type: ignore[arg-type]
    (lambda context: context.progress(3), "the output of a progress report must be text"),  # type: ignore[arg-type]
    (lambda context: context.progress("x", "half"), "progress must be a number, or None, not 'half'"),  # type: ignore[arg-type]
    (lambda context: context.once(3, str), "the key of once must be text"),  # type: ignore[arg-type]
    (lambda context: context.once("k", 3), "what once calls must be a function"),  # type: ignore[arg-type]
    (lambda context: context.once("k", object), r"once\('k'\) keeps what is JSON, and this is not"),
    (lambda context: context.run_agent("b", "x"), "what run_agent runs must be an Agent"),  # type: ignore[arg-type]
    (lambda context: context.run_agent(agent(), 3), "the task of run_agent must be text, or a Session"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("wrong", "says"), IN_A_TOOL, ids=[says[:40] for _, says in IN_A_TOOL])
def test_wrong_values_in_a_tool(wrong: Callable[[ToolContext], object], says: str) -> None:
    """They are an error in the tool, and the run goes on."""
    caught: list[str] = []

    @tool(read_only=True)
    def careless(context: ToolContext) -> str:
        """Use its context wrongly."""
        with pytest.raises((TypeError, ValueError), match=says) as error:
            wrong(context)
        caught.append(str(error.value))
        return "well"

    with Runtime(Agent("a", Scripted([call("careless")], say("ok")), tools=[careless])) as runtime:
        assert runtime.run(Session.from_user("go")).text == "ok"
    assert caught


def test_progress_of_a_huge_number_is_no_number() -> None:
    @tool(read_only=True)
    def work(context: ToolContext) -> str:
        """Report."""
        context.progress("x", 10**400, float("inf"))
        return "done"

    with Runtime(Agent("a", Scripted([call("work")], say("ok")), tools=[work])) as runtime:
        reports = [e for e in runtime.run_stream(Session.from_user("go")) if isinstance(e, ToolCallOutput)]
    assert [(each.progress, each.total) for each in reports] == [(None, None)]
