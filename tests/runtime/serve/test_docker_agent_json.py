"""Every event in docker-agent's JSON, decoded as its API clients do, by the types and tags of its structs in Go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from runtime import Image, Message, events
from runtime.events import Event
from runtime.serve._docker_agent import docker_agent_json
from runtime.session import ToolCall

# The fields of docker-agent's structs: "string", "int", "float", "bool", "any", "time", [list of], {struct}, and with
# "map " a map of those. "?" is `omitempty`: such a field may be missing; any other is always sent.
CALL = {"id?": "string", "type": "string", "function": {"name?": "string", "arguments?": "string"}}
HINTS = {
    "title?": "string", "readOnlyHint?": "bool", "destructiveHint?": "bool", "idempotentHint?": "bool",
    "openWorldHint?": "bool",
}  # fmt: skip
TOOL = {
    "name": "string", "category": "string", "description?": "string", "parameters": "any", "annotations": HINTS,
    "outputSchema": "any",
}  # fmt: skip
MEDIA = {"data": "string", "mimeType": "string"}
RESULT = {
    "output": "string", "isError?": "bool", "meta?": "any", "images?": [MEDIA], "audios?": [MEDIA],
    "structuredContent?": "any",
}  # fmt: skip
LAST = {
    "input_tokens": "int", "output_tokens": "int", "cached_input_tokens": "int", "cached_write_tokens": "int",
    "reasoning_tokens?": "int", "Cost": "float", "Model": "string", "finish_reason?": "string",
}  # fmt: skip
USAGE = {
    "input_tokens": "int", "output_tokens": "int", "context_length": "int", "context_limit": "int", "cost": "float",
    "last_message?": LAST,
}  # fmt: skip
PART = {"type?": "string", "text?": "string", "image_url?": {"url?": "string", "detail?": "string"}}
AGENT = {
    "name": "string", "description": "string", "provider": "string", "model": "string", "thinking?": "string",
    "commands?": "any",
}  # fmt: skip

#: The fields of each type, beside those that all have.
FIELDS: dict[str, dict[str, Any]] = {
    "stream_started": {"session_id?": "string"},
    "stream_stopped": {"session_id?": "string", "reason?": "string"},
    "user_message": {
        "message": "string", "multi_content?": [PART], "session_id": "string", "session_position": "int"
    },
    "agent_choice": {"content": "string", "session_id?": "string"},
    "agent_choice_reasoning": {"content": "string", "session_id?": "string"},
    "tool_call": {"tool_call": CALL, "tool_definition": TOOL},
    "partial_tool_call": {"tool_call": CALL, "tool_definition?": TOOL},
    "tool_call_confirmation": {"tool_call": CALL, "tool_definition": TOOL, "metadata?": "map string"},
    "tool_call_output": {"tool_call_id": "string", "tool_definition": TOOL, "output": "string"},
    "tool_call_response": {
        "tool_call_id": "string", "tool_definition": TOOL, "response": "string", "result?": RESULT,
        "tool_call?": CALL,  # of before May 2026
    },
    "elicitation_request": {
        "message": "string", "mode?": "string", "schema?": "any", "url?": "string", "elicitation_id?": "string",
        "meta?": "map any",
    },
    "authorization_event": {"confirmation": "string"},
    "error": {"error": "string", "code?": "string", "session_id?": "string"},
    "warning": {"message": "string"},
    "session_title": {"title": "string", "session_id": "string"},
    "token_usage": {"session_id": "string", "usage": USAGE},
    "model_fallback": {
        "failed_model": "string", "fallback_model": "string", "reason": "string", "attempt": "int",
        "max_attempts": "int",
    },
    "max_iterations_reached": {"max_iterations": "int"},
    "budget_exceeded": {
        "budget": "string", "limit": "string", "used": "float", "max": "float", "config_path": "string",
        "stop_message": "string",
    },
    "agent_info": {
        "agent_name": "string", "model": "string", "description": "string", "welcome_message?": "string",
        "context_limit?": "int",
    },
    "team_info": {"available_agents": [AGENT], "current_agent": "string"},
    "toolset_info": {"available_tools": "int", "loading": "bool"},
    "agent_switching": {"switching": "bool", "from_agent?": "string", "to_agent?": "string"},
    "sub_session_completed": {"parent_session_id": "string", "sub_session": "any"},
    "hook_started": {"hook_event": "string", "session_id": "string"},
    "hook_finished": {
        "hook_event": "string", "session_id": "string", "duration_ms": "int", "allowed": "bool", "error?": "string",
        "message?": "string",
    },
    "hook_blocked": {"tool_call": CALL, "tool_definition": TOOL, "message": "string"},
    "message_added": {"session_id": "string"},
    "session_summary": {"session_id": "string", "summary": "string", "first_kept_entry?": "int"},
    "session_compaction": {"session_id": "string", "status": "string", "outcome?": "string"},
    "runtime_paused": {"session_id?": "string"},
    "mcp_init_started": {},
    "mcp_init_finished": {},
}  # fmt: skip
COMMON = {"type": "string", "agent_name?": "string", "timestamp": "time"}

RAN = ToolCall("call-1", "shell", '{"cmd": "ls"}')
EVENTS: list[Event] = [
    events.StreamStarted(),
    events.StreamStopped("budget_exceeded"),
    events.UserMessage("Hello"),
    events.AgentChoice("Hi"),
    events.AgentChoiceReasoning("A greeting."),
    events.PartialToolCall(ToolCall("", "she", '{"cm')),
    events.ToolCallStarted(RAN),
    events.ToolCallConfirmation(RAN),
    events.ToolCallConfirmation(RAN, "ask-1", {"cmd": "ls", "at": {"deep": [1, None]}}, True, "files", True),
    events.ToolCallOutput(RAN),
    events.ToolCallOutput(RAN, "half", 0.5, 1.0),
    events.ToolCallResponse(RAN, "a b"),
    events.ToolCallResponse(RAN, "a picture", True, (Image(b"PNG", "image/png"), Image(b"GIF", "image/gif"))),
    events.HookBlocked("pre_tool_use", "not today", RAN),
    events.HookBlocked("stop", "not yet"),
    events.HookStarted("stop", "check.sh"),
    events.HookFinished("stop", "check.sh"),
    events.HookFinished("stop", "check.sh", "no such file"),
    events.ElicitationRequest("ask-2", "Which?", schema={"type": "object", "properties": {"a": {"enum": ["b"]}}}),
    events.ElicitationRequest("ask-3", "Sign in", "url", url="https://example.org/"),
    events.AuthorizationEvent("files", "required", "https://example.org/"),
    events.AuthorizationEvent("files", "granted"),
    events.AuthorizationEvent("files", "failed"),
    events.Error("it broke", "model_error"),
    events.Warning("careful"),
    events.TokenUsage("unheard-of", 100, 10, 300, 30),
    events.TokenUsage("gpt-5", 100, 10, 300, 30, 60, 5, 0.25, 1),
    events.ModelFallback("big", "small", "overloaded"),
    events.MaxIterationsReached(20),
    events.MaxIterationsReached(20, "ask-4"),
    events.BudgetExceeded("tokens", 1000, 1001),
    events.BudgetExceeded("cost", 0.5, 0.625),
    events.AgentInfo("gpt-5", "Does it all"),
    events.TeamInfo(("a", "b")),
    events.ToolsetInfo(("shell", "look")),
    events.AgentSwitching("a", "b"),
    events.SubSessionCompleted("below", "error"),
    events.MessageAdded(Message("user", "Hello")),
    events.SessionTitle("Greetings"),
    events.SessionSummary("They greet."),
    events.SessionCompaction("started"),
    events.SessionCompaction("completed"),
    events.SessionCompaction("failed"),
    events.McpInitStarted("files"),
    events.McpInitFinished("files"),
    events.Paused(),
]


def decoded(value: Any, kind: Any, where: str = "") -> Any:
    """What `encoding/json` makes of ``value``; raises `TypeError` where it returns an error. The names of fields match
    in any case, null leaves a field as it is, and what is not known is left out.
    """
    if value is None:
        return None
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise TypeError(f"{where}: {value!r} into a struct")
        tags = {tag.rstrip("?").casefold(): (tag, inside) for tag, inside in kind.items()}
        hit = {name: tags[name.casefold()] for name in value if name.casefold() in tags}
        if missing := {tag for tag in kind if not tag.endswith("?")} - {tag for tag, _ in hit.values()}:
            raise TypeError(f"{where}: {missing} is always sent")
        return {tag.rstrip("?"): decoded(value[name], inside, f"{where}.{name}") for name, (tag, inside) in hit.items()}
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise TypeError(f"{where}: {value!r} into a list")
        return [decoded(each, kind[0], where) for each in value]
    if kind.startswith("map "):
        if not isinstance(value, dict):
            raise TypeError(f"{where}: {value!r} into a map")
        return {name: decoded(each, kind[4:], where) for name, each in value.items()}
    if kind == "time":
        return datetime.fromisoformat(value)
    wanted = {"string": str, "int": int, "float": (int, float), "bool": bool, "any": object}[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind in ("int", "float")):
        raise TypeError(f"{where}: {value!r} into a {kind}")
    return value


#: Its clients look a type up in a table, and go on with the next event where it is not there.
OURS = {"request_settled"}


def of(event: Event) -> Mapping[str, Any]:
    """The event, as a client of docker-agent has it."""
    sent = json.loads(json.dumps(docker_agent_json(event), allow_nan=False))
    found: Mapping[str, Any] = decoded(sent, {**COMMON, **FIELDS[sent["type"]]}, sent["type"])
    return found


def test_every_type_has_an_example() -> None:
    assert {event.type for event in EVENTS} | OURS == set(events._TYPES)
    assert {docker_agent_json(event)["type"] for event in EVENTS} == set(FIELDS)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_docker_agents_clients_decode_it(event: Event) -> None:
    moment = datetime(2026, 11, 28, 11, 30, tzinfo=UTC)
    given = Event.from_dict({**event.to_dict(), "agent_name": "root", "session_id": "s", "timestamp": moment})
    found = of(given)
    assert found["agent_name"] == "root"
    assert found["timestamp"] == moment
    if "session_id" in {tag.rstrip("?") for tag in FIELDS[found["type"]]}:
        assert found["session_id"] == "s"


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        ({"a": 1}, {"a": "string"}),
        ({"a": 1.5}, {"a": "int"}),
        ({"a": True}, {"a": "int"}),
        ({"A": 1}, {"a": "string"}),
        ({"a": "x"}, {"a": ["string"]}),
        ({"a": [1]}, {"a": ["string"]}),
        ({"a": []}, {"a": {}}),
        ({"a": {"b": 1}}, {"a": "map string"}),
        ({}, {"a": "string"}),
    ],
)
def test_the_decoder_of_these_tests_refuses_what_go_refuses(sent: Any, kind: Any) -> None:
    with pytest.raises(TypeError):
        decoded(sent, kind)


def test_our_own_form_is_refused() -> None:
    """So the tests above can fail: docker-agent's clients cannot read what `to_dict` makes of these."""
    refused = set()
    for event in EVENTS:
        name = "runtime_paused" if event.type == "paused" else event.type
        try:
            decoded(json.loads(json.dumps(event.to_dict())), {**COMMON, **FIELDS[name]})
        except TypeError:
            refused.add(event.type)
    assert refused >= {"tool_call", "tool_call_confirmation", "tool_call_output", "tool_call_response", "token_usage"}
    assert len(refused) >= 13


def test_a_tool_call_is_shown_with_its_name_and_arguments() -> None:
    for event in (events.ToolCallStarted(RAN), events.PartialToolCall(RAN), events.ToolCallConfirmation(RAN)):
        found = of(event)
        wanted = {"id": "call-1", "type": "function", "function": {"name": "shell", "arguments": '{"cmd": "ls"}'}}
        assert found["tool_call"] == wanted
        assert found["tool_definition"]["name"] == "shell"


def test_a_confirmation_says_what_the_tool_declares() -> None:
    event = events.ToolCallConfirmation(RAN, "ask-1", {"cmd": "ls"}, destructive=True, server="files")
    definition = of(event)["tool_definition"]
    assert definition["annotations"] == {"destructiveHint": True, "openWorldHint": False}
    assert definition["category"] == "mcp"
    assert docker_agent_json(event)["confirmation_id"] == "ask-1"  # what an answer needs, beside docker-agent's fields
    assert docker_agent_json(event)["arguments"] == {"cmd": "ls"}


def test_a_result_has_its_error_and_its_images() -> None:
    found = of(events.ToolCallResponse(RAN, "no", True, (Image(b"PNG", "image/png"),)))
    wanted = {"output": "no", "isError": True, "images": [{"data": "UE5H", "mimeType": "image/png"}]}
    assert (found["tool_call_id"], found["response"], found["result"]) == ("call-1", "no", wanted)


def test_the_usage_is_that_of_the_last_call_and_the_cost_the_total() -> None:
    found = of(events.TokenUsage("gpt-5", 100, 10, 300, 30, 60, 5, 0.25, 1.5))["usage"]
    assert (found["input_tokens"], found["output_tokens"], found["context_length"]) == (100, 10, 110)
    assert found["context_limit"] > 100_000
    assert found["cost"] == 1.5
    last = found["last_message"]
    assert (last["input_tokens"], last["cached_input_tokens"], last["Cost"], last["Model"]) == (40, 60, 0.25, "gpt-5")
    assert of(events.TokenUsage("unheard-of", 1, 1, 1, 1))["usage"]["context_limit"] == 0


def test_a_nested_session_is_named_beside_its_parent() -> None:
    found = of(events.SubSessionCompleted("below", "error", session_id="above"))
    assert (found["parent_session_id"], found["sub_session"]["id"]) == ("above", "below")


def test_a_question_says_which_call_asks_beside_docker_agents_fields() -> None:
    event = events.ElicitationRequest("ask-2", "Which?", tool_name="order", tool_call_id="call-1")
    assert docker_agent_json(event)["tool_call_id"] == "call-1"
    assert "tool_call_id" not in of(event)
    old = event.to_dict()
    del old["tool_call_id"]  # as an earlier version has written it
    assert Event.from_dict(old) == events.ElicitationRequest(
        "ask-2", "Which?", tool_name="order", timestamp=event.timestamp
    )


def test_what_happened_is_said_in_docker_agents_words() -> None:
    assert of(events.Paused(session_id="s"))["type"] == "runtime_paused"
    assert of(events.SessionCompaction("failed"))["outcome"] == "failed"
    assert of(events.SessionCompaction("failed"))["status"] == "completed"
    assert of(events.AuthorizationEvent("files", "granted"))["confirmation"] == "accept"
    assert of(events.AuthorizationEvent("files", "failed"))["confirmation"] == "decline"
    assert of(events.ModelFallback("big", "small", "busy"))["failed_model"] == "big"
    assert of(events.HookFinished("stop", "check", "no such file"))["allowed"] is False
    assert of(events.HookBlocked("stop", "not yet"))["message"] == "not yet"
    assert of(events.ToolsetInfo(("a", "b")))["available_tools"] == 2
    assert [each["name"] for each in of(events.TeamInfo(("a", "b")))["available_agents"]] == ["a", "b"]
    exceeded = of(events.BudgetExceeded("cost", 0.5, 0.625))
    assert (exceeded["limit"], exceeded["max"], exceeded["used"]) == ("cost", 0.5, 0.625)
