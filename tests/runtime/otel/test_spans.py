"""Which spans a run has, what they say, and what is inside of what."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from runtime import (
    Agent,
    Compaction,
    FinishDelta,
    HookInput,
    Message,
    Permissions,
    Runtime,
    Session,
    TextDelta,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.events import AgentChoice, ElicitationRequest, ToolCallConfirmation
from runtime.mcp import MCPToolSet
from runtime.mcp._toolset import _address
from runtime.otel import instrument, uninstrument
from support.scripted import AsyncScripted, Scripted, call, say
from support.telemetry import Telemetry

ROOT = Path(__file__).parents[3]
MODELS = pytest.mark.parametrize("model", [Scripted, AsyncScripted])


@tool(read_only=True)
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def run(telemetry: Telemetry, agent: Agent, session: Session | None = None, **more: Any) -> None:
    with telemetry.instrument(Runtime(agent, **more)) as runtime:
        runtime.run(session or Session.from_user("go"))


@MODELS
def test_a_run_is_a_tree_of_its_agent_its_model_calls_and_its_tool_calls(
    telemetry: Telemetry, model: type[Scripted]
) -> None:
    session = Session.from_user("go")
    turns = [call("add", '{"a": 1, "b": 2}', id="c1"), UsageDelta(5, 2, 1, 3, 1), FinishDelta("tool_calls")], say("3")
    run(telemetry, Agent("adder", model(*turns), tools=[add], description="It adds."), session)

    assert telemetry.parents() == [
        ("chat scripted", "invoke_agent adder"),
        ("chat scripted", "invoke_agent adder"),
        ("execute_tool add", "invoke_agent adder"),
        ("invoke_agent adder", ""),
    ]
    assert telemetry.is_whole()
    agent = telemetry.span("invoke_agent adder")
    assert agent.kind is SpanKind.INTERNAL
    assert agent.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "adder",
        "gen_ai.agent.description": "It adds.",
        "gen_ai.conversation.id": session.id,
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "lockgate.stop_reason": "normal",
    }
    assert agent.instrumentation_scope.name == "lockgate"
    executed = telemetry.span("execute_tool add")
    assert executed.kind is SpanKind.INTERNAL
    assert executed.status.status_code is StatusCode.UNSET
    assert executed.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.agent.name": "adder",
        "gen_ai.conversation.id": session.id,
        "gen_ai.tool.name": "add",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.description": "Adds two numbers.",
        "gen_ai.tool.call.id": "c1",
    }
    first, _ = (span for span in telemetry.kept.ended if span.name == "chat scripted")
    assert first.kind is SpanKind.CLIENT
    said = dict(first.attributes)
    assert 0 < said.pop("gen_ai.response.time_to_first_chunk") < 10
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": "adder",
        "gen_ai.conversation.id": session.id,
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "scripted",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.usage.cache_creation.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 1,
    }


def test_no_sums_stand_on_the_span_of_the_agent(telemetry: Telemetry) -> None:
    """A backend that adds up all spans would count the tokens of the model calls twice."""
    run(telemetry, Agent("a", Scripted([UsageDelta(5, 2), *say("x")])))
    assert not [name for name in telemetry.span("invoke_agent a").attributes if "usage" in name]


@MODELS
def test_the_parent_is_the_span_in_which_the_stream_is_opened(telemetry: Telemetry, model: type[Scripted]) -> None:
    with telemetry.instrument(Runtime(Agent("a", model(say("x"), say("y"))))) as runtime:
        with telemetry.tracer.start_as_current_span("request"):
            stream = runtime.run_stream(Session.from_user("go"))
        with telemetry.tracer.start_as_current_span("another"), stream:
            for _ in stream:
                pass
    assert ("invoke_agent a", "request") in telemetry.parents()


def test_the_consumers_own_context_stays_as_it_is(telemetry: Telemetry) -> None:
    before = dict(contextvars.copy_context())
    run(telemetry, Agent("a", Scripted(say("x"))))
    assert dict(contextvars.copy_context()) == before


def test_spans_of_tools_and_models_and_hooks_are_inside(telemetry: Telemetry) -> None:
    """Each on the thread where it runs: helpers, the loop that all share, the thread of the consumer."""
    tracer = telemetry.tracer

    @tool(read_only=True)
    def plain() -> str:
        """A plain one."""
        with tracer.start_as_current_span("in plain"):
            return threading.current_thread().name

    @tool(read_only=True)
    async def async_() -> str:
        """One on the loop."""
        with tracer.start_as_current_span("in async"):
            return "ok"

    @tool(read_only=True, on="consumer")
    def here() -> str:
        """One in the consumer's thread."""
        with tracer.start_as_current_span("in here"):
            return threading.current_thread().name

    def hook(given: HookInput) -> None:
        with tracer.start_as_current_span(f"hook {given.hook_event_name}"):
            pass

    def asked() -> None:
        with tracer.start_as_current_span("in the model"):
            pass

    turns = [asked, call("plain", id="1"), call("async_", id="2", index=1), call("here", id="3", index=2)], say("x")
    hooks = {"session_start": [hook], "session_end": [hook], "pre_tool_use": [hook]}
    run(telemetry, Agent("a", AsyncScripted(*turns), tools=[plain, async_, here], hooks=hooks))
    inside = [pair for pair in telemetry.parents() if not pair[0].startswith(("chat", "exec", "invoke"))]
    assert inside == [
        ("hook pre_tool_use", "invoke_agent a"),
        ("hook pre_tool_use", "invoke_agent a"),
        ("hook pre_tool_use", "invoke_agent a"),
        ("hook session_end", "invoke_agent a"),
        ("hook session_start", "invoke_agent a"),
        ("in async", "execute_tool async_"),
        ("in here", "execute_tool here"),
        ("in plain", "execute_tool plain"),
        ("in the model", "chat scripted"),
    ]


def test_what_is_owed_at_the_end_is_inside(telemetry: Telemetry) -> None:
    """The span of the agent ends after the hooks that run when a cancelled stream has closed."""

    def hook(given: HookInput) -> None:
        with telemetry.tracer.start_as_current_span("cleaning up"):
            pass

    agent = Agent("a", Scripted(say("x", "y")), hooks={"session_end": [hook]})
    with telemetry.instrument(Runtime(agent)) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        next(event for event in stream if isinstance(event, AgentChoice))
        stream.cancel()
    inner, outer = telemetry.span("cleaning up"), telemetry.span("invoke_agent a")
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert inner.end_time <= outer.end_time


def test_a_thread_that_stands_still_between_two_clocks_moves_no_end(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a processor was another's for a moment, the operation would seem to have ended before what is inside."""

    class Clocks:
        perf_counter_ns = staticmethod(time.perf_counter_ns)
        reads = 0

        @classmethod
        def time_ns(cls) -> int:
            now = time.time_ns()
            cls.reads += 1
            if cls.reads == 1:  # of the first span, that of the agent
                time.sleep(0.2)
            return now

    monkeypatch.setattr("runtime.otel._telemetry.time", Clocks)
    with telemetry.instrument(Runtime(Agent("a", Scripted(say("x"))))) as runtime:
        runtime.run(Session.from_user("go"))
    inner, outer = telemetry.span("chat scripted"), telemetry.span("invoke_agent a")
    assert Clocks.reads > 1
    assert outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time


def test_sub_agents_are_inside_the_tool_calls_that_run_them(telemetry: Telemetry) -> None:
    """With `run_agent`, `arun_agent`, `transfer_task` and in the background."""
    first, second = Agent("first", Scripted(say("1"))), Agent("second", AsyncScripted(say("2")))
    third, fourth = Agent("third", Scripted(say("3"))), Agent("fourth", Scripted(say("4")))

    @tool(read_only=True)
    def plain(context: ToolContext) -> str:
        """Runs one."""
        return context.run_agent(first, "go").text

    @tool(read_only=True)
    async def async_(context: ToolContext) -> str:
        """Runs another."""
        return (await context.arun_agent(second, "go")).text

    turns = (
        [call("plain", id="1"), call("async_", id="2", index=1)],
        [call("transfer_task", '{"agent": "third", "task": "go"}', id="3")],
        [call("run_background_agent", '{"agent": "fourth", "task": "go"}', id="4")],
        [call("wait_background_agent", '{"task_id": "task-1"}', id="5")],
        say("done"),
    )
    agent = Agent("root", Scripted(*turns), tools=[plain, async_], sub_agents=[third, fourth], background_agents=True)
    run(telemetry, agent)
    assert [pair for pair in telemetry.parents() if pair[0].startswith("invoke_agent")] == [
        ("invoke_agent first", "execute_tool plain"),
        ("invoke_agent fourth", "execute_tool run_background_agent"),
        ("invoke_agent root", ""),
        ("invoke_agent second", "execute_tool async_"),
        ("invoke_agent third", "execute_tool transfer_task"),
    ]
    assert telemetry.is_whole()
    conversations = {span.attributes["gen_ai.conversation.id"] for span in telemetry.kept.ended}
    assert len(conversations) == 5


def test_what_a_tool_has_set_in_its_context_is_seen_by_the_agent_that_it_runs() -> None:
    """So the spans that it has opened itself are around that, whoever traces."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="")
    seen = []
    sub = Agent("sub", Scripted([lambda: seen.append(tenant.get()), *say("x")]))

    @tool(read_only=True)
    def switch(context: ToolContext) -> str:
        """Sets it."""
        tenant.set("inner")
        return context.run_agent(sub, "go").text

    with Runtime(Agent("a", Scripted([call("switch")], say("y")), tools=[switch])) as runtime:
        tenant.set("outer")
        runtime.run(Session.from_user("go"))
    assert seen == ["inner"]
    assert tenant.get() == "outer"


def test_a_handoff_is_told_and_what_follows_is_of_the_other_agent(telemetry: Telemetry) -> None:
    other = Agent("other", Scripted(say("x")))
    agent = Agent("first", Scripted([call("handoff", '{"agent": "other"}')]), handoffs=[other])
    run(telemetry, agent)
    span = telemetry.span("invoke_agent first")
    assert [(event.name, event.attributes) for event in span.events] == [
        ("lockgate.handoff", {"gen_ai.agent.name": "other"})
    ]
    assert [each.attributes["gen_ai.agent.name"] for each in telemetry.kept.ended if each.name == "chat scripted"] == [
        "first",
        "other",
    ]


def test_a_summary_is_a_model_call_too(telemetry: Telemetry) -> None:
    session = Session.from_user("old " * 4000)
    for role in ("assistant", "user", "assistant", "user"):
        session._messages.append(Message(role, "words " * 2000))  # type: ignore[arg-type]
    model = Scripted(say("a summary"), say("x"))
    run(telemetry, Agent("a", model, compaction=Compaction(window=9000)), session)
    assert [name for name, _ in telemetry.parents()] == ["chat scripted", "chat scripted", "invoke_agent a"]


def test_a_question_is_an_event_and_not_a_span(telemetry: Telemetry) -> None:
    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks."""
        return context.elicit("How many?").action

    agent = Agent("a", Scripted([call("ask")], say("x")), tools=[ask])
    with telemetry.instrument(Runtime(agent)) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                stream.respond(event, "decline")
    span = telemetry.span("execute_tool ask")
    [event] = span.events
    assert event.name == "lockgate.question"
    assert event.attributes["lockgate.question.action"] == "decline"
    assert 0 < event.attributes["lockgate.question.wait"] < 10
    assert span.start_time <= event.timestamp <= span.end_time


def test_the_wait_for_an_approval_is_not_in_the_span_but_told_on_it(telemetry: Telemetry) -> None:
    @tool
    def write() -> str:
        """Writes."""
        return "written"

    agent = Agent("a", Scripted([call("write", id="1")], [call("write", id="2")], say("x")), tools=[write])
    asked = []
    with telemetry.instrument(Runtime(agent)) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                asked.append(time.time_ns())
                if len(asked) == 1:
                    stream.approve(event)
                else:
                    stream.reject(event)
    made, refused = (span for span in telemetry.kept.ended if span.name == "execute_tool write")
    assert [made.start_time > asked[0], refused.start_time > asked[1]] == [True, True]
    assert made.attributes["lockgate.approval.wait"] > 0
    assert "error.type" not in made.attributes
    assert refused.attributes["lockgate.approval.wait"] > 0
    assert refused.attributes["error.type"] == "rejected"
    assert [point.count for point in telemetry.points("gen_ai.execute_tool.duration")] == [1]


def test_calls_that_cannot_be_made_are_told(telemetry: Telemetry) -> None:
    """A name that no tool has is not the name of a span: a model may make up any number of them."""
    turns = [call("add", '{"a": "no"}', id="1"), call("made up", id="2", index=1)], say("x")
    run(telemetry, Agent("a", Scripted(*turns), tools=[add]))
    assert telemetry.outcomes()["execute_tool add"] == "invalid_call"
    assert telemetry.outcomes()["execute_tool"] == "invalid_call"


def test_settings_and_the_address_of_a_model_are_told(telemetry: Telemetry) -> None:
    class Set(Scripted):
        settings = {  # noqa: RUF012
            "base_url": "https://user:secret@models.example:8443/v1",
            "temperature": 0.5,
            "max_completion_tokens": 100,
            "n": 2,
            "top_p": True,
            "stop": "END",
            "extra_headers": {"authorization": "secret"},
        }

    model = Set(say("x"))
    model.id = "mistral/large/2"
    run(telemetry, Agent("a", model, output_type=str))
    said = telemetry.span("chat large/2").attributes
    assert said["gen_ai.provider.name"] == "mistral_ai"
    assert said["server.address"] == "models.example"
    assert said["server.port"] == 8443
    assert said["gen_ai.request.temperature"] == 0.5
    assert said["gen_ai.request.max_tokens"] == 100
    assert said["gen_ai.request.stop_sequences"] == ("END",)
    assert said["gen_ai.request.choice.count"] == 2
    assert "gen_ai.request.top_p" not in said
    assert "secret" not in str(dict(said))
    assert "gen_ai.output.type" not in said  # text, which is nothing that is asked for


def test_an_output_type_is_told(telemetry: Telemetry) -> None:
    run(telemetry, Agent("a", Scripted(say("[1, 2]")), output_type=list[int]))
    assert telemetry.span("chat scripted").attributes["gen_ai.output.type"] == "json"


def test_the_models_that_come_along_say_their_settings() -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    from runtime.models import Fallback, Retry
    from runtime.models.anthropic import AnthropicModel
    from runtime.models.openai import OpenAIModel
    from runtime.otel._attributes import of_model, of_request

    model = OpenAIModel("m", base_url="http://127.0.0.1:9/v1", temperature=0.1, options={"top_p": 0.9})
    other = AnthropicModel("n", base_url="https://example.org", max_tokens=7)
    assert of_model(Retry(model)) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "server.address": "127.0.0.1",
        "server.port": 9,
    }
    assert of_request(Fallback(model, other)) == {
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.1,
        "gen_ai.request.top_p": 0.9,
    }
    assert of_model(other)["server.port"] == 443
    assert of_request(other)["gen_ai.request.max_tokens"] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="processes")
def test_a_call_of_an_mcp_server_is_one_span_which_the_server_is_told_of(telemetry: Telemetry, tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    server = tmp_path / "server.py"
    server.write_text(
        """
from mcp.server.mcpserver import Context, MCPServer
server = MCPServer("odd", log_level="ERROR")

@server.tool()
async def told(ctx: Context) -> str:
    return str((ctx.request_context.meta or {}).get("traceparent"))

@server.tool()
async def fails() -> str:
    raise ValueError("no")

server.run()
""",
        encoding="utf-8",
    )
    odd = MCPToolSet([sys.executable, server], name="odd")
    agent = Agent("a", Scripted([call("told", id="1"), call("fails", id="2", index=1)], say("x")), toolsets=[odd])
    session = Session.from_user("go")
    run(telemetry, agent, session, permissions=Permissions(approve_all=True))
    span = telemetry.span("tools/call told")
    assert span.kind is SpanKind.CLIENT
    assert span.attributes["gen_ai.operation.name"] == "execute_tool"
    assert span.attributes["gen_ai.tool.name"] == "told"
    assert span.attributes["gen_ai.tool.type"] == "extension"
    assert span.attributes["mcp.method.name"] == "tools/call"
    assert span.attributes["mcp.protocol.version"] == "2026-07-28"
    assert span.attributes["network.transport"] == "pipe"
    assert span.attributes["lockgate.mcp.server"] == "odd"
    [told] = [message.content for message in session.messages if message.tool_call_id == "1"]
    assert f"{span.context.trace_id:032x}-{span.context.span_id:016x}" in told
    assert telemetry.outcomes()["tools/call fails"] == "tool_error"


def test_the_address_of_an_mcp_server_is_told() -> None:
    for url, address in {
        "https://user:secret@tools.example/mcp?key=x": ("tools.example", 443),
        "http://[::1]:8080/mcp": ("::1", 8080),
    }.items():
        said = _address(url)
        assert (said["server.address"], said["server.port"]) == address
    assert _address(None) == {}


def test_instrumenting_twice_doubles_nothing_and_the_last_settings_hold(telemetry: Telemetry) -> None:
    unused = Telemetry()
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        unused.instrument(runtime)
        telemetry.instrument(runtime)
        telemetry.instrument(runtime)
        runtime.run(Session.from_user("go"))
    assert [name for name, _ in telemetry.parents()] == ["chat scripted", "invoke_agent a"]
    assert not unused.kept.started


def test_uninstrumented_streams_are_not_traced_and_those_under_way_are_to_their_ends(telemetry: Telemetry) -> None:
    with Runtime(Agent("a", Scripted(say("x"), say("y"), say("z")))) as runtime:
        uninstrument(runtime)
        runtime.run(Session.from_user("go"))
        telemetry.instrument(runtime)
        with runtime.run_stream(Session.from_user("go")) as stream:
            uninstrument(runtime)
            for _ in stream:
                pass
        runtime.run(Session.from_user("go"))
    assert [name for name, _ in telemetry.parents()] == ["chat scripted", "invoke_agent a"]


def test_all_runtimes_that_are_made_later(telemetry: Telemetry) -> None:
    """Those that a program does not make itself cannot be named: that of the command, and those of a server."""
    before = Runtime(Agent("before", Scripted(say("x"))))
    try:
        instrument(tracer_provider=telemetry.tracers)
        with before, Runtime(Agent("made", Scripted(say("x")))) as made:
            before.run(Session.from_user("go"))
            uninstrument()
            made.run(Session.from_user("go"))
            with Runtime(Agent("after", Scripted(say("x")))) as after:
                after.run(Session.from_user("go"))
    finally:
        uninstrument()
    assert telemetry.parents() == [("chat scripted", "invoke_agent made"), ("invoke_agent made", "")]


def test_runtimes_are_instrumented_each_for_itself(telemetry: Telemetry) -> None:
    other = Telemetry()
    with Runtime(Agent("a", Scripted(say("x")))) as one, Runtime(Agent("b", Scripted(say("x")))) as two:
        telemetry.instrument(one)
        other.instrument(two)
        one.run(Session.from_user("go"))
        two.run(Session.from_user("go"))
    assert telemetry.parents() == [("chat scripted", "invoke_agent a"), ("invoke_agent a", "")]
    assert other.parents() == [("chat scripted", "invoke_agent b"), ("invoke_agent b", "")]


def test_what_cannot_be_instrumented_is_refused() -> None:
    with pytest.raises(TypeError, match="a Runtime"):
        instrument(Agent("a", Scripted()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Runtime"):
        uninstrument("a")  # type: ignore[arg-type]


def test_what_is_no_provider_is_refused(telemetry: Telemetry) -> None:
    with Runtime(Agent("a", Scripted())) as runtime:
        for given in (3, telemetry.tracer, type(telemetry.tracers)):
            with pytest.raises(TypeError, match="tracer_provider must be a TracerProvider of OpenTelemetry, not "):
                instrument(runtime, tracer_provider=given)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="meter_provider must be a MeterProvider of OpenTelemetry, not 'x'"):
            instrument(runtime, meter_provider="x")  # type: ignore[arg-type]


def test_metrics_measure_model_calls_tool_calls_and_runs(telemetry: Telemetry) -> None:
    model = Scripted(
        [call("add", '{"a": 1, "b": 2}'), UsageDelta(5, 2)], [TextDelta("x"), UsageDelta(7, 1), LookupError("no")]
    )
    model.id = "openai/m"
    with telemetry.instrument(Runtime(Agent("a", model, tools=[add]))) as runtime, pytest.raises(Exception, match="no"):
        runtime.run(Session.from_user("go"))
    known = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
    }
    durations = telemetry.points("gen_ai.client.operation.duration")
    assert [(point.count, dict(point.attributes)) for point in durations] == [
        (1, known),
        (1, {**known, "error.type": "LookupError"}),
    ]
    tokens = telemetry.points("gen_ai.client.token.usage")
    assert {point.attributes["gen_ai.token.type"]: (point.count, point.sum) for point in tokens} == {
        "input": (2, 12),
        "output": (2, 3),
    }
    assert {**known, "gen_ai.token.type": "input"} in [dict(point.attributes) for point in tokens]
    assert tokens[0].explicit_bounds[:3] == (1, 4, 16)
    [first] = telemetry.points("gen_ai.client.operation.time_to_first_chunk")
    assert (first.count, dict(first.attributes)) == (2, known)
    [made] = telemetry.points("gen_ai.execute_tool.duration")
    assert dict(made.attributes) == {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"}
    [ended] = telemetry.points("gen_ai.invoke_agent.duration")
    assert dict(ended.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "a",
        "error.type": "model_error",
    }


def test_what_is_sampled_out_is_measured_all_the_same(telemetry: Telemetry) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        instrument(runtime, tracer_provider=TracerProvider(ALWAYS_OFF), meter_provider=telemetry.meters)
        runtime.run(Session.from_user("go"))
    assert len(telemetry.points("gen_ai.client.operation.duration")) == 1
    assert len(telemetry.points("gen_ai.invoke_agent.duration")) == 1


def test_the_runs_of_the_command_where_the_file_of_the_agent_asks_for_it(tmp_path: Path) -> None:
    program = tmp_path / "my_agent.py"
    program.write_text(
        """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from runtime import Agent, TextDelta
from runtime.otel import instrument

class Model:
    id = "example/model"
    def stream(self, messages, tools, *, cancel):
        yield TextDelta("hello")

tracers = TracerProvider()
tell = lambda span: f"{span.name}\\n"
tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr, formatter=tell)))
instrument(tracer_provider=tracers)
agent = Agent("mine", Model())
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "runtime.cli", "run", str(program), "hi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "mine" in line or "chat" in line] == [
        "chat model",
        "invoke_agent mine",
    ]
