"""The provider for OpenAI-compatible servers, against a server that replays what such servers send."""

from __future__ import annotations

import base64
import gc
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from runtime import (
    Agent,
    FinishDelta,
    Image,
    Message,
    ModelError,
    NativeDelta,
    OutputSchema,
    RunError,
    Runtime,
    Session,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
    tool,
)
from runtime.events import AgentChoice, AgentChoiceReasoning, Error, StreamStopped
from support.replay import Answer, Hangup, Replay, bytewise, failure
from support.scripted import Stall
from support.waiting import in_time

pytest.importorskip("openai", reason="the extra openai is not installed")

from channels import CancelToken
from channels.aio import LoopThread
from runtime.models.openai import OpenAIModel

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def model(server: Replay) -> Iterator[OpenAIModel]:
    model = OpenAIModel("m-1", base_url=f"{server.url}/v1", api_key=KEY)
    yield model
    model.close()
    assert server.wait_for(0)


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    """One chunk of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": choices, **fields}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def piece(index: int, id: str | None = None, name: str | None = None, arguments: str | None = None) -> Any:
    """A piece of a tool call."""
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
HELLO = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"})]
END = [chunk({}, "stop"), chunk(usage=USAGE), DONE]


def deltas(model: OpenAIModel, *messages: Message, tools: Any = (), **more: Any) -> list[Any]:
    """All that it says."""
    said = messages or [Message("user", "Hi")]
    with LoopThread() as loop:
        return [*loop.iterate(lambda: model.stream(said, tools, cancel=CancelToken(), **more))]


def fails(model: OpenAIModel, *messages: Message) -> ModelError:
    """The error it ends with."""
    with pytest.raises(ModelError) as caught:
        deltas(model, *messages)
    assert KEY not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # which would show what the provider said
    return caught.value


# -- what it says ------------------------------------------------------------------------------------------------------


def test_text_and_usage_come_as_they_are_sent(server, model):
    server.answer(Answer(*HELLO, *END))
    assert deltas(model) == [TextDelta("Hel"), TextDelta("lo"), UsageDelta(20, 7, 16, 0, 3), FinishDelta("stop")]
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "m-1",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_bytes_may_be_split_anywhere_and_comments_are_pings(server, model):
    text = "Zoë zahlt 12 € für 日本 🍣"
    server.answer(Answer(*bytewise(b": ping\n\n", chunk({"content": text}), b": ping\r\n\r\n", *END)))
    assert TextDelta(text) in deltas(model)


def test_tool_calls_in_fragments_and_in_parallel(server, model):
    server.answer(
        Answer(
            chunk({"tool_calls": [piece(0, "a", "add", "")]}),
            chunk({"tool_calls": [piece(0, arguments='{"a": ')]}),
            chunk({"tool_calls": [piece(1, "b", "add", '{"a"'), piece(0, arguments="1}")]}),
            chunk({"tool_calls": [piece(1, arguments=": 2}")]}),
            chunk({}, "tool_calls"),
            DONE,
        )
    )
    assert deltas(model) == [
        ToolCallDelta(0, "a", "add", ""),
        ToolCallDelta(0, "", "", '{"a": '),
        ToolCallDelta(1, "b", "add", '{"a"'),
        ToolCallDelta(0, "", "", "1}"),
        ToolCallDelta(1, "", "", ": 2}"),
        FinishDelta("tool_calls"),
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_passes_through_and_goes_back_with_its_calls(server, model, name):
    server.answer(
        Answer(
            chunk({name: "Let me "}),
            chunk({name: "add."}),
            chunk({"tool_calls": [piece(0, "a", "add", '{"a": 1, "b": 2}')]}),
            chunk({}, "tool_calls"),
            DONE,
        ),
        Answer(*HELLO, *END),
    )

    @tool(read_only=True)
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    session = Session.from_user("1 and 2?")
    with Runtime(Agent("a", model, tools=[add])) as runtime:
        events = list(runtime.run_stream(session))
    assert "".join(e.content for e in events if isinstance(e, AgentChoiceReasoning)) == "Let me add."
    _, called, result = server.requests[1].body["messages"]
    assert called[name] == "Let me add."
    assert called["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    ]
    assert result == {"role": "tool", "tool_call_id": "a", "content": "3"}
    assert server.requests[0].body["tools"][0]["function"]["name"] == "add"
    assert [m.finish_reason for m in session.messages] == [None, "tool_calls", None, "stop"]
    assert Message.from_dict(session.messages[1].to_dict()) == session.messages[1]


def test_reasoning_of_another_model_is_not_shown_to_this_one(server, model):
    server.answer(Answer(*HELLO, *END))
    other = NativeDelta("openai/other", {"reasoning_content": "secret thoughts"})
    called = Message("assistant", "", (ToolCall("a", "add"),), native=other)
    deltas(model, Message("user", "Hi"), called, Message("tool", "3", tool_call_id="a"))
    assert "secret thoughts" not in json.dumps(server.requests[0].body)


def test_arguments_that_are_no_json_go_back_as_an_empty_object(server, model):
    server.answer(Answer(*HELLO, *END))
    called = Message("assistant", "", (ToolCall("a", "add", '{"a": '),))
    deltas(model, Message("user", "Hi"), called, Message("tool", "3", tool_call_id="a"))
    assert server.requests[0].body["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


def shown(data: bytes) -> Any:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def test_images_of_the_user_and_of_tools(server, model):
    """A result holds text only in this protocol, and nothing may come between the results of a turn."""
    server.answer(Answer(*HELLO, *END))
    session = Session.from_user("What is this?", images=[Image(b"one")])
    calls = Message("assistant", "", (ToolCall("a", "look"), ToolCall("b", "look")))
    results = [Message("tool", "[image]", tool_call_id=id, images=(Image(id.encode()),)) for id in "ab"]
    deltas(model, *session.messages, calls, *results, Message("user", "Well?"))
    first, _, *rest = server.requests[0].body["messages"]
    assert first["content"] == [{"type": "text", "text": "What is this?"}, shown(b"one")]
    assert [m["role"] for m in rest] == ["tool", "tool", "user", "user"]
    assert [part for part in rest[2]["content"] if part["type"] == "image_url"] == [shown(b"a"), shown(b"b")]


def test_the_last_result_may_be_an_image(server, model):
    server.answer(Answer(*HELLO, *END))
    calls = Message("assistant", "", (ToolCall("a", "look"),))
    deltas(model, Message("user", "Hi"), calls, Message("tool", "[image]", tool_call_id="a", images=(Image(b"x"),)))
    assert server.requests[0].body["messages"][-1]["content"][-1] == shown(b"x")


def test_a_model_that_cannot_see_is_shown_no_images(server):
    server.answer(Answer(*HELLO, *END))
    deltas(OpenAIModel("m", base_url=server.url, images=False), Message("user", "Hi", images=(Image(b"x"),)))
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Hi"}]


def test_options_and_settings_are_sent(server):
    model = OpenAIModel(
        "m", base_url=server.url, temperature=0.5, max_tokens=9, options={"top_k": 3, "stream_options": None}
    )
    server.answer(Answer(*HELLO, *END))
    deltas(model)
    body = server.requests[0].body
    assert (body["temperature"], body["max_tokens"], body["top_k"], body["stream_options"]) == (0.5, 9, 3, None)


def test_a_server_may_leave_out_what_it_likes(server, model):
    odd = [b'data: {"choices": [{"delta": null}]}\n\n', b'data: {"choices": null, "usage": {"prompt_tokens": 1}}\n\n']
    bare = b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\n\n'
    server.answer(Answer(*odd, bare, DONE))
    assert deltas(model) == [UsageDelta(1), TextDelta("x"), FinishDelta("stop")]


@pytest.mark.parametrize(
    ("counts", "used"),
    [
        ({"prompt_tokens": "5", "completion_tokens": None}, UsageDelta(0)),
        ({"prompt_tokens": 5.0, "completion_tokens": 1.5}, UsageDelta(5)),
        ({"prompt_tokens": -5, "completion_tokens": float("nan")}, UsageDelta(0)),
        ({"prompt_tokens": 3, "prompt_tokens_details": [1]}, UsageDelta(3)),
    ],
)
def test_a_reply_is_not_lost_because_its_tokens_are_counted_oddly(server, model, counts, used):
    server.answer(Answer(chunk({"content": "x"}), chunk({}, "stop", usage=counts), DONE))
    assert deltas(model) == [TextDelta("x"), used, FinishDelta("stop")]


def test_what_should_be_text_and_is_not_is_nothing(server, model):
    odd = {"choices": [{"delta": {"refusal": 5, "content": 5, "reasoning": 5}, "finish_reason": ["stop"]}]}
    server.answer(Answer(b"data: " + json.dumps(odd).encode() + b"\n\n", chunk({"content": "x"}, "stop"), DONE))
    assert deltas(model) == [TextDelta("x"), FinishDelta("stop")]


ENDLESS = {
    "a line": b"data: " + b"x" * 20_000_000,
    "lines": b"data: x\n" * 20_000,
    "a line, compressed a thousandfold": gzip.compress(b"data: " + b"x" * 50_000_000),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_an_event_without_end_is_given_up(server, model, what):
    """The library would keep all of it, and look at all of it again with each piece."""
    headers = {"content-encoding": "gzip"} if "compressed" in what else {}
    server.answer(Answer(ENDLESS[what], headers=headers))
    error = fails(model)
    assert (error.code, "an event of more than 16 MB" in str(error)) == ("bad_response", True)


def test_text_may_come_in_parts_and_other_replies_are_passed_over(server, model):
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
    other = {"index": 1, "delta": {"content": "B", "tool_calls": [piece(0, "x", "add", "{}")]}, "finish_reason": "stop"}
    both = b"data: " + json.dumps({"choices": [{"index": 0, "delta": parts}, other]}).encode() + b"\n\n"
    server.answer(Answer(both, chunk({}, "stop"), DONE))
    assert deltas(model) == [TextDelta("ab"), FinishDelta("stop")]


def test_pieces_of_calls_are_passed_on_as_they_are(server, model):
    """Which calls they are is found out elsewhere: see `test_assembler.py`."""
    odd = [
        {"function": {"name": "add", "arguments": {"a": 1}}},
        {"index": "0", "id": None, "function": None},
        {"index": 1, "id": 7, "function": {"name": None, "arguments": None}},
    ]
    server.answer(Answer(chunk({"tool_calls": odd}, "tool_calls"), DONE))
    assert deltas(model)[:-1] == [
        ToolCallDelta(None, "", "add", '{"a": 1}'),
        ToolCallDelta(None),
        ToolCallDelta(1, "7"),
    ]


# -- what goes wrong ---------------------------------------------------------------------------------------------------

FAILURES = {
    "wrong key": (401, {"error": {"message": f"Incorrect API key: {KEY}"}}, "unauthorized"),
    "not allowed": (403, {"error": {"message": "Country not supported"}}, "unauthorized"),
    "no credit": (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, "no_credit"),
    "wrong model": (404, {"error": {"message": "no such model", "code": "model_not_found"}}, "unknown_model"),
    "wrong model, 400": (400, {"error": {"message": "no such model", "code": "model_not_found"}}, "unknown_model"),
    "wrong path": (404, "<html>" + "lots " * 999, "unknown_model"),
    "too long": (400, {"error": {"message": "m", "code": "context_length_exceeded"}}, "context_overflow"),
    "too long, llama": (400, {"error": {"message": "m", "type": "exceed_context_size_error"}}, "context_overflow"),
    "too long, vllm": (400, {"message": "This model's maximum context length is 9 tokens"}, "context_overflow"),
    "bad request": (400, {"error": {"message": "no such field", "type": "invalid_request_error"}}, "bad_request"),
    "unprocessable": (422, {"detail": "no such field"}, "bad_request"),
    "policy": (400, {"error": {"message": "no", "code": "content_policy_violation"}}, "refused"),
    "rate": (429, {"error": {"message": "slow down"}}, "rate_limited"),
    "broken": (500, {"error": {"message": "oops", "code": 500, "type": "server_error"}}, "server_error"),
    "gateway": (502, "<html>bad gateway", "server_error"),
    "overloaded": (503, {"error": {"message": "loading"}}, "overloaded"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_says_what_to_do(server, model, name):
    status, body, code = FAILURES[name]
    server.answer(failure(status, body))
    error = fails(model)
    assert error.code == code
    assert error.retryable == (code in ("rate_limited", "server_error", "overloaded"))
    assert f"({status} " in str(error)
    assert len(str(error)) < 500
    assert len(server.requests) == 1  # the library does not retry behind our back


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_passed_on(server, model, headers, seconds):
    server.answer(failure(429, {"error": {"message": "slow down"}}, **headers))
    assert fails(model).retry_after == seconds


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "overloaded", "type": "overloaded_error"}, "overloaded"),
        ({"message": "too long", "code": "context_length_exceeded"}, "context_overflow"),
        ({"message": "the slot is gone", "code": 500, "type": "server_error"}, "server_error"),
        ({"message": "?"}, "server_error"),
    ],
)
def test_an_error_in_the_middle_of_a_stream(server, model, error, code):
    server.answer(Answer(*HELLO, b"data: " + json.dumps({"error": error}).encode() + b"\n\n"))
    assert fails(model).code == code


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("before", [[], HELLO])
def test_a_connection_that_breaks(server, model, before, reset):
    server.answer(Answer(*before, Hangup(reset=reset)))
    error = fails(model)
    assert (error.code, error.retryable) == ("unreachable", True)


def test_a_stream_that_ends_without_a_finish_is_broken(server, model):
    server.answer(Answer(*HELLO))
    assert fails(model).code == "unreachable"


@pytest.mark.parametrize("finish", [None, ""])
@pytest.mark.parametrize("end", [DONE, b"data:[DONE]", b"data: [DONE]\r\n\r\n"])
def test_a_stream_that_is_declared_done_needs_no_finish(server, model, finish, end):
    server.answer(Answer(*HELLO, chunk({}, finish), end))
    assert deltas(model) == [TextDelta("Hel"), TextDelta("lo"), FinishDelta("stop")]


def test_a_model_that_says_done_is_not_the_end(server, model):
    server.answer(Answer(chunk({"content": "data: [DONE]\n\n"})))
    assert fails(model).code == "unreachable"


def test_a_connection_that_breaks_after_the_finish_costs_nothing_but_the_usage(server, model):
    server.answer(Answer(*HELLO, chunk({}, "stop"), Hangup()))
    assert deltas(model)[-1] == FinishDelta("stop")


@pytest.mark.parametrize("body", [b"data: {oops\n\n", b"data: \xff\xfe\n\n"])
def test_what_is_not_the_protocol(server, model, body):
    server.answer(Answer(body))
    assert fails(model).code == "bad_response"


def test_nobody_listens():
    with Replay() as gone:
        url = gone.url
    error = fails(OpenAIModel("m", base_url=f"{url.replace('//', '//user:secret@')}/v1?x=secret", api_key=KEY))
    assert (error.code, error.retryable) == ("unreachable", True)
    assert url in str(error)
    assert "secret" not in str(error)


def test_a_server_that_goes_silent_is_given_up(server):
    with Stall() as stall:
        server.answer(Answer(*HELLO, stall))
        error = fails(OpenAIModel("m", base_url=server.url, timeout=0.3))
    assert (error.code, error.retryable) == ("stalled", True)


@pytest.mark.parametrize("end", [chunk({}, "content_filter"), chunk({"refusal": "I will not."}, "stop")])
def test_a_refusal_is_an_error_with_what_was_said(server, model, end):
    server.answer(Answer(chunk({"content": "Well"}), end, DONE))
    assert fails(model).code == "refused"


def test_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    error = fails(OpenAIModel("gpt"))
    assert error.code == "no_key"
    assert "OPENAI_API_KEY" in str(error)


def test_key_and_address_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.answer(Answer(*HELLO, *END))
    deltas(OpenAIModel("m"))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-schlüssel"])
def test_a_key_that_cannot_be_one(key):
    with pytest.raises(ValueError, match="API key") as caught:
        OpenAIModel("m", api_key=key)
    assert "sk-" not in str(caught.value)


def test_an_address_that_cannot_be_one():
    with pytest.raises(ValueError, match="http"):
        OpenAIModel("m", base_url="localhost:8080")


@pytest.mark.parametrize("extra", ["openai", "anthropic"])
def test_a_missing_extra_is_named(extra):
    program = f"""
import sys
import runtime, runtime.models
assert not {{"openai", "anthropic", "httpx2", "pydantic"}} & set(sys.modules)
sys.modules[{extra!r}] = None
try:
    import runtime.models.{extra}
except runtime.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert f"pip install 'lockgate[{extra}]'" in done.stdout


def test_no_secret_in_its_repr():
    model = OpenAIModel("m", base_url="https://user:secret@example.org/v1?key=secret", api_key=KEY)
    assert repr(model) == "<OpenAIModel 'openai/m' at https://example.org/v1>"
    assert KEY not in repr(vars(model))


# -- in a stream -------------------------------------------------------------------------------------------------------


def test_law_17_the_error_of_a_run_comes_from_the_error_of_the_model(server, model):
    server.answer(failure(401, {"error": {"message": "no"}}))
    with Runtime(Agent("a", model)) as runtime, pytest.raises(RunError) as caught:
        runtime.run(Session.from_user("Hi"))
    assert caught.value.code == "model_error"
    assert isinstance(caught.value.__cause__, ModelError)
    assert caught.value.__cause__.code == "unauthorized"


def test_partial_text_is_kept_and_marked_when_the_stream_breaks(server, model):
    server.answer(Answer(*HELLO, Hangup()))
    session = Session.from_user("Hi")
    with Runtime(Agent("a", model)) as runtime:
        events = list(runtime.run_stream(session))
    assert [type(e) for e in events[-2:]] == [Error, StreamStopped]
    last = session.messages[-1]
    assert (last.content, last.finish_reason) == ("Hello", "interrupted")


@pytest.mark.parametrize("before", [[], HELLO])
def test_law_18_cancel_is_prompt_while_the_server_is_silent(model, before, cancelled_while_silent):
    assert in_time(lambda: cancelled_while_silent(model, before), 0.05)


def test_a_connection_is_used_again_and_closed_with_the_model(server, model):
    server.answer(Answer(*HELLO, *END), Answer(*HELLO, *END))
    with Runtime(Agent("a", model)) as runtime:
        for _ in range(2):
            assert runtime.run(Session.from_user("Hi")).text == "Hello"
            assert server.wait_for(1)
    model.close()
    assert server.wait_for(0)


def test_a_model_that_is_dropped_closes_its_connections(server):
    model = OpenAIModel("m", base_url=server.url)
    server.answer(Answer(*HELLO, *END))
    with Runtime(Agent("a", model)) as runtime:
        runtime.run(Session.from_user("Hi"))
    assert server.wait_for(1)
    del model, runtime  # the loop goes on
    gc.collect()
    assert server.wait_for(0)


def test_a_loop_that_ends_closes_the_connections_made_on_it(server, model):
    server.answer(Answer(*HELLO, *END), Answer(*HELLO, *END))
    for _ in range(2):
        deltas(model)  # on a loop of its own
        assert server.wait_for(0)


def test_law_11_the_interpreter_exits_with_open_connections(server):
    server.answer(Answer(*HELLO, *END))
    program = f"""
from runtime import Agent, Runtime, Session
from runtime.models.openai import OpenAIModel
model = OpenAIModel("m", base_url={server.url!r})
print(Runtime(Agent("a", model)).run(Session.from_user("Hi")).text)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("Hello\n", "", 0)


def test_text_arrives_before_the_reply_is_over(server, model):
    with Stall() as stall, Runtime(Agent("a", model)) as runtime:
        server.answer(Answer(HELLO[1], stall, *END))
        with runtime.run_stream(Session.from_user("Hi")) as stream:
            first = next(e for e in stream if isinstance(e, AgentChoice))
            assert first.content == "Hel"
            stall.go_on.set()


def test_tools_are_described_as_the_protocol_has_it(server, model):
    server.answer(Answer(*HELLO, *END))
    schema = {"type": "object", "properties": {}}
    deltas(model, tools=[ToolDefinition("t", "Does it.", schema)])
    assert server.requests[0].body["tools"] == [
        {"type": "function", "function": {"name": "t", "description": "Does it.", "parameters": schema}}
    ]


def test_the_output_schema_is_sent_where_the_protocol_has_a_place_for_it(server, model):
    """It takes objects only, and few characters in names."""
    sent = []
    schema = {"type": "object", "properties": {}}
    for wanted in (OutputSchema("A[b]", schema), OutputSchema("list", {"type": "array"})):
        server.answer(Answer(*HELLO, *END))
        deltas(model, output=wanted)
        sent.append(server.requests[-1].body.get("response_format"))
    assert sent == [{"type": "json_schema", "json_schema": {"name": "A_b_", "schema": schema}}, None]


# -- answers that come whole -------------------------------------------------------------------------------------------


def whole(body: Any, kind: str = "application/json") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(data, headers={"content-type": kind})


def test_an_answer_that_comes_whole_is_an_answer(server, model):
    message = {
        "role": "assistant",
        "content": "Hello",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    server.answer(whole({"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}))
    said = deltas(model)
    assert said[0] == TextDelta("Hello")
    assert "".join(each.arguments for each in said if isinstance(each, ToolCallDelta)) == '{"a": 1}'
    assert said[-2:] == [UsageDelta(20, 7, 16, 0, 3), FinishDelta("tool_calls")]


def test_events_under_a_wrong_kind_are_events(server, model):
    server.answer(Answer(*HELLO, *END, headers={"content-type": "application/json; charset=utf-8"}))
    assert [each.text for each in deltas(model) if isinstance(each, TextDelta)] == ["Hel", "lo"]


def test_a_page_for_people_is_no_answer(server, model):
    server.answer(whole(b"<!doctype html><head><title>x</title></head><p>Please &amp; log in</p>", "text/html"))
    error = fails(model)
    assert (error.code, error.retryable) == ("bad_response", False)
    assert "(Please & log in)" in str(error)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ({"message": "Rate limit exceeded: free-models-per-min", "code": 429}, "rate_limited", "free-models-per-min"),
        ({"message": "No credits", "code": "402"}, "no_credit", "No credits"),
        ({"message": "Too many requests"}, "rate_limited", "Too many requests"),
        ("model runner has stopped", "server_error", "model runner has stopped"),
    ],
)
def test_an_error_in_a_success_is_that_error(server, model, error, code, words):
    """Whole, or as an event of a stream."""
    event = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    server.answer(whole({"error": error}), Answer(event))
    for _ in range(2):
        failed = fails(model)
        assert failed.code == code
        assert words in str(failed)


def test_json_that_is_something_else_is_no_answer(server, model):
    server.answer(whole({"status": "ok"}))
    error = fails(model)
    assert error.code == "bad_response"
    assert '{"status": "ok"}' in str(error)
