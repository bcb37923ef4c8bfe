"""Hooks of tool calls: what they are told, what they may change, and that they keep no other call waiting."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    Agent,
    Decision,
    Hook,
    HookInput,
    HookResult,
    Permissions,
    RunError,
    Runtime,
    Session,
    Tool,
    tool,
)
from runtime.events import (
    Event,
    HookBlocked,
    HookFinished,
    ToolCallConfirmation,
    ToolCallResponse,
    Warning,
)
from support.scripted import Scripted, Stall, call, say


def greet(name: str = "you") -> str:
    """Greets."""
    return f"hello {name}"


GREET = tool(read_only=True)(greet)


def one(arguments: str = '{"name": "Ann"}') -> Scripted:
    return Scripted([call("greet", arguments)], say("done"))


def run(
    hooks: dict[str, list[Any]], model: Scripted | None = None, *tools: Any, interactive: bool = True, **more: Any
) -> list[Event]:
    with (
        Runtime(Agent("a", model or one(), tools=tools or [GREET], hooks=hooks), **more) as runtime,
        runtime.run_stream(Session.from_user("hi"), interactive=interactive) as stream,
    ):
        return list(stream)


def responses(events: list[Event]) -> list[tuple[str, bool]]:
    return [(event.response, event.is_error) for event in events if isinstance(event, ToolCallResponse)]


def test_what_they_are_told() -> None:
    """The tool, the call, its arguments; the result; the decision and where it came from."""
    told: dict[str, HookInput] = {}

    def note(given: HookInput) -> None:
        told[given.hook_event_name] = given

    points = ("pre_tool_use", "on_tool_approval_decision", "tool_response_transform", "post_tool_use")
    run({point: [note] for point in points})
    assert list(told) == list(points)
    for given in told.values():
        assert (given.tool_name, given.tool_use_id, given.tool_input) == ("greet", "call-1", {"name": "Ann"})
    assert (told["on_tool_approval_decision"].decision, told["on_tool_approval_decision"].reason) == (
        "allow",
        "it only reads",
    )
    assert told["post_tool_use"].tool_response == "hello Ann"
    assert not told["post_tool_use"].is_error
    assert told["pre_tool_use"].to_dict()["tool_input"] == {"name": "Ann"}


def test_a_hook_that_blocks_a_call() -> None:
    """The model reads the reason, and the run goes on."""
    found = run({"pre_tool_use": [lambda given: HookResult(block=True, reason="not today")]})
    assert responses(found) == [("this call was rejected: not today", True)]
    [blocked] = [event for event in found if isinstance(event, HookBlocked)]
    assert blocked.tool_call is not None
    assert (blocked.hook_event, blocked.tool_call.name) == ("pre_tool_use", "greet")


def test_arguments_are_changed_one_hook_after_the_other() -> None:
    """Each is told what the one before has made of them; the tool gets the last."""

    def shout(given: HookInput) -> HookResult:
        assert given.tool_input is not None
        return HookResult(updated_input={"name": given.tool_input["name"] + "!"})

    assert responses(run({"pre_tool_use": [shout, shout]})) == [("hello Ann!!", False)]


def test_changed_arguments_are_checked_again() -> None:
    """Against the schema of the tool."""
    found = run({"pre_tool_use": [lambda given: HookResult(updated_input={"name": 3})]})
    [(response, is_error)] = responses(found)
    assert is_error
    assert response.startswith("a hook changed the arguments: wrong arguments for greet: ")


def test_changed_arguments_are_what_is_approved() -> None:
    """Permissions and the user see what the tool will get, not what the model wrote."""
    hooks = {"pre_tool_use": [lambda given: HookResult(updated_input={"name": "Eve"})]}
    denied = run(hooks, one(), greet, permissions=Permissions(allow=["greet"], deny=["greet:name=Eve"]))
    assert responses(denied)[0][1]
    seen: list[Any] = []
    with (
        Runtime(Agent("a", one(), tools=[greet], hooks=hooks)) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                seen.append(dict(event.arguments))
                stream.approve(event)
            if isinstance(event, ToolCallResponse):
                assert event.response == "hello Eve"
    assert seen == [{"name": "Eve"}]


def test_a_hook_answers_for_the_user() -> None:
    """permission_request: allow and block; the user is not asked. A deny of the permissions is not asked about."""
    asked: list[HookInput] = []

    def allow(given: HookInput) -> HookResult:
        asked.append(given)
        return HookResult(allow=True)

    assert responses(run({"permission_request": [allow]}, one(), greet)) == [("hello Ann", False)]
    block = {"permission_request": [lambda given: HookResult(block=True, reason="never")]}
    assert responses(run(block, one(), greet)) == [("this call was rejected: never", True)]
    assert responses(run({"permission_request": [allow]}, one(), greet, permissions=Permissions(deny=["greet"])))[0][1]
    assert len(asked) == 1


def test_results_are_changed_before_anyone_sees_them() -> None:
    """tool_response_transform: the event, the session and the hooks after it have the changed one; errors too."""
    after: list[HookInput] = []

    def hide(given: HookInput) -> HookResult:
        return HookResult(updated_response=given.tool_response.replace("Ann", "***").replace("zero", "nought"))

    hooks = {"tool_response_transform": [hide], "post_tool_use": [after.append]}
    assert responses(run(hooks)) == [("hello ***", False)]
    [(response, is_error)] = responses(run(hooks, one("{}"), Tool("greet", lambda: 1 / 0, read_only=True)))
    assert is_error
    assert "nought" in response
    assert [given.tool_response for given in after] == ["hello ***", response]


def test_what_is_kept_of_a_long_result_is_the_changed_one(tmp_path: Path) -> None:
    """tool_response_transform: the hook sees the whole, before it is cut, and nothing of it is on the disk by then."""
    seen: list[tuple[str, list[Path]]] = []

    def redact(given: HookInput) -> HookResult:
        seen.append((given.tool_response, list(tmp_path.glob("**/*.txt"))))
        return HookResult(updated_response=given.tool_response.replace("1234", "****"))

    text = "password 1234 " * 100
    hooks = {"tool_response_transform": [redact]}
    long = Tool("greet", lambda: text, read_only=True, result_limit=100)
    [(response, _)] = responses(run(hooks, one("{}"), long, result_directory=tmp_path))
    assert seen == [(text, [])]
    assert "characters are left out here" in response
    [file] = tmp_path.glob("**/*.txt")
    assert file.read_text() == text.replace("1234", "****")
    assert "1234" not in response


def test_context_after_a_call_is_for_the_next_turn() -> None:
    """post_tool_use: the model knows it then, and only then."""
    model = Scripted([call("greet", "{}", id="1")], [call("greet", "{}", id="2")], say("done"))
    added = {"1": HookResult(context="It rains.")}
    run({"post_tool_use": [lambda given: added.get(given.tool_use_id)]}, model)
    assert [messages[0].content for messages in model.seen] == ["hi", "It rains.", "hi"]


def test_a_hook_ends_the_run_after_the_calls_of_the_turn() -> None:
    """post_tool_use: all of them have results by then."""
    model = Scripted([call("greet", "{}", id=str(n), index=n) for n in range(3)], say("never"))

    def stop(given: HookInput) -> HookResult | None:
        return HookResult(block=True, reason="enough") if given.tool_use_id == "0" else None

    session = Session.from_user("hi")
    with (
        Runtime(Agent("a", model, tools=[GREET], hooks={"post_tool_use": [stop]})) as runtime,
        pytest.raises(RunError, match="enough") as raised,
    ):
        runtime.run(session)
    assert raised.value.code == "hook_blocked"
    assert [message.content for message in session.messages if message.role == "tool"] == ["hello you"] * 3


def test_matchers_choose_the_tools() -> None:
    """By name."""
    told: list[str] = []
    hook = Hook(lambda given: told.append(given.tool_name), matcher="greet|wave_*")
    turn = [call("greet", "{}", id="1"), call("wave_hand", id="2", index=1), call("other", id="3", index=2)]
    tools = [Tool(name, lambda: "", read_only=True) for name in ("wave_hand", "other")]
    run({"pre_tool_use": [hook]}, Scripted(turn, say("done")), GREET, *tools)
    assert sorted(told) == ["greet", "wave_hand"]


def test_a_hook_of_one_call_keeps_no_other_waiting() -> None:
    """While it stands, the other call runs, asks and is answered."""
    with Stall() as stall:

        def hold(given: HookInput) -> None:
            if given.tool_use_id == "1":
                stall()

        order: list[str] = []
        turn = [call("greet", "{}", id="1"), call("greet", "{}", id="2", index=1)]
        agent = Agent("a", Scripted(turn, say("done")), tools=[greet], hooks={"pre_tool_use": [hold]})
        with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("hi")) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.approve(event)
                if isinstance(event, ToolCallResponse):
                    order.append(event.tool_call.id)
                    stall.go_on.set()
        assert order == ["2", "1"]


@pytest.mark.parametrize(
    ("module", "check"), [("runtime.toolcalls._tool_run", "given"), ("runtime.toolcalls._approval", "decide")]
)
def test_a_check_of_one_call_keeps_no_other_waiting(module: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that a hook has changed are held against the schema, and against patterns: other calls go on."""
    real = getattr(sys.modules[module], check)
    checking, answered = threading.Event(), threading.Event()
    in_time: list[bool] = []

    def slow(*args: Any, **more: Any) -> Any:
        if "Eve" in str(args):
            checking.set()
            in_time.append(answered.wait(5))
        return real(*args, **more)

    def change(given: HookInput) -> HookResult | None:
        return HookResult(updated_input={"name": "Eve"}) if given.tool_use_id == "1" else None

    def other() -> str:
        assert checking.wait(5)
        return ""

    monkeypatch.setattr(sys.modules[module], check, slow)
    turn = [call("greet", "{}", id="1"), call("other", "{}", id="2", index=1)]
    tools = [GREET, Tool("other", other, read_only=True)]
    agent = Agent("a", Scripted(turn, say("done")), tools=tools, hooks={"pre_tool_use": [change]})
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("hi")) as stream:
        for event in stream:
            if isinstance(event, ToolCallResponse):
                answered.set()
    assert in_time == [True]


def test_hooks_need_no_thread_beside_the_one_they_run_on() -> None:
    """A pool of one thread is enough for tools, hooks and a model together."""
    ran: list[str] = []
    hooks = {
        point: [lambda given: ran.append(given.hook_event_name)]
        for point in ("pre_tool_use", "tool_response_transform", "post_tool_use", "turn_end")
    }
    with ThreadPoolExecutor(1) as pool:
        assert responses(run(hooks, executor=pool)) == [("hello Ann", False)]
    assert ran == ["pre_tool_use", "tool_response_transform", "post_tool_use", "turn_end", "turn_end"]


@pytest.mark.parametrize("hook", ["exit 1", Hook("sleep 30", timeout=0.05), lambda given: 1 / 0, lambda given: "no"])
def test_a_guard_that_fails_lets_nothing_pass(hook: Any) -> None:
    """pre_tool_use: the call is refused, with a reason; the run goes on."""
    found = run({"pre_tool_use": [hook]})
    [(response, is_error)] = responses(found)
    assert is_error
    assert "failed: " in response
    assert len([event for event in found if isinstance(event, Warning)]) == 1


def test_a_hook_of_a_call_has_its_time() -> None:
    """It has failed then, and the call goes on without it; when it ends late, nobody takes notice."""
    ended = threading.Event()
    with Stall() as stall:

        def slow(given: HookInput) -> HookResult:
            stall()
            ended.set()
            return HookResult(block=True)

        def late() -> str:
            stall.go_on.set()
            assert ended.wait(5)
            return "in time"

        found = run(
            {"on_tool_approval_decision": [Hook(slow, timeout=0.05)]}, one("{}"), Tool("greet", late, read_only=True)
        )
    assert responses(found) == [("in time", False)]
    [error] = [event.error for event in found if isinstance(event, HookFinished)]
    assert error.endswith("did not end within 0.05 s")
    assert len([event for event in found if isinstance(event, Warning)]) == 1


def test_a_command_gets_the_call_as_json(tmp_path: Path) -> None:
    """And may change the arguments."""
    script = tmp_path / "hook.py"
    script.write_text(
        "import json, sys\n"
        "given = json.load(sys.stdin)\n"
        "assert given['hook_event_name'] == 'pre_tool_use' and given['cwd'] and given['session_id']\n"
        "name = given['tool_name'] + ' ' + given['tool_input']['name']\n"
        "print(json.dumps({'updated_input': {'name': name}}))\n"
    )
    assert responses(run({"pre_tool_use": [[sys.executable, str(script)]]})) == [("hello greet Ann", False)]


def test_hooks_are_told_who_is_asked_what() -> None:
    """on_user_input: approval of a call; a tool's question is told by its text."""
    told: list[str] = []
    with Runtime(
        Agent("a", one(), tools=[greet], hooks={"on_user_input": [lambda given: told.append(given.reason)]})
    ) as runtime:
        runtime.run(Session.from_user("hi"), on_request=lambda request: Decision(True))
    assert told == ["approval of greet"]


def test_a_rejected_call_is_told_with_its_reason() -> None:
    """on_tool_approval_decision: the user's own words."""
    told: list[tuple[str, str]] = []
    hooks = {"on_tool_approval_decision": [lambda given: told.append((given.decision, given.reason))]}
    with Runtime(Agent("a", one(), tools=[greet], hooks=hooks)) as runtime:
        runtime.run(Session.from_user("hi"), on_request=lambda request: Decision(False, reason="too loud"))
    assert told == [("deny", "too loud")]


def test_the_model_is_told_json_of_what_hooks_left() -> None:
    """The call in the session stays as the model wrote it: the change is the hook's, the message the model's."""
    session = Session.from_user("hi")
    hooks = {"pre_tool_use": [lambda given: HookResult(updated_input={"name": "Eve"})]}
    with Runtime(Agent("a", one(), tools=[GREET], hooks=hooks)) as runtime:
        runtime.run(session)
    assert json.loads(session.messages[1].tool_calls[0].arguments) == {"name": "Ann"}
    assert session.messages[2].content == "hello Eve"


# -- copies, and answers in other words --------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["pre_tool_use", "permission_request", "on_user_input", "on_tool_approval_decision"])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_hook_does_to_its_input_reaches_no_call(point: str, is_async: bool) -> None:
    """It gets a copy: it may take secrets out for its log."""
    got: list[Any] = []

    @tool
    def pay(amount: int, to: list[str]) -> str:
        got.append((amount, to))
        return "paid"

    def audit(given: HookInput) -> None:
        assert isinstance(given.tool_input, dict)
        given.tool_input["amount"] = "<hidden>"
        given.tool_input["to"].clear()

    async def audit_async(given: HookInput) -> None:
        audit(given)

    model = Scripted([call("pay", '{"amount": 5, "to": ["Ann"]}')], say("done"))
    agent = Agent("a", model, tools=[pay], hooks={point: [audit_async if is_async else audit]})
    with Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                assert event.arguments == {"amount": 5, "to": ["Ann"]}
                stream.approve(event)
    assert got == [(5, ["Ann"])]


def test_a_hook_cannot_change_its_answer_afterwards() -> None:
    answer = {"name": ["Bob"]}
    people = Tool("greet", lambda name: f"hello {name[0]}", read_only=True)

    def change(given: HookInput) -> HookResult:
        return HookResult(updated_input=answer)

    def later(given: HookInput) -> None:
        answer["name"][0] = "Eve"

    events = run({"pre_tool_use": [change], "on_tool_approval_decision": [later]}, None, people)
    assert responses(events) == [("hello Bob", False)]


#: What a command prints, whether the call is made, and what the model reads where it is not.
ANSWERS: list[tuple[str, bool, str]] = [
    ('{"block": true, "reason": "no"}', False, "no"),
    ('{"block": false}', True, ""),
    ("", True, ""),
    ("all is well", True, ""),
    ("[INFO] looked at it", True, ""),
    # a log around the answer
    ('checking...\n{"block": true, "reason": "no"}', False, "no"),
    ('checking...\n{\n  "block": true,\n  "reason": "no"\n}\n', False, "no"),
    ('{"block": true, "reason": "no"}\nchecked.', False, "no"),
    ('\ufeff{"block": true, "reason": "no"}', False, "no"),
    # docker-agent
    ('{"decision": "block", "reason": "no"}', False, "no"),
    ('{"decision": "approve"}', True, ""),
    ('{"continue": false, "stop_reason": "no"}', False, "no"),
    ('{"continue": true, "system_message": "hm", "suppress_output": true}', True, ""),
    (
        '{"hook_specific_output": {"hook_event_name": "pre_tool_use", "permission_decision": "deny",'
        ' "permission_decision_reason": "no"}}',
        False,
        "no",
    ),
    # Claude Code
    ('{"continue": false, "stopReason": "no"}', False, "no"),
    (
        '{"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny",'
        ' "permissionDecisionReason": "no"}}',
        False,
        "no",
    ),
    ('{"hookSpecificOutput": {"permissionDecision": "allow"}}', True, ""),
    # what cannot be read
    ('{"blcok": true}', False, "there is no field 'blcok'"),
    ('{"block": "yes"}', False, "block must be bool, not 'yes'"),
    ('[{"block": true}]', False, "it is a list"),
    ('{"block": true', False, "it is not JSON"),
    ('{"decision": "maybe"}', False, "there is no decision 'maybe'"),
    ('{"hookSpecificOutput": {"permissionDecision": "ask"}}', False, "there is no decision 'ask'"),
    ('{"hookSpecificOutput": [1]}', False, "hook_specific_output is no object"),
    ('{"reason": ' + "[" * 5000, False, "it is not JSON"),
    ("{\n" * 200, False, "too many objects"),
]


@pytest.mark.parametrize(("said", "made", "reason"), ANSWERS, ids=[each[0][:40] for each in ANSWERS])
def test_what_a_guard_answers_is_understood_or_blocks(said: str, made: bool, reason: str, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text(said)
    [(response, is_error)] = responses(run({"pre_tool_use": [["cat", str(answer)]]}))
    assert is_error is not made
    assert reason in response


def test_what_a_command_of_another_program_changes_and_allows(tmp_path: Path) -> None:
    """Claude Code's words for the two."""
    change, allow = tmp_path / "change", tmp_path / "allow"
    change.write_text('{"hookSpecificOutput": {"permissionDecision": "allow", "updatedInput": {"name": "Bob"}}}')
    allow.write_text('{"hookSpecificOutput": {"decision": {"behavior": "allow"}}}')
    hooks: dict[str, list[Any]] = {
        "pre_tool_use": [["cat", str(change)]],
        "permission_request": [["cat", str(allow)]],
    }
    assert responses(run(hooks, None, tool(greet), interactive=False)) == [("hello Bob", False)]
    allow.write_text('{"hookSpecificOutput": {"decision": {"behavior": "deny", "message": "not now"}}}')
    assert responses(run(hooks, None, tool(greet))) == [("this call was rejected: not now", True)]


@pytest.mark.skipif(os.name != "posix", reason="there is no `yes`")
def test_a_command_that_writes_without_end_is_stopped() -> None:
    [(response, is_error)] = responses(run({"pre_tool_use": [["yes"]]}))
    assert is_error
    assert "it writes more than 1,000,000 bytes" in response


def test_a_command_that_does_not_read_its_input_is_no_failure() -> None:
    """Or only a part of it: a pipe holds less than the arguments are."""
    model = one(json.dumps({"name": "x" * 500_000}))
    events = run({"pre_tool_use": ["head -c 10 >/dev/null; exit 0"]}, model)
    assert responses(events)[0][0].startswith("hello x")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    events = run({"pre_tool_use": [r"printf '\377no' >&2; exit 2"]})
    assert responses(events) == [("this call was rejected: \ufffdno", True)]
