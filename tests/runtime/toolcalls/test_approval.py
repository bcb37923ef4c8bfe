"""Approval of tool calls: who decides, in which order; the question, its answer, and what becomes of both."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from channels import Cancelled
from runtime import Agent, Decision, NotPending, Permissions, Rule, Runtime, Session, Team, Tool, ToolContext, tool
from runtime.events import Event, StreamStopped, ToolCallConfirmation, ToolCallResponse, ToolCallStarted
from runtime.toolcalls import _dispatch
from support.scripted import Scripted, Stall, call, say

ALL = Permissions(approve_all=True)


@tool
def shell(cmd: str, times: int = 1) -> str:
    """Runs a command."""
    return f"ran {cmd}" * times


@tool(read_only=True)
def look() -> str:
    """Only looks."""
    return "seen"


@tool(destructive=True, parallel=False)
def wipe() -> str:
    """Removes everything."""
    return "wiped"


def turn(*commands: str) -> list[Any]:
    return [call("shell", f'{{"cmd": "{cmd}"}}', id=str(i), index=i) for i, cmd in enumerate(commands)]


def runtime_for(*turns: Any, tools: Any = (shell, look, wipe), **more: Any) -> Runtime:
    return Runtime(Agent("a", Scripted(*turns, say("ok")), tools=tools), **more)


def responses(events: Any) -> list[tuple[str, bool]]:
    return [(event.response, event.is_error) for event in events if isinstance(event, ToolCallResponse)]


def results(session: Session) -> list[str]:
    return [message.content for message in session.messages if message.role == "tool"]


@contextmanager
def confirming(*turns: Any, wanted: int = 1, session: Session | None = None, **more: Any) -> Iterator[tuple[Any, ...]]:
    """A stream, and its confirmations, read as far as the last of them."""
    session = session or Session.from_user("go")
    with runtime_for(*turns, **more) as runtime, runtime.run_stream(session) as stream:
        pending: list[ToolCallConfirmation] = []
        while len(pending) < wanted:
            event = next(stream)
            if isinstance(event, ToolCallConfirmation):
                pending.append(event)
        yield runtime, stream, pending


# -- who decides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("session", "team", "name", "outcome"), [
    ({}, {}, "look", "runs"),  # read-only tools are free
    ({}, {}, "shell", "asks"),  # everything else asks
    ({"allow": ["shell"]}, {}, "shell", "runs"),
    ({}, {"allow": ["sh*"]}, "shell", "runs"),
    ({"ask": ["look"]}, {}, "look", "asks"),  # also a read-only tool
    ({"deny": ["look"]}, {}, "look", "denied"),
    ({"approve_all": True}, {}, "shell", "runs"),
    ({"approve_all": True}, {"ask": ["shell"]}, "shell", "runs"),  # before ask
    ({"approve_all": True}, {"deny": ["shell"]}, "shell", "denied"),  # a deny wins over everything
    ({}, {"approve_all": True, "deny": ["shell"]}, "shell", "denied"),
    ({"allow": ["shell"]}, {"deny": ["shell:cmd=git*"]}, "shell", "denied"),
    ({"allow": ["shell"], "ask": ["shell"]}, {}, "shell", "runs"),  # allow, then ask
    ({"ask": ["shell"]}, {"allow": ["shell"]}, "shell", "asks"),  # the session first
    ({"allow": ["shell"]}, {"ask": ["shell"]}, "shell", "runs"),
])  # fmt: skip
@pytest.mark.parametrize("level", ["team", "runtime"])
def test_the_order(level: str, session: Any, team: Any, name: str, outcome: str) -> None:
    arguments = '{"cmd": "git status"}' if name == "shell" else "{}"
    agent = Agent("a", Scripted([call(name, arguments)], say("ok")), tools=[shell, look])
    theirs = Permissions(**team)
    runtime = Runtime(Team([agent], permissions=theirs)) if level == "team" else Runtime(agent, permissions=theirs)
    seen = "runs"
    with runtime, runtime.run_stream(Session.from_user("go", permissions=Permissions(**session))) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                seen = "asks"
                stream.approve(event)
            elif isinstance(event, ToolCallResponse) and event.is_error:
                assert "denied by the permission" in event.response
                seen = "denied"
    assert seen == outcome


@pytest.mark.parametrize(("pattern", "arguments", "matches"), [
    ("shell", '{"cmd": "x"}', True),
    ("SHELL", '{"cmd": "x"}', True),
    ("shell:cmd=git*", '{"cmd": "git status"}', True),
    ("shell:cmd=git*", '{"cmd": "GIT status"}', True),  # a deny ignores case
    ("shell:cmd=git*", '{"cmd": "ls"}', False),
    ("shell:cmd=git*", '{"cmd": "git\\nstatus"}', True),  # a star spans lines
    ("shell:cmd=git*", r'{"cmd": "\u0067it status"}', True),  # however the JSON spells it
    ("shell:cmd=git*", '{"cmd": "ls", "cmd": "git status"}', True),  # the tool gets the last one
    ("shell:cmd=git*", '{"cmd": "git status", "cmd": "ls"}', False),
    ("shell:times=2", '{"cmd": "x", "times": 2}', True),
    ("shell:times=2", '{"cmd": "x", "times": 2.0}', True),
    ("shell:times=2", '{"cmd": "x", "times": 0.2e1}', True),
    ("shell:times=1", '{"cmd": "x"}', True),  # a default is what the tool gets, too
    ("shell:cmd=a*:times=2", '{"cmd": "ab", "times": 2}', True),  # all of them have to match
    ("shell:cmd=a*:times=2", '{"cmd": "ab", "times": 3}', False),
    ("shell:cmd=http://*", '{"cmd": "http://x"}', True),  # colons in values
])  # fmt: skip
def test_patterns_see_what_the_tool_gets(pattern: str, arguments: str, matches: bool) -> None:
    """Not the JSON that the model wrote: a deny must not be evaded by another spelling."""
    session = Session.from_user("go", permissions=Permissions(approve_all=True, deny=[pattern]))
    with runtime_for([call("shell", arguments)]) as runtime:
        runtime.run(session)
    assert results(session)[0].startswith("this call was rejected") == matches


def test_an_allow_respects_case() -> None:
    """In doubt there is a question."""
    session = Session.from_user("go", permissions=Permissions(allow=["shell:cmd=git*"]))
    with runtime_for(turn("GIT"), turn("git")) as runtime:
        runtime.run(session)
    assert [each.startswith("this call was rejected") for each in results(session)] == [True, False]


@pytest.mark.parametrize("value", ['{"a": [1, {"b": 2.0}]}', '{ "a":[ 1.0,{"b":2}] }'])
def test_values_that_are_not_text_are_matched_as_json(value: str) -> None:
    made = Tool("f", lambda x: "done", parameters={"type": "object", "properties": {"x": {}}})
    session = Session.from_user("go", permissions=Permissions(approve_all=True, deny=['f:x={"a":[[]1,{"b":2}]}']))
    with runtime_for([call("f", f'{{"x": {value}}}')], tools=[made]) as runtime:
        runtime.run(session)
    assert "rejected" in results(session)[0]


@pytest.mark.parametrize(("pattern", "matches"), [
    ("mcp:desk:book", True), ("mcp:desk:*", True), ("mcp:desk", True), ("mcp:*", True), ("book", True),
    ("mcp:desk:book:who=me", True), ("mcp:desk:who=me", True), ("mcp:desk:who=you", False), ("mcp:other", False),
])  # fmt: skip
def test_tools_of_servers(pattern: str, matches: bool) -> None:
    book = Tool("book", lambda who: "booked", parameters={"properties": {"who": {}}}, server="desk")
    session = Session.from_user("go", permissions=Permissions(allow=[pattern]))
    with runtime_for([call("book", '{"who": "me"}')], tools=[book]) as runtime:
        runtime.run(session)
    assert (results(session) == ["booked"]) == matches


def test_what_is_no_pattern() -> None:
    with pytest.raises(TypeError, match="a list of patterns"):
        Permissions(deny="shell")
    with pytest.raises(ValueError, match="TOOL:ARGUMENT=PATTERN"):
        Permissions(deny=[":cmd=x"])
    with pytest.raises(ValueError, match="both"):
        tool(read_only=True, destructive=True)(shell.function)
    with pytest.raises(ValueError, match="once, tool or session"):
        Decision(True, "ever")  # type: ignore[arg-type]


# -- the question ------------------------------------------------------------------------------------------------------


def test_approved_once() -> None:
    """It runs, and the next call asks again."""
    session = Session.from_user("go")
    with confirming(turn("a"), turn("b"), session=session) as (_, stream, [first]):
        assert first.tool_call.name == "shell"
        assert first.arguments == {"cmd": "a", "times": 1}
        stream.approve(first)
        second = next(event for event in stream if isinstance(event, ToolCallConfirmation))
        stream.approve(second.confirmation_id)
        assert responses(stream)[-1] == ("ran b", False)
    assert results(session) == ["ran a", "ran b"]
    assert session.permissions == Permissions()


def test_rejected_with_a_reason() -> None:
    """The model reads it."""
    with confirming(turn("a")) as (_, stream, [pending]):
        stream.reject(pending, "use ls")
        assert responses(stream) == [("this call was rejected: use ls", True)]
        assert stream.reason == "normal"


@pytest.mark.parametrize(("scope", "asked"), [("once", ["a", "b"]), ("tool", ["a", "wipe"]), ("session", ["a"])])
def test_scopes(scope: Any, asked: list[str]) -> None:
    """For this tool, for the session; it is remembered on the session, which the next stream runs on."""
    session = Session.from_user("go")
    seen = []
    with runtime_for(turn("a"), say("ok"), turn("b") if scope == "once" else [call("wipe")]) as runtime:
        for _ in range(2):
            with runtime.run_stream(session) as stream:
                for event in stream:
                    if isinstance(event, ToolCallConfirmation):
                        seen.append(event.arguments.get("cmd", "wipe"))
                        stream.approve(event, scope)
            session.add_user("again")
    assert seen == asked


def test_a_deny_holds_against_an_approval_for_the_session() -> None:
    session = Session.from_user("go", permissions=Permissions(deny=["wipe"]))
    with confirming(turn("a"), [call("wipe")], session=session) as (_, stream, [pending]):
        stream.approve(pending, "session")
        assert [error for _, error in responses(stream)] == [False, True]


def test_several_pending_at_once() -> None:
    """By id, in any order; what need not wait runs meanwhile; results in the order of the calls."""
    session = Session.from_user("go")
    calls = [*turn("a", "b", "c"), call("look", id="look", index=3)]
    with confirming(calls, wanted=3, session=session) as (runtime, stream, [a, _, c]):
        assert responses([next(stream), next(stream)]) == [("seen", False)]
        with pytest.raises(NotPending, match="3 confirmations are waiting"):
            runtime.approve()
        runtime.approve(c.confirmation_id)
        stream.reject(a, "no")
        runtime.approve()
        list(stream)
    assert results(session) == ["this call was rejected: no", "ran b", "ran c", "seen"]


def test_what_is_pending_is_in_the_order_in_which_it_was_asked_whatever_the_clock_says(monkeypatch) -> None:
    """The clock of a machine is set back, also between two questions."""
    hours = itertools.count()

    class SetBack(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2030, 1, 1, tzinfo=tz) - timedelta(hours=next(hours))

    monkeypatch.setattr("runtime.events.datetime", SetBack)
    with confirming(turn("a", "b", "c"), wanted=3) as (_, stream, asked):
        assert stream.pending == asked


def test_what_waits_already_is_not_covered_by_an_approval_of_another() -> None:
    """Each confirmation is answered by its own answer, whichever comes first."""
    with confirming(turn("a", "b"), wanted=2) as (_, stream, [a, b]):
        stream.approve(a, "session")
        stream.reject(b)
        assert sorted(responses(stream)) == [("ran a", False), ("this call was rejected by the user", True)]


def test_a_tool_that_must_run_alone_waits_alone() -> None:
    """Its place in the order is kept while the user thinks."""
    session = Session.from_user("go")
    order = []
    calls = [call("wipe", id="1"), call("look", id="2", index=1)]
    with runtime_for(calls) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, (ToolCallStarted, ToolCallResponse)):
                order.append((event.type, event.tool_call.name))
            elif isinstance(event, ToolCallConfirmation):
                assert event.destructive
                stream.approve(event)
    assert order == [
        ("tool_call", "wipe"),
        ("tool_call_response", "wipe"),
        ("tool_call", "look"),
        ("tool_call_response", "look"),
    ]


def test_not_pending() -> None:
    """Law 6: a second answer, a stranger's id, somebody else's stream, after the end."""
    with confirming(turn("a")) as (runtime, stream, [pending]), runtime_for(say("x")) as other:
        with other.run_stream(Session.from_user("go")) as strangers, pytest.raises(NotPending):
            strangers.approve(pending)
        with pytest.raises(NotPending):
            stream.approve("nothing")
        stream.approve(pending)
        for answer in (stream.approve, stream.reject):
            with pytest.raises(NotPending):
                answer(pending)
        list(stream)
        with pytest.raises(NotPending):
            runtime.approve()
    with pytest.raises(NotPending):
        stream.reject(pending)


def test_one_answer_wins() -> None:
    """Law 6: twenty threads answer at once, and what the one that succeeds says is what happens."""
    with confirming(turn("a")) as (_, stream, [pending]):
        barrier = threading.Barrier(20)
        won: list[int] = []

        def answer(number: int) -> None:
            barrier.wait()
            try:
                stream.reject(pending, str(number))
                won.append(number)
            except NotPending:
                pass

        threads = [threading.Thread(target=answer, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        said = responses(stream)
        for thread in threads:
            thread.join()
        assert said == [(f"this call was rejected: {won[0]}", True)]
        assert len(won) == 1


def test_cancelled_while_pending() -> None:
    """Laws 16 and 18: the call has a result, no answer is taken any more, and the last event comes."""
    session = Session.from_user("go")
    with confirming(turn("a"), session=session) as (_, stream, [pending]):
        stream.cancel("enough")
        last = list(stream)[-1]
        assert isinstance(last, StreamStopped)
        assert last.reason == "canceled"
        with pytest.raises(NotPending):
            stream.approve(pending, "session")
    assert len(results(session)) == 1
    assert session.permissions == Permissions()


def test_nobody_answers() -> None:
    """Law 14: after the deadline it is rejected."""
    with runtime_for(turn("a"), answer_timeout=0.05) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        assert responses(stream) == [("this call was rejected: nobody answered within 0.05 s", True)]


def test_not_interactive() -> None:
    """Law 7: refused at once, with a note; no confirmation is sent."""
    session = Session.from_user("go")
    with runtime_for(turn("a")) as runtime, runtime.run_stream(session, interactive=False) as stream:
        assert not any(isinstance(event, ToolCallConfirmation) for event in stream)
    [result] = results(session)
    assert result.startswith("this call was rejected: it needs the user's approval, and nobody is there to be asked")


def test_the_confirmation_as_json() -> None:
    with confirming(turn("a")) as (_, stream, [pending]):
        assert Event.from_dict(pending.to_dict()) == pending
        stream.approve(pending)
        list(stream)


# -- run(on_request=...) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "result"), [
    (True, "ran a"),
    (Decision(True, "tool"), "ran a"),
    (False, "this call was rejected by the user"),
    (None, "this call was rejected by the user"),
    (Decision(False, reason="no"), "this call was rejected: no"),
])  # fmt: skip
def test_on_request(answer: Any, result: str) -> None:
    session = Session.from_user("go")
    with runtime_for(turn("a")) as runtime:
        runtime.run(session, on_request=lambda request: answer)
    assert results(session) == [result]


def test_the_content_of_a_form_is_no_approval() -> None:
    """A callback written for questions must not approve calls by accident."""
    session = Session.from_user("go")
    with runtime_for(turn("a")) as runtime, pytest.raises(TypeError, match="True, False or a Decision"):
        runtime.run(session, on_request=lambda request: {"n": 1})
    assert results(session) == ["interrupted: the stream ended before this call did"]


def test_an_answer_that_comes_too_late_does_not_fail_the_run() -> None:
    with Stall() as stall, runtime_for(turn("a"), [stall], answer_timeout=0.05) as runtime:
        session = Session.from_user("go")

        def late(request: Any) -> bool:
            stall.reached.wait(30)  # the model goes on: the call was rejected
            stall.go_on.set()
            return True

        runtime.run(session, on_request=late)
    assert results(session) == ["this call was rejected: nobody answered within 0.05 s"]


# -- nested streams ----------------------------------------------------------------------------------------------------


def delegating(*turns: Any) -> Tool:
    inner = Agent("inner", Scripted(*turns, say("inner done")), tools=[shell])

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        return context.run_agent(inner, "go").text

    return delegate


def test_a_nested_stream_asks_the_roots_consumer() -> None:
    with confirming([call("delegate")], tools=[delegating(turn("a"))]) as (_, stream, [pending]):
        assert pending.agent_name == "inner"
        stream.approve(pending)
        assert responses(stream) == [("ran a", False), ("inner done", False)]


def test_what_the_user_approves_holds_in_nested_streams_and_after_them() -> None:
    """The user speaks to one conversation: the outermost session."""
    session = Session.from_user("go")
    delegate = delegating(turn("a"), turn("b"))
    with confirming([call("delegate")], turn("c"), tools=[delegate, shell], session=session) as (_, stream, [pending]):
        stream.approve(pending, "tool")
        assert [response for response, _ in responses(stream)] == ["ran a", "ran b", "inner done", "ran c"]
    [rule] = session.permissions.allow
    assert isinstance(rule, Rule)
    assert (rule.tool, rule.owner) == ("shell", f"{__name__}.shell")
    assert Session.from_dict(session.to_dict()).permissions == session.permissions


def test_a_deny_of_the_parent_holds_in_a_nested_stream() -> None:
    session = Session.from_user("go", permissions=Permissions(approve_all=True, deny=["shell:cmd=a"]))
    delegate = delegating(turn("a"), turn("b"))
    with runtime_for([call("delegate")], tools=[delegate]) as runtime, runtime.run_stream(session) as stream:
        assert [error for _, error in responses(stream)] == [True, False, False]


# -- what is asked is what runs ----------------------------------------------------------------------------------------


def taking(annotation: Any, **more: Any) -> tuple[Tool, list[Any]]:
    """A tool that takes ``x``, and what it got."""
    got: list[Any] = []

    def take(x: Any) -> str:
        got.append(x)
        return "took it"

    take.__annotations__ = {"x": annotation, "return": str}
    return tool(**more)(take), got


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(("annotation", "pattern", "written"), [
    (date, "2026-12-24", ["2026-12-24", "20261224", "2026-W52-4"]),
    (datetime, "2026-12-24T10:00:00Z", ["2026-12-24T10:00:00Z", "2026-12-24T11:00:00+01:00", "20261224T100000Z"]),
    (Decimal, "1000", [1000, "1000", "1e3", "1_000", " 1000 "]),
    (UUID, "12345678-1234-5678-1234-567812345678", ["12345678123456781234567812345678"]),
    (Path, "/etc/passwd", ["/etc/passwd", "/etc//passwd", "/etc/./passwd"]),
    (set[int], "[[]1,2[]]", [[1, 2], [2, 1], [2, 1, 2]]),
    (int, "999", [999, 999.0]),
    (dict[str, float], '{"a":5}', [{"a": 5}, {"a": 5.0}]),
    (list[date], '[[]"2026-12-24"[]]', [["20261224"]]),
    (Colour, "red", ["red"]),
], ids=str)  # fmt: skip
def test_a_pattern_sees_the_value_that_the_tool_gets_however_it_is_written(
    annotation: Any, pattern: str, written: list[Any]
) -> None:
    take, got = taking(annotation)
    calls = [call("take", json.dumps({"x": each}), id=str(i), index=i) for i, each in enumerate(written)]
    session = Session.from_user("go")
    denied = Permissions(approve_all=True, deny=[f"take:x={pattern}"])
    with runtime_for(calls, tools=[take], permissions=denied) as runtime:
        runtime.run(session)
    assert [text.startswith("this call was rejected") for text in results(session)] == [True] * len(written)
    assert not got


def test_a_pattern_sees_the_default_of_an_argument_that_is_left_out() -> None:
    @tool
    def find(text: str | None = None) -> str:
        return repr(text)

    session = Session.from_user("go")
    calls = [call("find", "{}", id="1"), call("find", '{"text": null}', id="2", index=1)]
    denied = Permissions(approve_all=True, deny=["find:text=null"])
    with runtime_for(calls, tools=[find], permissions=denied) as runtime:
        runtime.run(session)
    assert all(text.startswith("this call was rejected") for text in results(session))


def test_the_user_is_asked_about_the_value_that_the_tool_gets() -> None:
    """What the consumer does to the event's arguments changes nothing."""
    take, got = taking(set[int])
    with confirming([call("take", '{"x": [2, 1, 2]}')], tools=[take]) as (_, stream, [pending]):
        assert pending.arguments == {"x": [1, 2]}
        pending.arguments["x"].append(3)
        stream.approve(pending)
        assert responses(stream) == [("took it", False)]
    assert got == [{1, 2}]


def test_a_value_is_made_once_and_runs_as_it_was_approved() -> None:
    made: list[int] = []

    def convert(arguments: Any) -> dict[str, Any]:
        made.append(arguments["x"])
        return {"x": f"value {len(made)}"}

    take = Tool("take", lambda x: x, convert=convert)
    with confirming([call("take", '{"x": 1}')], tools=[take]) as (_, stream, [pending]):
        stream.approve(pending)
        assert responses(stream) == [("value 1", False)]
    assert made == [1]


@pytest.mark.parametrize(("pattern", "says"), [
    ("shell:command=rm*", "shell has no argument 'command'; it has: cmd, times"),
    ("shell:cmd=*:token=*", r"where ':token=' is part of a value, write '\[:\]token='"),
])  # fmt: skip
def test_a_pattern_that_can_match_no_call_is_an_error(pattern: str, says: str) -> None:
    """It would deny nothing."""
    with pytest.raises(ValueError, match=says):
        runtime_for(permissions=Permissions(deny=[pattern]))
    with pytest.raises(ValueError, match=says):
        Runtime(Team([Agent("a", Scripted(), tools=[shell])], permissions=Permissions(ask=[pattern])))
    with runtime_for() as runtime, pytest.raises(ValueError, match=says):
        runtime.run_stream(Session.from_user("go", permissions=Permissions(deny=[pattern])))


def test_deny_and_ask_ignore_case_in_names_too() -> None:
    """A rule whose names are in another case would deny nothing. ``allow`` has to name things exactly."""
    for pattern in ("SHELL:CMD=RM *", "Shell:Cmd=rm *"):
        session = Session.from_user("go", permissions=Permissions(approve_all=True, deny=[pattern]))
        with runtime_for([call("shell", '{"cmd": "rm -r /"}')]) as runtime:
            runtime.run(session)
        assert results(session)[0].startswith("this call was rejected: it is denied by the permission")
    with pytest.raises(ValueError, match="shell has no argument 'COMMAND'"):
        runtime_for(permissions=Permissions(deny=["SHELL:COMMAND=rm*"]))
    with pytest.raises(ValueError, match="shell has no argument 'CMD'"):
        runtime_for(permissions=Permissions(allow=["shell:CMD=ls*"]))


def test_a_value_may_hold_what_looks_like_an_argument() -> None:
    session = Session.from_user("go", permissions=Permissions(approve_all=True, deny=["shell:cmd=*[:]token=*"]))
    with runtime_for([call("shell", '{"cmd": "curl http://h/x:token=1"}')]) as runtime:
        runtime.run(session)
    assert results(session)[0].startswith("this call was rejected")


def test_names_of_arguments_may_have_hyphens_and_dots() -> None:
    schema = {"type": "object", "properties": {"file-path": {"type": "string"}, "a.b": {"type": "string"}}}
    write = Tool("write", lambda **given: "written", parameters=schema)
    calls = [
        call("write", '{"file-path": "/etc/passwd"}', id="1"),
        call("write", '{"a.b": "/etc/passwd"}', id="2", index=1),
        call("write", '{"a.b": "/tmp/x"}', id="3", index=2),
    ]
    denied = Permissions(approve_all=True, deny=["write:file-path=/etc/*", "write:a.b=/etc/*"])
    session = Session.from_user("go")
    with runtime_for(calls, tools=[write], permissions=denied) as runtime:
        runtime.run(session)
    assert [text.startswith("this call was rejected") for text in results(session)] == [True, True, False]


def test_no_tool_passes_for_that_of_another_server() -> None:
    with pytest.raises(ValueError, match="no tool is named 'mcp:"):
        Tool("mcp:trusted:read", print)
    with pytest.raises(ValueError, match="no server has a colon"):
        Tool("read", print, server="trusted:read")


def namesake() -> Tool:
    return Tool("shell", lambda cmd, times=1: f"another {cmd}", parameters=shell.parameters)


@pytest.mark.parametrize("other", [namesake, lambda: Tool("shell", print, parameters=shell.parameters, server="s")])
def test_an_approval_for_a_tool_is_not_for_its_namesake(other: Any) -> None:
    """Of a sub-agent, or of a server."""
    sub = Agent("sub", Scripted(turn("b"), say("sub done")), tools=[other()])
    task = call("transfer_task", '{"agent": "sub", "task": "go"}', id="t")
    root = Agent("root", Scripted(turn("a"), [task], turn("c"), say("ok")), tools=[shell], sub_agents=[sub])
    asked = []
    with Runtime(root) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                asked.append((event.agent_name, event.server))
                if event.agent_name == "root":
                    stream.approve(event, "tool")
                else:
                    stream.reject(event)
    assert asked == [("root", ""), ("sub", other().server)]


def test_what_the_user_approves_too_late_for_the_call_holds_for_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends between the answer and the worker's look at it."""
    waits = _dispatch._Dispatcher._wait

    def wait(dispatcher: Any) -> None:
        ask = next((each.ask for each in dispatcher.turn.running.values() if each.ask is not None), None)
        if ask is None:
            waits(dispatcher)
            return
        assert answered.wait(10)
        raise Cancelled("the stream ends now")

    monkeypatch.setattr(_dispatch._Dispatcher, "_wait", wait)
    answered = threading.Event()
    session = Session.from_user("go")
    with runtime_for(turn("a")) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                stream.approve(event, "tool")
                answered.set()
    assert stream.reason == "canceled"
    assert [str(rule) for rule in session.permissions.allow] == [f"shell (of {__name__}.shell)"]
