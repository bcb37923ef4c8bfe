"""What was said is sent where the standard variable asks for it, and without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import Agent, FinishDelta, Image, Message, Runtime, Session, tool
from runtime.otel import instrument
from runtime.otel._content import VARIABLE
from support.scripted import Scripted, call, say
from support.telemetry import Telemetry

SECRET = "sk-abcdefghijklmnopqrstuvwx"


@tool(read_only=True)
def look(place: str) -> str:
    """Looks at a place."""
    return f"in {place} is the token: {SECRET}"


def run(telemetry: Telemetry, **more: Any) -> None:
    session = Session([Message("user", "Look at this: Münster", images=(Image(b"12345"),))])
    turns = [*say("I "), call("look", '{"place": "the attic"}', id="c1"), FinishDelta("tool_calls")], say("Done.")
    agent = Agent("a", Scripted(*turns), "Be brief.", tools=[look])
    with telemetry.instrument(Runtime(agent), **more) as runtime:
        runtime.run(session)


def content(telemetry: Telemetry) -> dict[str, Any]:
    """The attributes that hold what was said, of all spans."""
    names = ("messages", "instructions", "definitions", "arguments", "result")
    return {
        f"{span.name}: {name}": value
        for span in telemetry.kept.ended
        for name, value in span.attributes.items()
        if name.endswith(names)
    }


@pytest.mark.parametrize("value", [None, "", "false", "no_content", "EVENT_ONLY", "maybe"])
def test_nothing_is_said_unless_asked_for(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    run(telemetry)
    assert content(telemetry) == {}
    told = str([dict(span.attributes) for span in telemetry.kept.ended])
    assert "attic" not in told
    assert "Münster" not in told


@pytest.mark.parametrize("value", ["true", "True", "SPAN_ONLY", "span_and_event"])
def test_what_was_said_is_in_the_form_of_the_conventions(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    run(telemetry)
    first, second = (span.attributes for span in telemetry.kept.ended if span.name == "chat scripted")
    question = {
        "role": "user",
        "parts": [
            {"type": "text", "content": "Look at this: Münster"},
            {"type": "image", "mime_type": "image/png", "bytes": 5},
        ],
    }
    asks = {"type": "tool_call", "id": "c1", "name": "look", "arguments": {"place": "the attic"}}
    reply = {"role": "assistant", "parts": [{"type": "text", "content": "I "}, asks]}
    assert json.loads(first["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(first["gen_ai.input.messages"]) == [question]
    assert json.loads(first["gen_ai.output.messages"]) == [{**reply, "finish_reason": "tool_calls"}]
    [definition] = json.loads(first["gen_ai.tool.definitions"])
    assert definition["name"] == "look"
    assert definition["parameters"]["required"] == ["place"]
    answer = {"type": "tool_call_response", "id": "c1", "response": "in the attic is the token: <redacted>"}
    assert json.loads(second["gen_ai.input.messages"]) == [question, reply, {"role": "tool", "parts": [answer]}]

    made = telemetry.span("execute_tool look").attributes
    assert json.loads(made["gen_ai.tool.call.arguments"]) == {"place": "the attic"}
    assert made["gen_ai.tool.call.result"] == "in the attic is the token: <redacted>"

    agent = telemetry.span("invoke_agent a").attributes
    assert json.loads(agent["gen_ai.input.messages"]) == [question]
    [said] = json.loads(agent["gen_ai.output.messages"])
    assert said["parts"] == [{"type": "text", "content": "Done."}]
    assert "Münster" in first["gen_ai.input.messages"]  # as it is, for who searches a backend
    assert SECRET not in str([dict(span.attributes) for span in telemetry.kept.ended])


def test_more_may_be_taken_out(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "true")
    run(telemetry, redact=lambda text: text.replace("attic", "***"))
    assert "attic" not in str(content(telemetry))
    assert "in the *** is the token: <redacted>" in str(content(telemetry))


def test_what_cannot_be_taken_out_is_not_sent(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the user's that raises ends no run, and leaves no span open."""
    monkeypatch.setenv(VARIABLE, "true")

    def redact(text: str) -> str:
        raise LookupError("no")

    run(telemetry, redact=redact)
    assert telemetry.is_whole()
    assert content(telemetry) == {}
    assert telemetry.span("invoke_agent a").attributes["lockgate.stop_reason"] == "normal"


def test_what_a_failed_tool_says_is_content(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "true")

    @tool(read_only=True)
    def fails() -> str:
        """Fails."""
        raise LookupError(f"no such key: {SECRET}")

    with Runtime(Agent("a", Scripted([call("fails")], say("x")), tools=[fails])) as runtime:
        instrument(runtime, tracer_provider=telemetry.tracers)
        runtime.run(Session.from_user("go"))
    description = telemetry.span("execute_tool fails").status.description
    assert description is not None
    assert description.startswith("LookupError: no such key: ")
    assert SECRET not in description


def test_the_variable_is_read_when_a_runtime_is_instrumented(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        telemetry.instrument(runtime)
        monkeypatch.setenv(VARIABLE, "true")
        runtime.run(Session.from_user("go"))
    assert content(telemetry) == {}
