"""What goes over the wire: a receiver of OTLP that decodes what a real exporter sends."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the OTLP exporter is not installed")

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from runtime import Agent, Permissions, RunError, Runtime, Session, UsageDelta, tool
from runtime.mcp import MCPToolSet
from runtime.otel import instrument
from support.scripted import AsyncScripted, call, say
from support.waiting import eventually

ROOT = Path(__file__).parents[3]
KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Receiver(ThreadingHTTPServer):
    """Takes what is sent to it, or says that it cannot."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.received: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> list[Any]:
        traces = [each for each in self.received if isinstance(each, ExportTraceServiceRequest)]
        return [span for each in traces for one in each.resource_spans for two in one.scope_spans for span in two.spans]

    def metrics(self) -> dict[str, Any]:
        sent = [each for each in self.received if isinstance(each, ExportMetricsServiceRequest)]
        scopes = [scope for each in sent for resource in each.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append(KINDS[self.path].FromString(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


def _attributes(of: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in of.attributes}


@tool(read_only=True)
def weather(city: str) -> str:
    """Tells the weather."""
    return f"sunny in {city}"


def test_a_receiver_gets_the_tree_of_a_run_and_its_metrics(receiver: Receiver) -> None:
    resource = Resource.create({"service.name": "shop"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{receiver.url}/v1/metrics"), 3_600_000)
    meters = MeterProvider([reader], resource=resource)
    turns = [call("weather", '{"city": "Rome"}', id="c1"), UsageDelta(11, 3)], [*say("Sunny."), LookupError("gone")]
    agent = Agent("forecaster", AsyncScripted(*turns), tools=[weather])
    try:
        with Runtime(agent) as runtime:
            instrument(runtime, tracer_provider=tracers, meter_provider=meters)
            with tracers.get_tracer("shop").start_as_current_span("request"), pytest.raises(RunError):
                runtime.run(Session.from_user("How is the weather?"))
    finally:
        tracers.shutdown()
        meters.shutdown()

    spans = receiver.spans()
    by_id = {span.span_id: span for span in spans}
    tree = sorted((span.name, by_id[span.parent_span_id].name if span.parent_span_id else "") for span in spans)
    assert tree == [
        ("chat scripted", "invoke_agent forecaster"),
        ("chat scripted", "invoke_agent forecaster"),
        ("execute_tool weather", "invoke_agent forecaster"),
        ("invoke_agent forecaster", "request"),
        ("request", ""),
    ]
    assert len({span.trace_id for span in spans}) == 1
    [agent_span] = [span for span in spans if span.name.startswith("invoke_agent")]
    assert agent_span.kind == Span.SPAN_KIND_INTERNAL
    assert agent_span.status.code == Status.STATUS_CODE_ERROR
    assert _attributes(agent_span)["error.type"] == "model_error"
    chats = [span for span in spans if span.name.startswith("chat")]
    first, second = sorted(chats, key=lambda span: span.start_time_unix_nano)
    assert first.kind == Span.SPAN_KIND_CLIENT
    assert _attributes(first)["gen_ai.usage.input_tokens"] == 11
    assert _attributes(second)["error.type"] == "LookupError"
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
    assert agent_span.start_time_unix_nano <= first.start_time_unix_nano
    assert second.end_time_unix_nano <= agent_span.end_time_unix_nano
    traces = next(each for each in receiver.received if isinstance(each, ExportTraceServiceRequest))
    assert _attributes(traces.resource_spans[0].resource)["service.name"] == "shop"
    scope = next(s for r in traces.resource_spans for s in r.scope_spans if s.scope.name == "lockgate")
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.41.0"

    metrics = receiver.metrics()
    assert set(metrics) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.token.usage",
        "gen_ai.execute_tool.duration",
        "gen_ai.invoke_agent.duration",
    }
    tokens = metrics["gen_ai.client.token.usage"]
    assert tokens.unit == "{token}"
    assert {_attributes(each)["gen_ai.token.type"]: each.sum for each in tokens.histogram.data_points} == {
        "input": 11,
        "output": 3,
    }
    durations = metrics["gen_ai.client.operation.duration"]
    assert durations.unit == "s"
    assert [each.count for each in durations.histogram.data_points] == [1, 1]


def test_a_receiver_that_refuses_everything_fails_no_run(receiver: Receiver) -> None:
    receiver.status = 400
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
    try:
        with Runtime(Agent("a", AsyncScripted(say("x")))) as runtime:
            instrument(runtime, tracer_provider=tracers)
            assert runtime.run(Session.from_user("go")).text == "x"
        tracers.force_flush()
    finally:
        tracers.shutdown()
    assert len(receiver.spans()) == 2


SERVED = """
import os, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
import runtime.serve
from runtime import Agent, TextDelta
from runtime.otel import instrument

class Model:
    id = "served/model"
    def stream(self, messages, tools, *, cancel):
        yield TextDelta("sunny")

tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(sys.argv[1])))
trace.set_tracer_provider(tracers)
instrument()
runtime.serve.mcp(Agent("forecaster", Model(), description="Forecasts.")).run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes")
def test_a_trace_goes_on_in_an_agent_that_another_process_serves(receiver: Receiver, tmp_path: Path) -> None:
    """Its run is inside the tool call of the agent that asks it, over the wire of MCP."""
    pytest.importorskip("mcp")
    program = tmp_path / "served.py"
    program.write_text(SERVED, encoding="utf-8")
    address = f"{receiver.url}/v1/traces"
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address)))
    server = MCPToolSet([sys.executable, program, address], name="weather", env={"PYTHONPATH": str(ROOT)})
    turns = [call("forecaster", '{"prompt": "Rome"}')], say("It is sunny.")
    agent = Agent("asker", AsyncScripted(*turns), toolsets=[server])
    session = Session.from_user("How is the weather?")
    try:
        with Runtime(agent, permissions=Permissions(approve_all=True)) as runtime:
            instrument(runtime, tracer_provider=tracers)
            runtime.run(session)
        [answer] = [message.content for message in session.messages if message.role == "tool"]
        assert "sunny" in answer
        assert eventually(lambda: any(span.name == "invoke_agent forecaster" for span in receiver.spans()))
    finally:
        tracers.shutdown()
    spans = {span.span_id: span for span in receiver.spans()}
    [inner] = [span for span in spans.values() if span.name == "invoke_agent forecaster"]
    line = [inner.name]
    while inner.parent_span_id in spans:
        inner = spans[inner.parent_span_id]
        line.append(inner.name)
    assert line[0] == "invoke_agent forecaster"
    assert line[-2:] == ["tools/call forecaster", "invoke_agent asker"]
