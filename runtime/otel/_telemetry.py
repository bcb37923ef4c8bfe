"""The spans and metrics of the streams of one runtime.

A span is started where its work begins, since what runs in that has to find it. It is ended elsewhere (`_finisher`),
at the time that was noted: what the SDK does then is foreign code, and the worker of a stream only notes what it has to
say. Each span is in its stream's table of open ones until that was noted, and the end of the stream empties the table:
so none is left open, whatever way the work has taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, set_span_in_context

from channels import Cancelled

from .._errors import describe
from ..agent._agent import Agent
from ..agent._tool import Tool, ToolResult
from ..execution._helpers import HelperPool
from ..foreign._redact import Redaction
from ..model import Model, ToolDefinition
from ..session._message import Message, ToolCall
from ..stream._end_reason import StopRun
from ..stream._tracing import UNTRACED, Batches, Traced
from ._attributes import Attributes, error_type, of_model, of_request, of_usage, provider_and_model
from ._content import Content, is_wanted
from ._finisher import Finisher

_logger = logging.getLogger("runtime")
SCOPE: Final = "lockgate"
#: The conventions that the names here are of: the last that were released.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
_UNHEARD: Final = ("opentelemetry.trace", "opentelemetry.metrics")
_LONGEST: Final = 500  # characters of a description
#: Reasons for which a stream ends that are no failure: it is done, or parked until the user has answered.
_NO_FAILURE: Final[Mapping[str, str]] = {"normal": "", "waiting": ""}

# Bounds of the buckets, as the conventions advise them.
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4.0**power for power in range(14))


class Telemetry:
    """What traces and measures the streams of one runtime. Thread-safe."""

    def __init__(
        self,
        helpers: HelperPool,
        grace: float,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        redact: Callable[[str], str] | None,
    ) -> None:
        self._providers = tracer_provider, meter_provider
        self.tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider, schema_url=SCHEMA)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider, schema_url=SCHEMA)

        def histogram(name: str, unit: str, bounds: Sequence[float], text: str) -> metrics.Histogram:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=list(bounds))

        self.model_seconds = histogram("gen_ai.client.operation.duration", "s", _SECONDS, "Duration of model calls.")
        self.model_tokens = histogram("gen_ai.client.token.usage", "{token}", _TOKENS, "Tokens of model calls.")
        self.first_seconds = histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", _SECONDS, "From a request to the first of its reply."
        )
        self.agent_seconds = histogram("gen_ai.invoke_agent.duration", "s", _SECONDS, "Duration of runs.")
        self.tool_seconds = histogram("gen_ai.execute_tool.duration", "s", _SECONDS, "Duration of tool calls.")
        self.redaction = Redaction(redact)
        self.content = Content(self.redaction) if is_wanted() else None
        self.grace = grace
        self.finisher = Finisher(helpers, self.failed)
        self._failed = False

    def begin(self, core: Traced) -> None:
        """A stream begins."""
        if not self._is_heard():
            return
        spans = StreamSpans(self, core)
        core.trace = spans
        try:
            spans.begin()
        except Exception:
            self.failed("the start of a stream")

    def _is_heard(self) -> bool:
        """Whether anybody takes spans or metrics: an SDK, which may be set after `instrument` was called. The providers
        that the API has itself stand for none.
        """
        tracers, meters = self._providers
        providers = tracers or trace.get_tracer_provider(), meters or metrics.get_meter_provider()
        return any(not type(each).__module__.startswith(_UNHEARD) for each in providers)

    def failed(self, what: str) -> None:
        """Log the exception that is being handled: once, for the next is likely to be the same."""
        level = logging.DEBUG if self._failed else logging.WARNING
        self._failed = True
        _logger.log(level, "OpenTelemetry failed in %s; runs go on without it", what, exc_info=True)

    def __repr__(self) -> str:
        return f"<Telemetry{'' if self.content is None else ' with content'}>"


class StreamSpans:
    """The spans of one stream: `StreamTrace`."""

    def __init__(self, telemetry: Telemetry, core: Traced) -> None:
        self.telemetry = telemetry
        self.core = core
        self.open: dict[_Operation, None] = {}
        self.current: Any = None  # OpenTelemetry's context, with the span of the agent in it
        self._agent: _AgentRun | None = None
        self._models: dict[int, tuple[Attributes, Attributes]] = {}

    def begin(self) -> None:
        core = self.core
        try:
            self.current = core.context.run(otel_context.get_current)
        except Exception:
            self.telemetry.failed("the start of a span")
        self._agent = _AgentRun(self, core.agent, core.session.messages[-1:] if self.telemetry.content else ())
        if self._agent.current is not None:
            self.current = self._agent.current
            core.context.run(otel_context.attach, self.current)

    def common(self, operation: str) -> Attributes:
        """What every span says."""
        core = self.core
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.conversation.id": core.session.id,
            "gen_ai.agent.name": core.agent.name,
        }

    def known(self, model: Model) -> tuple[Attributes, Attributes]:
        """What is the same for all calls of a model: in metrics, and on spans."""
        found = self._models.get(id(model))
        if found is None:
            try:
                found = of_model(model), of_request(model)
            except Exception:  # of a model that is somebody's own
                self.telemetry.failed("asking a model for its settings")
                provider, name = provider_and_model(model.id)
                found = {"gen_ai.provider.name": provider, "gen_ai.request.model": name}, {}
            self._models[id(model)] = found
        return found

    def model_call(
        self, model: Model, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, typed: bool = False
    ) -> _ModelCall:
        return _ModelCall(self, model, messages, tools, typed)

    def tool_call(
        self, call: ToolCall, tool: Tool, arguments: Mapping[str, Any], waited: float | None = None
    ) -> _ToolCall:
        return _ToolCall(self, call, tool, arguments, waited)

    def refused(
        self, call: ToolCall, tool: Tool | None, why: str, result: ToolResult, waited: float | None = None
    ) -> None:
        refused = _ToolCall(self, call, tool, {}, waited)
        refused.made = False
        refused.close(why, result.content)

    def act(self, agent: Agent) -> None:
        if self._agent is not None:
            self._agent.note("lockgate.handoff", {"gen_ai.agent.name": agent.name})

    def end(self) -> None:
        """The stream has ended. Harmless twice: what is closed is closed."""
        ending = self.core.ending
        why = ending.code if ending.reason == "error" else _NO_FAILURE.get(ending.reason, ending.reason)
        for operation in list(self.open):
            if operation is not self._agent:
                operation.close(why)
        if self._agent is not None:
            self._agent.close(why, ending.message)
        self.telemetry.finisher.wait(self.telemetry.grace)
        # What is closed holds this, and this holds the stream: no circle, so that both go with their last user.
        self._agent = None
        self.core.trace = UNTRACED

    def __repr__(self) -> str:
        return f"<StreamSpans {len(self.open)} open>"


class _Operation:
    """A span that is open, and what it will say."""

    metric: str

    def __init__(self, stream: StreamSpans, name: str, kind: SpanKind, attributes: Attributes) -> None:
        self._stream = stream
        self._wall = time.time_ns()
        self._began = time.perf_counter_ns()
        self._ended: int | None = None
        self._events: list[tuple[str, int, Attributes]] = []
        self._unclaimed = [None]
        self.span: Span = INVALID_SPAN
        self.current: Any = None  # OpenTelemetry's context, with this span in it
        self.context: Context | None = None
        self._recording = False  # whether anybody is told of it
        stream.open[self] = None
        try:
            self.span = stream.telemetry.tracer.start_span(
                name,
                stream.current,
                kind,
                attributes,
                start_time=self._wall,
                record_exception=False,
                set_status_on_exception=False,
            )
            self.current = set_span_in_context(self.span, stream.current)
            context = stream.core.context.copy()
            context.run(otel_context.attach, self.current)
            self.context = context
            self._recording = self.span.is_recording()
        except Exception:
            stream.telemetry.failed("the start of a span")

    def note(self, name: str, attributes: Attributes) -> None:
        """An event of the span."""
        self._events.append((name, self._wall + time.perf_counter_ns() - self._began, attributes))

    def let_go(self) -> None:
        """Its work is over for the stream, which ends itself, and will then say how."""
        if self._ended is None:
            self._ended = time.perf_counter_ns()

    def close(self, error: str = "", description: str = "") -> None:
        """Have the span ended, as of now; ``error`` is its ``error.type``. Once: later calls do nothing."""
        if self not in self._stream.open:
            return
        self.let_go()
        if self._recording:
            self._stream.telemetry.finisher.put(lambda: self._finish(error, description))
        else:  # it calls no processor, and metrics are quick
            self._finish(error, description)
        self._stream.open.pop(self, None)

    def _finish(self, error: str, description: str) -> None:
        """On the helper, where everything may take its time."""
        try:
            self._unclaimed.pop()
        except IndexError:  # an exception came in after this was put, and it was put again
            return
        telemetry = self._stream.telemetry
        took = (self._ended or self._began) - self._began
        failed: Attributes = {"error.type": error} if error else {}
        try:
            if self._recording:
                try:
                    self._tell(failed, description)
                except Exception:
                    telemetry.failed("the attributes of a span")
            self.span.end(self._wall + took)
        except Exception:
            telemetry.failed("the end of a span")
        try:
            self.measure(took / 1e9, failed)
        except Exception:
            telemetry.failed("a metric")

    def _tell(self, failed: Attributes, description: str) -> None:
        telemetry = self._stream.telemetry
        self.span.set_attributes({**self.late(), **failed})
        for name, at, attributes in list(self._events):  # a late answer may add one
            self.span.add_event(name, attributes, at)
        if failed:
            text = telemetry.redaction.text(description[:_LONGEST]) if self.may_say(failed["error.type"]) else ""
            self.span.set_status(Status(StatusCode.ERROR, text or None))
        if telemetry.content is not None:
            self.span.set_attributes(self.content(telemetry.content))

    def late(self) -> Attributes:
        """What is known at the end."""
        raise NotImplementedError

    def content(self, content: Content) -> Attributes:
        """What was said."""
        raise NotImplementedError

    def may_say(self, error: str) -> bool:
        """Whether the description of the error is none of what was said, or that is asked for."""
        return True

    def measure(self, seconds: float, failed: Attributes) -> None:
        """Tell the metrics."""
        raise NotImplementedError


class _AgentRun(_Operation):
    """``invoke_agent``: a stream."""

    def __init__(self, stream: StreamSpans, agent: Agent, asked: Sequence[Message]) -> None:
        self._name = agent.name
        self._asked = asked
        core = stream.core
        known, _ = stream.known(agent.model)
        attributes = {**stream.common("invoke_agent"), **known}
        if agent.description:
            attributes["gen_ai.agent.description"] = agent.description[:_LONGEST]
        self._ending = core.ending
        self._session = core.session
        self._first = len(core.session.messages) if stream.telemetry.content else 0
        super().__init__(stream, f"invoke_agent {agent.name}", SpanKind.INTERNAL, attributes)

    def late(self) -> Attributes:
        return {"lockgate.stop_reason": self._ending.reason}

    def content(self, content: Content) -> Attributes:
        found = content.asked(self._asked)
        added = self._session.messages[self._first :]
        last = next((each for each in reversed(added) if each.role == "assistant"), None)
        return found if last is None else found | content.answered(last)

    def may_say(self, error: str) -> bool:
        return self._ending.reason == "error" or self._stream.telemetry.content is not None

    def measure(self, seconds: float, failed: Attributes) -> None:
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": self._name, **failed}
        self._stream.telemetry.agent_seconds.record(seconds, attributes, self.current)


class _ModelCall(_Operation):
    """``chat``: a model call, with all attempts that were made at it."""

    def __init__(
        self,
        stream: StreamSpans,
        model: Model,
        messages: Sequence[Message],
        tools: Sequence[ToolDefinition],
        typed: bool,
    ) -> None:
        self._known, request = stream.known(model)
        self._asked = (messages, tools) if stream.telemetry.content is not None else ((), ())
        self._first: int | None = None
        self._reply: Message | None = None
        attributes = {**stream.common("chat"), **self._known, **request}
        if typed:
            attributes["gen_ai.output.type"] = "json"
        # The model of `runtime.models.local` computes in this process.
        kind = SpanKind.INTERNAL if self._known["gen_ai.provider.name"] == "local" else SpanKind.CLIENT
        super().__init__(stream, f"chat {self._known['gen_ai.request.model']}", kind, attributes)

    def watch(self, batches: Batches) -> Batches:
        try:
            for batch in batches:
                self._first = time.perf_counter_ns()
                yield batch
                yield from batches
        finally:
            batches.close()

    def said(self, reply: Message) -> None:
        self._reply = reply

    def __enter__(self) -> _ModelCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Cancelled):
            self.let_go()
            return
        if isinstance(error, StopRun):
            error = error.__cause__ or error
        self.close("" if error is None else error_type(error), "" if error is None else describe(error))

    def late(self) -> Attributes:
        found: Attributes = {}
        if self._first is not None:
            found["gen_ai.response.time_to_first_chunk"] = (self._first - self._began) / 1e9
        reply = self._reply
        if reply is not None:
            if reply.model:
                found["gen_ai.response.model"] = provider_and_model(reply.model)[1]
            if reply.finish_reason:
                found["gen_ai.response.finish_reasons"] = [reply.finish_reason]
            if reply.usage is not None:
                found |= of_usage(reply.usage)
        return found

    def content(self, content: Content) -> Attributes:
        found = content.asked(*self._asked)
        return found if self._reply is None else found | content.answered(self._reply)

    def measure(self, seconds: float, failed: Attributes) -> None:
        telemetry, reply = self._stream.telemetry, self._reply
        attributes = {"gen_ai.operation.name": "chat", **self._known}
        if reply is not None and reply.model:
            attributes["gen_ai.response.model"] = provider_and_model(reply.model)[1]
        telemetry.model_seconds.record(seconds, {**attributes, **failed}, self.current)
        if self._first is not None:
            telemetry.first_seconds.record((self._first - self._began) / 1e9, attributes, self.current)
        if reply is not None and reply.usage is not None:
            for kind, tokens in (("input", reply.usage.input_tokens), ("output", reply.usage.output_tokens)):
                telemetry.model_tokens.record(tokens, {**attributes, "gen_ai.token.type": kind}, self.current)


class _ToolCall(_Operation):
    """``execute_tool``: a tool call; one of an MCP server is told in the words for these as well."""

    def __init__(
        self,
        stream: StreamSpans,
        call: ToolCall,
        tool: Tool | None,
        arguments: Mapping[str, Any],
        waited: float | None,
    ) -> None:
        self._arguments = arguments
        self._result: ToolResult | None = None
        self.made = True
        attributes = stream.common("execute_tool")
        attributes["gen_ai.tool.call.id"] = call.id
        name, kind = "execute_tool", SpanKind.INTERNAL  # a tool that is not there has any name
        self._tool = ""
        if tool is not None:
            name = f"execute_tool {tool.name}"
            self._tool = tool.name
            attributes["gen_ai.tool.name"] = tool.name
            attributes["gen_ai.tool.type"] = "extension" if tool.server else "function"
            if tool.description:
                attributes["gen_ai.tool.description"] = tool.description[:_LONGEST]
            if tool.server:
                attributes["lockgate.mcp.server"] = tool.server
            if method := tool.traced.get("mcp.method.name"):  # one span is both, as the conventions want it
                name, kind = f"{method} {tool.name}", SpanKind.CLIENT
            attributes |= tool.traced
        if waited is not None:
            attributes["lockgate.approval.wait"] = waited
        super().__init__(stream, name, kind, attributes)

    def asked(self) -> Callable[[str], None]:
        began = time.perf_counter_ns()
        unsettled = [None]

        def answered(action: str) -> None:
            if unsettled:
                unsettled.clear()
                seconds = (time.perf_counter_ns() - began) / 1e9
                self.note("lockgate.question", {"lockgate.question.action": action, "lockgate.question.wait": seconds})

        return answered

    def end(self, result: ToolResult, error: BaseException | None = None) -> None:
        self._result = result
        why = error_type(error) if error is not None else "tool_error" if result.is_error else ""
        self.close(why, result.content if result.is_error else "")

    def late(self) -> Attributes:
        return {}

    def content(self, content: Content) -> Attributes:
        found = content.arguments(self._arguments)
        return found if self._result is None else found | content.result(self._result.content)

    def may_say(self, error: str) -> bool:
        return self._stream.telemetry.content is not None  # what a tool says of its failure is its result

    def measure(self, seconds: float, failed: Attributes) -> None:
        if not self.made:
            return
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": self._tool, **failed}
        self._stream.telemetry.tool_seconds.record(seconds, attributes, self.current)
