"""The provider for Anthropic's messages, against a server that replays their streaming protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Literal, TypedDict

import pytest

from channels import CancelToken
from channels.aio import LoopThread
from runtime import (
    Agent,
    FinishDelta,
    Image,
    Message,
    ModelError,
    NativeDelta,
    OutputSchema,
    ReasoningDelta,
    Runtime,
    Session,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
    tool,
)
from runtime.agent._output import Output
from runtime.events import TokenUsage
from runtime.session import Native
from support.replay import Answer, Hangup, Replay, bytewise, failure
from support.scripted import Stall
from support.waiting import in_time

pytest.importorskip("anthropic", reason="the extra anthropic is not installed")

from runtime.models.anthropic import AnthropicModel

KEY = "sk-ant-test-0123456789abcdef"


@pytest.fixture
def model(server: Replay) -> Iterator[AnthropicModel]:
    model = AnthropicModel("claude-x", base_url=server.url, api_key=KEY)
    yield model
    model.close()
    assert server.wait_for(0)


def event(type: str, **fields: Any) -> bytes:
    """One event of a stream."""
    data = json.dumps({"type": type, **fields}, ensure_ascii=False)
    return f"event: {type}\ndata: {data}\n\n".encode()


def block(index: int, start: Any, *changes: Any) -> list[bytes]:
    """A content block, whole."""
    return [
        event("content_block_start", index=index, content_block=start),
        *[event("content_block_delta", index=index, delta=delta) for delta in changes],
        event("content_block_stop", index=index),
    ]


def text(index: int, *pieces: str) -> list[bytes]:
    return block(index, {"type": "text", "text": ""}, *[{"type": "text_delta", "text": piece} for piece in pieces])


def tool_use(index: int, id: str, *fragments: str) -> list[bytes]:
    start = {"type": "tool_use", "id": id, "name": "add", "input": {}}
    return block(index, start, *[{"type": "input_json_delta", "partial_json": piece} for piece in fragments])


def end(reason: str = "end_turn", **delta: Any) -> list[bytes]:
    stop = {"stop_reason": reason, "stop_sequence": None, **delta}
    return [event("message_delta", delta=stop, usage={"output_tokens": 15}), event("message_stop")]


START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 1000,
            "output_tokens": 1,
        },
    },
)
PING = event("ping")
THINKING = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Let me "},
    {"type": "thinking_delta", "thinking": "add."},
    {"type": "signature_delta", "signature": "EqQBCg=="},
)
HELLO = [START, PING, *text(0, "Hel", "lo")]


def deltas(model: AnthropicModel, *messages: Message, tools: Any = (), output: Any = None) -> list[Any]:
    """All that it says."""
    asked = messages or [Message("user", "Hi")]
    with LoopThread() as loop:
        return [*loop.iterate(lambda: model.stream(asked, tools, cancel=CancelToken(), output=output))]


def fails(model: AnthropicModel, *messages: Message) -> ModelError:
    """The error it ends with."""
    with pytest.raises(ModelError) as caught:
        deltas(model, *messages)
    assert KEY not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # which would show what the provider said
    return caught.value


# -- what it says ------------------------------------------------------------------------------------------------------


def test_text_and_usage_come_as_they_are_sent(server, model):
    server.answer(Answer(*HELLO, *end()))
    assert deltas(model) == [
        UsageDelta(1105, 1, 1000, 100),
        TextDelta("Hel"),
        TextDelta("lo"),
        UsageDelta(0, 15),
        FinishDelta("stop"),
    ]
    request = server.requests[0]
    assert request.path == "/v1/messages"
    assert KEY in request.headers["authorization"]
    assert request.body == {
        "model": "claude-x",
        "max_tokens": 16384,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "stream": True,
    }


def test_bytes_may_be_split_anywhere(server, model):
    words = "Zoë zahlt 12 € für 日本 🍣"
    server.answer(Answer(*bytewise(START, *text(0, words), PING, *end())))
    assert TextDelta(words) in deltas(model)


def test_tool_calls_come_in_fragments(server, model):
    calls = [*tool_use(1, "toolu_1", "", '{"a": ', "1}"), *tool_use(2, "toolu_2")]
    server.answer(Answer(START, *text(0, "Sure."), *calls, *end("tool_use")))
    assert [d for d in deltas(model) if isinstance(d, (ToolCallDelta, FinishDelta))] == [
        ToolCallDelta(1, "toolu_1", "add"),
        ToolCallDelta(1),
        ToolCallDelta(1, arguments='{"a": '),
        ToolCallDelta(1, arguments="1}"),
        ToolCallDelta(2, "toolu_2", "add"),
        FinishDelta("tool_calls"),
    ]


def test_the_input_of_a_call_may_come_with_its_first_event(server, model):
    """At servers that speak like Anthropic's."""
    whole = block(1, {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}})
    server.answer(Answer(START, *whole, *end("tool_use")))
    assert [d for d in deltas(model) if isinstance(d, ToolCallDelta)] == [ToolCallDelta(1, "t", "add", '{"a": 1}')]


def test_a_server_need_not_count(server, model):
    start, stop = event("message_start", message={}), event("message_delta", delta={"stop_reason": "end_turn"})
    server.answer(Answer(start, *text(0, "x"), stop, event("message_stop")))
    assert deltas(model) == [TextDelta("x"), FinishDelta("stop")]


def test_blocks_need_not_begin_and_what_should_be_text_may_be_something_else(server, model):
    odd = [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": 5}),
        *block(1, {"type": "tool_use", "id": 7, "name": 5}, {"type": "input_json_delta", "partial_json": {}}),
        event("message_delta", delta={"stop_reason": ["end_turn"]}, usage={"output_tokens": "2"}),
    ]
    server.answer(Answer(START, *odd, event("message_stop")))
    said = [delta for delta in deltas(model) if not isinstance(delta, UsageDelta)]
    calls = [ToolCallDelta(1, "7", "", ""), ToolCallDelta(1, arguments="{}")]
    assert said == [TextDelta("x"), TextDelta(""), *calls, FinishDelta("stop")]


def test_an_event_without_end_is_given_up(server, model):
    """The library would keep all of it, and look at all of it again with each piece."""
    server.answer(Answer(START, b"data: " + b"x" * 20_000_000))
    error = fails(model)
    assert (error.code, "an event of more than 16 MB" in str(error)) == ("bad_response", True)


def test_thoughts_go_back_signed_and_in_their_order(server, model):
    redacted = block(1, {"type": "redacted_thinking", "data": "c2VjcmV0"})
    again = block(
        3, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "signature_delta", "signature": "s2"}
    )
    calls = [*tool_use(4, "toolu_1", '{"a": 1, "b": 2}'), *tool_use(5, "toolu_2", '{"a": 3, "b": 4}')]
    server.answer(
        Answer(START, *THINKING, *redacted, *text(2, "Sure."), *again, *calls, *end("tool_use")),
        Answer(*HELLO, *end()),
    )

    @tool(read_only=True)
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    session = Session.from_user("1 and 2, 3 and 4?")
    with Runtime(Agent("a", model, instructions="You add.", tools=[add])) as runtime:
        events = list(runtime.run_stream(session))
    assert events[-1].reason == "normal"
    first, second = server.requests
    assert first.body["system"] == second.body["system"] == "You add."
    assert first.body["tools"][0]["input_schema"]["required"] == ["a", "b"]
    asked, called, answered = second.body["messages"]
    assert asked["role"] == "user"
    assert called == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Let me add.", "signature": "EqQBCg=="},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "text", "text": "Sure."},
            {"type": "thinking", "thinking": "", "signature": "s2"},
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": 2}},
            {"type": "tool_use", "id": "toolu_2", "name": "add", "input": {"a": 3, "b": 4}},
        ],
    }
    assert answered == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": f"toolu_{n}", "content": [{"type": "text", "text": said}]}
            for n, said in ((1, "3"), (2, "7"))
        ],
    }
    assert Message.from_dict(json.loads(json.dumps(session.messages[1].to_dict()))) == session.messages[1]


def test_thoughts_are_shown_as_they_come(server, model):
    server.answer(Answer(START, *THINKING, *text(1, "3"), *end()))
    said = deltas(model)
    assert [d.text for d in said if isinstance(d, ReasoningDelta)] == ["Let me ", "add."]
    assert said[-2].provider == "anthropic"


ASKED = Message("user", "Hi")


def thoughtful(server: Replay, model: AnthropicModel, system: str = "") -> Message:
    """A message with thoughts in it, as the answer to `ASKED`."""
    server.answer(Answer(START, *THINKING, *text(1, "Yes"), *end()))
    [native] = [d for d in deltas(model, Message("system", system), ASKED) if isinstance(d, NativeDelta)]
    server.requests.clear()
    return Message("assistant", "Yes", native=Native(native.provider, native.content))


def sent_back(server: Replay, model: AnthropicModel, *messages: Message) -> list[str]:
    """The kinds of blocks of the second message."""
    server.answer(Answer(*HELLO, *end()))
    deltas(model, *messages, Message("user", "Go on"))
    return [block["type"] for block in server.requests[0].body["messages"][1]["content"]]


def test_thoughts_go_back_after_the_same(server, model):
    assert sent_back(server, model, ASKED, thoughtful(server, model)) == ["thinking", "text"]


def test_thoughts_are_left_out_where_what_stands_before_them_has_changed(server, model):
    """Newer models refuse the whole request."""
    assert sent_back(server, model, Message("user", "Hello"), thoughtful(server, model)) == ["text"]
    server.requests.clear()
    asked = [Message("system", "Two"), ASKED]
    assert sent_back(server, model, *asked, thoughtful(server, model, "One")) == ["text"]
    server.requests.clear()
    assert sent_back(server, model, *asked, thoughtful(server, model, "Two")) == ["thinking", "text"]


def test_models_told_how_much_to_think_get_their_thoughts_back_in_any_case(server):
    """They refuse a request without."""
    model = AnthropicModel("m", base_url=server.url, thinking={"type": "enabled", "budget_tokens": 1024})
    assert sent_back(server, model, Message("user", "Hello"), thoughtful(server, model)) == ["thinking", "text"]


def test_a_message_that_was_changed_or_is_of_another_provider_goes_as_plain_text(server, model):
    whole = thoughtful(server, model)
    for message in (
        replace(whole, content="No"),
        replace(whole, tool_calls=(ToolCall("a", "add"),)),
        replace(whole, native=Native("openai/m", {"reasoning_content": "x"})),
    ):
        server.requests.clear()
        assert "thinking" not in sent_back(server, model, ASKED, message)


def test_what_a_session_holds_is_brought_into_turns(server, model):
    server.answer(Answer(*HELLO, *end()))
    deltas(
        model,
        Message("system", "One."),
        Message("user", "Hi"),
        Message("assistant", "", (ToolCall("functions.add:0", "add", '{"a": '), ToolCall("b", "add", "[1]"))),
        Message("tool", "broken", tool_call_id="functions.add:0", is_error=True),
        Message("tool", "", tool_call_id="b"),
        Message("user", "Well?"),
        Message("system", "Two."),
    )
    body = server.requests[0].body
    assert body["system"] == "One.\n\nTwo."
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "functions_add_0_2aab2b9e", "name": "add", "input": {}},
                {"type": "tool_use", "id": "b", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "functions_add_0_2aab2b9e",
                    "content": [{"type": "text", "text": "broken"}],
                    "is_error": True,
                },
                {"type": "tool_result", "tool_use_id": "b", "content": []},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]


def test_images_of_the_user_and_of_tools(server, model):
    server.answer(Answer(*HELLO, *end()))
    session = Session.from_user("What is this?", images=[Image(b"one", "image/jpeg")])
    calls = Message("assistant", "", (ToolCall("a", "look"),))
    deltas(model, *session.messages, calls, Message("tool", "[image]", tool_call_id="a", images=(Image(b"two"),)))
    asked, _, answered = server.requests[0].body["messages"]
    assert asked["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "b25l"}},
    ]
    assert answered["content"][0]["content"] == [
        {"type": "text", "text": "[image]"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "dHdv"}},
    ]


def test_options_and_settings_are_sent(server):
    options = {"temperature": 0.5, "cache_control": {"type": "ephemeral"}}
    model = AnthropicModel("m", base_url=server.url, max_tokens=9, thinking={"type": "adaptive"}, options=options)
    server.answer(Answer(*HELLO, *end()))
    deltas(model, tools=[ToolDefinition("t", "Does it.", {"type": "object"})])
    body = server.requests[0].body
    assert (body["max_tokens"], body["thinking"]) == (9, {"type": "adaptive"})
    assert {name: body[name] for name in options} == options
    assert body["tools"] == [{"name": "t", "description": "Does it.", "input_schema": {"type": "object"}}]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_why_it_stopped(server, model, reason, finish):
    server.answer(Answer(*HELLO, *end(reason)))
    assert deltas(model)[-1] == FinishDelta(finish)


def test_what_is_not_known_is_passed_over(server, model):
    odd = [
        event("something_new", index=0),
        *block(0, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "odd_delta"}),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{}"}),
    ]
    server.answer(Answer(START, *odd, *text(1, "x"), *end()))
    assert [d for d in deltas(model) if not isinstance(d, UsageDelta)] == [TextDelta("x"), FinishDelta("stop")]


# -- what goes wrong ---------------------------------------------------------------------------------------------------

FAILURES = {
    "wrong key": (401, "authentication_error", f"invalid key {KEY}", "unauthorized"),
    "not allowed": (403, "permission_error", "no", "unauthorized"),
    "billing": (402, "billing_error", "no", "no_credit"),
    "credit": (400, "invalid_request_error", "Your credit balance is too low", "no_credit"),
    "wrong model": (404, "not_found_error", "model: claude-x", "unknown_model"),
    "too long": (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", "context_overflow"),
    "too large": (413, "request_too_large", "Request exceeds the maximum size", "context_overflow"),
    "bad request": (400, "invalid_request_error", "messages.0: no such field", "bad_request"),
    "rate": (429, "rate_limit_error", "slow down", "rate_limited"),
    "broken": (500, "api_error", "oops", "server_error"),
    "timeout": (504, "timeout_error", "too slow", "server_error"),
    "overloaded": (529, "overloaded_error", "Overloaded", "overloaded"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_says_what_to_do(server, model, name):
    status, kind, said, code = FAILURES[name]
    server.answer(failure(status, {"type": "error", "error": {"type": kind, "message": said}}, retry_after="3"))
    error = fails(model)
    assert error.code == code
    assert error.retryable == (code in ("rate_limited", "server_error", "overloaded"))
    assert error.retry_after == 3
    assert f"({status} {said.replace(KEY, '***')})" in str(error)
    assert len(server.requests) == 1  # the library does not retry behind our back


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded_error", "overloaded"),
        ("api_error", "server_error"),
        ("rate_limit_error", "rate_limited"),
        ("news", "server_error"),
    ],
)
def test_an_error_in_the_middle_of_a_stream(server, model, kind, code):
    server.answer(Answer(*HELLO, event("error", error={"type": kind, "message": "Sorry"})))
    error = fails(model)
    assert (error.code, error.retryable) == (code, True)
    assert "Sorry" in str(error)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("before", [[], HELLO])
def test_a_connection_that_breaks(server, model, before, reset):
    server.answer(Answer(*before, Hangup(reset=reset)))
    error = fails(model)
    assert (error.code, error.retryable) == ("unreachable", True)


@pytest.mark.parametrize("so_far", [HELLO, [*HELLO, end()[0]]])
def test_a_stream_without_its_last_event_is_broken(server, model, so_far):
    server.answer(Answer(*so_far))
    assert fails(model).code == "unreachable"


@pytest.mark.parametrize(
    "body",
    [
        b"event: message_start\ndata: {oops\n\n",
        b"event: message_start\ndata: \xff\xfe\n\n",
        event("content_block_delta", index=7, delta=None),
    ],
)
def test_what_is_not_the_protocol(server, model, body):
    server.answer(Answer(body))
    assert fails(model).code == "bad_response"


def test_nobody_listens():
    with Replay() as gone:
        url = gone.url
    error = fails(AnthropicModel("m", base_url=url, api_key=KEY))
    assert (error.code, error.retryable) == ("unreachable", True)
    assert url in str(error)


@pytest.mark.parametrize("before", [[], HELLO])
def test_a_server_that_goes_silent_is_given_up(server, before):
    with Stall() as stall:
        server.answer(Answer(*before, stall))
        error = fails(AnthropicModel("m", base_url=server.url, api_key=KEY, timeout=0.3))
    assert (error.code, error.retryable) == ("stalled", True)


def test_a_refusal_is_an_error_with_its_explanation(server, model):
    details = {"type": "refusal", "category": "cyber", "explanation": "This may harm."}
    server.answer(Answer(*HELLO, *end("refusal", stop_details=details)))
    error = fails(model)
    assert (error.code, error.retryable) == ("refused", False)
    assert "This may harm." in str(error)


@pytest.mark.parametrize("configured", [False, True])
def test_no_key(monkeypatch, tmp_path, configured):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if configured:  # and nothing there
        monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    error = fails(AnthropicModel("claude-x"))
    assert error.code == "no_key"
    assert "ANTHROPIC_API_KEY" in str(error)


def test_no_secret_in_its_repr():
    model = AnthropicModel("m", base_url="https://user:secret@example.org?key=secret", api_key=KEY)
    assert repr(model) == "<AnthropicModel 'anthropic/m' at https://example.org>"
    assert KEY not in repr(vars(model))


# -- in a stream -------------------------------------------------------------------------------------------------------


def test_usage_of_the_cache_is_reported(server, model):
    server.answer(Answer(*HELLO, *end()))
    with Runtime(Agent("a", model)) as runtime:
        [usage] = [e for e in runtime.run_stream(Session.from_user("Hi")) if isinstance(e, TokenUsage)]
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (1105, 15, 1000)


def test_partial_text_is_kept_and_marked_when_the_stream_breaks(server, model):
    server.answer(Answer(START, *THINKING, *text(1, "Hel", "lo"), *tool_use(2, "toolu_1", '{"a"'), Hangup()))
    session = Session.from_user("Hi")
    with Runtime(Agent("a", model)) as runtime:
        events = list(runtime.run_stream(session))
    assert events[-1].reason == "error"
    last = session.messages[-1]
    assert (last.content, last.finish_reason, last.tool_calls, last.native) == ("Hello", "interrupted", (), None)


@pytest.mark.parametrize("before", [[], HELLO])
def test_law_18_cancel_is_prompt_while_the_server_is_silent(model, before, cancelled_while_silent):
    assert in_time(lambda: cancelled_while_silent(model, before), 0.05)


def test_law_11_the_interpreter_exits_with_open_connections(server):
    server.answer(Answer(*HELLO, *end()))
    program = f"""
from runtime import Agent, Runtime, Session
from runtime.models.anthropic import AnthropicModel
model = AnthropicModel("m", base_url={server.url!r}, api_key="x")
print(Runtime(Agent("a", model)).run(Session.from_user("Hi")).text)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("Hello\n", "", 0)


def test_a_whole_native_reply_is_ready_for_json(server, model):
    server.answer(Answer(START, *THINKING, *end()))
    [native] = [d for d in deltas(model) if isinstance(d, NativeDelta)]
    assert json.loads(json.dumps(native.content)) == native.content


# -- structured output -------------------------------------------------------------------------------------------------


@dataclass
class Seat:
    row: int
    window: bool = False


@dataclass
class Booking:
    name: str
    day: date
    seats: list[Seat]
    kind: Literal["one way", "return"]
    note: str | None = None


def sent_for(server: Replay, model: AnthropicModel, wanted: Any) -> Any:
    """What is sent as ``output_config`` where the output is to be ``wanted``."""
    server.answer(Answer(*HELLO, *end()))
    deltas(model, output=Output(wanted).schema)
    return server.requests[-1].body.get("output_config")


def test_the_output_schema_is_sent_as_the_protocol_has_it(server, model):
    sent = sent_for(server, model, Booking)
    assert sent["format"]["type"] == "json_schema"
    schema = sent["format"]["schema"]
    assert schema["required"] == ["name", "day", "seats", "kind"]
    assert schema["properties"]["day"] == {"type": "string", "format": "date"}
    assert schema["properties"]["kind"] == {"enum": ["one way", "return"]}
    assert schema["properties"]["seats"]["items"] == {
        "type": "object",
        "properties": {"row": {"type": "integer"}, "window": {"type": "boolean"}},
        "required": ["row"],
        "additionalProperties": False,
    }


def test_models_of_pydantic_are_sent_without_what_has_no_grammar(server, model):
    """Bounds are refused by the server; references are not."""
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", row=(int, pydantic.Field(ge=1)))
    schema = sent_for(server, model, pydantic.create_model("Outer", first=(inner, ...), second=(inner, ...)))["format"]
    definition = schema["schema"]["$defs"]["Inner"]
    assert schema["schema"]["properties"]["first"] == {"$ref": "#/$defs/Inner"}
    assert "minimum" not in definition["properties"]["row"]
    assert definition["additionalProperties"] is False


class Named(TypedDict):
    words: dict[str, int]


class Loose(TypedDict):
    anything: Any


class Bare(TypedDict):
    several: list


class Exact(TypedDict):
    price: Decimal


@pytest.mark.parametrize("wanted", [list[int], Named, Loose, Bare, Exact])
def test_a_schema_that_has_no_grammar_is_not_sent(server, model, wanted):
    """The server would refuse it, or take it for another: an object with any keys for one with none."""
    assert sent_for(server, model, wanted) is None


def test_a_type_that_contains_itself_is_not_sent(server, model):
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    schema = {"type": "object", "properties": {"first": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    server.answer(Answer(*HELLO, *end()))
    deltas(model, output=OutputSchema("List", schema))
    assert "output_config" not in server.requests[0].body


@pytest.mark.parametrize("own", [{"effort": "low"}, {"format": None}])
def test_what_else_is_configured_of_the_output_stays(server, own):
    model = AnthropicModel("claude-x", base_url=server.url, api_key=KEY, options={"output_config": own})
    sent = sent_for(server, model, Seat)
    assert sent.items() >= own.items()
    assert "format" in sent
    model.close()


# -- answers that come whole -------------------------------------------------------------------------------------------


def test_an_answer_that_comes_whole_is_an_answer(server, model):
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    server.answer(Answer(json.dumps(answer).encode(), headers={"content-type": "application/json"}))
    said = deltas(model)
    assert [each.text for each in said if isinstance(each, TextDelta)] == ["Hello"]
    assert "".join(each.arguments for each in said if isinstance(each, ToolCallDelta)) == '{"a": 1}'
    assert said[-1] == FinishDelta("tool_calls")
    assert max(each.input_tokens for each in said if isinstance(each, UsageDelta)) == 3


def test_a_page_for_people_is_no_answer(server, model):
    server.answer(Answer(b"<html><body>Please log in</body></html>", headers={"content-type": "text/html"}))
    error = fails(model)
    assert (error.code, error.retryable) == ("bad_response", False)
    assert "(Please log in)" in str(error)


def test_an_error_in_a_success_is_that_error(server, model):
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    server.answer(Answer(json.dumps(error).encode(), headers={"content-type": "application/json"}))
    failed = fails(model)
    assert failed.code == "rate_limited"
    assert "slow down" in str(failed)
