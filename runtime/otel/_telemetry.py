"""The spans and metrics of the streams of one runtime.

The worker of a stream only notes what happens, and when. What the SDK does with that is foreign code and takes its
time: spans are started and ended elsewhere (`_finisher`), many at once, at the times that were noted. A span that
something asks for earlier, such as a tool which starts a span of its own, is started at that moment (`_Within`).

Each operation is in its stream's table of open ones until its end is noted, and the end of the stream empties the
table: so no span is left open, whatever way the work has taken.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context as OtelContext
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
from ..stream._tracing import UNTRACED, Take, Traced
from ._attributes import Attributes, error_type, of_model, of_request, of_usage, provider_and_model
from ._content import Content, is_wanted
from ._finisher import Finisher
from ._providers import has_processors, has_readers, is_sdk

_logger = logging.getLogger("runtime")
SCOPE: Final = "lockgate"
#: The conventions that the names here are of: the last that were released.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
_LONGEST: Final = 500  # characters of a description
_AT_ONCE: Final = 20_000  # nanoseconds in which the clocks are read, unless the thread stood still between them
#: Reasons for which a stream ends that are no failure: it is done, or parked until the user has answered.
_NO_FAILURE: Final[Mapping[str, str]] = {"normal": "", "waiting": ""}

# Bounds of the buckets, as the conventions advise them.
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4.0**power for power in range(14))


def _now() -> tuple[int, int]:
    """The time, and the clock that what comes next is measured with, of one moment. A thread that had to wait for a
    processor between the two would move all that is measured by as long.
    """
    for _ in range(5):
        before = time.perf_counter_ns()
        wall, now = time.time_ns(), time.perf_counter_ns()
        if now - before < _AT_ONCE:
            break
    return wall, now


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
        """Whether anybody takes spans or metrics: an SDK, which may be set after `instrument` was called."""
        tracers, meters = self._providers
        return is_sdk(tracers or trace.get_tracer_provider()) or is_sdk(meters or metrics.get_meter_provider())

    def has_processors(self) -> bool:
        """Whether a span would be told to anybody, unless something asks for it."""
        return has_processors(self._providers[0] or trace.get_tracer_provider())

    def has_readers(self) -> bool:
        """Whether a measurement would be told to anybody."""
        return has_readers(self._providers[1] or metrics.get_meter_provider())

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
        self.current: OtelContext | None = None  # with the span of the agent in it
        self._agent: _AgentRun | None = None
        self.starting = threading.RLock()  # for _unstarted of all operations, and while a span is started
        self.ending = threading.Lock()  # for _taken and _failure of all operations
        self._models: dict[int, tuple[Attributes, Attributes]] = {}

    def begin(self) -> None:
        core = self.core
        try:
            self.current = core.context.run(otel_context.get_current)
        except Exception:
            self.telemetry.failed("the start of a span")
        self._agent = _AgentRun(self, core.agent, core.session.messages[-1:] if self.telemetry.content else ())
        self._agent.start_now()  # what comes later is in it
        self.current = self._agent.current
        if self.current is not None:
            core.context.run(otel_context.attach, self.current)

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
        call = _ModelCall(self, model, messages, tools, typed)
        call.start_later()
        return call

    def tool_call(
        self, call: ToolCall, tool: Tool, arguments: Mapping[str, Any], waited: float | None = None
    ) -> _ToolCall:
        made = _ToolCall(self, call, tool, arguments, waited)
        made.start_later()
        return made

    def refused(
        self, call: ToolCall, tool: Tool | None, why: str, result: ToolResult, waited: float | None = None
    ) -> None:
        refused = _ToolCall(self, call, tool, {}, waited)
        refused.made = False
        self.telemetry.finisher.put(refused.take)
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


class _Within(OtelContext):
    """OpenTelemetry's context inside of an operation. Its span is started when the context is first read.

    Until then, and where the span cannot be started, it holds what is outside of the operation. Reading it in a way
    that Python does not tell of, such as ``dict(context)``, finds the span of the agent then.
    """

    __slots__ = ("operation",)

    operation: _Operation | None  # until its span is in here

    def _start(self) -> None:
        operation = self.operation
        if operation is not None and not operation.start():
            self.operation = None  # nobody waits twice

    def become(self, context: OtelContext | None) -> None:
        """Hold what is in ``context`` from now on, and let go of the operation, which holds its stream."""
        if context is not None:
            dict.update(self, context)
        self.operation = None

    def get(self, key: str, default: Any = None) -> Any:
        self._start()
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._start()
        return super().__getitem__(key)

    def items(self) -> Any:
        self._start()
        return super().items()

    def values(self) -> Any:
        self._start()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._start()
        return super().copy()


def _before_fork() -> None:
    """A child that is forked inside of an operation has to know its span, which the child itself cannot start."""
    current = otel_context.get_current()
    if isinstance(current, _Within):
        current._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)


class _Operation:
    """A piece of work that is told as a span. The worker notes here what happens; the rest is done elsewhere.

    Invariant: an operation that is taken and closed is finished, or to be: by whichever of the two was the later.
    """

    __slots__ = (
        "_agent_name",
        "_began",
        "_ended",
        "_events",
        "_failure",
        "_given_up",
        "_recording",
        "_span",
        "_stream",
        "_taken",
        "_unfinished",
        "_unstarted",
        "_wall",
        "_within",
        "context",
        "current",
    )

    def __init__(self, stream: StreamSpans, agent: str) -> None:
        self._stream = stream
        self._agent_name = agent
        self._wall, self._began = _now()
        self._ended: int | None = None
        self._failure: tuple[str, str] | None = None  # ``error.type`` and a description, once it is closed
        self._events: list[tuple[str, int, Attributes]] | None = None
        self._unstarted = True
        self._within: weakref.ref[_Within] | None = None  # held by what runs in it, while there is something
        self._unfinished = True
        self._given_up = False  # the wait for its start
        self._taken = False  # by the finisher, which is then told when it is closed
        self._span: Span = INVALID_SPAN
        self._recording = False  # whether anybody is told of the span
        self.current = stream.current  # OpenTelemetry's context, with the span in it once that is started
        self.context: Context | None = None
        stream.open[self] = None

    def start_later(self) -> None:
        """Have the span started, on the helper or before by what runs inside of the operation and asks for it."""
        stream = self._stream
        try:
            within = _Within(stream.current or ())
            within.operation = self
            context = stream.core.context.copy()
            context.run(otel_context.attach, within)
            self._within, self.context = weakref.ref(within), context
        except Exception:
            stream.telemetry.failed("the start of a span")
        stream.telemetry.finisher.put(self.take)

    def start_now(self) -> None:
        self._taken = True
        self.start()

    def take(self) -> None:
        """On the helper: start the span, and end it if the operation is over by now, as short ones are."""
        stream = self._stream
        if stream.telemetry.has_processors():
            self.start()
        with stream.ending:
            self._taken = True
            closed = self._failure is not None
        if closed:
            self._finish()

    def start(self) -> bool:
        """Start the span, as of when the operation began. Once: others wait until it is started. In any thread.

        False if the wait was in vain.
        """
        telemetry, starting = self._stream.telemetry, self._stream.starting
        # Held while foreign code runs, so that no thread sees an operation without its span. A processor that stands
        # still holds up whoever asks for a span of this stream, for the grace time. One that asks for the span of which
        # it is being told finds what is outside.
        if not starting.acquire(timeout=min(telemetry.grace, threading.TIMEOUT_MAX)):
            return False
        try:
            if not self._unstarted:
                return True
            self._unstarted = False
            try:
                self._start()
            except Exception:
                telemetry.failed("the start of a span")
            finally:
                within = None if self._within is None else self._within()
                if within is not None:
                    within.become(self.current)
            if self._given_up:
                self._span.end(self._wall + self._took())
            return True
        finally:
            starting.release()

    def _start(self) -> None:
        name, kind, attributes = self.early()
        outside = self.current
        # In the context of the work, which samplers and processors may look at.
        self._span = self._stream.core.context.copy().run(
            self._stream.telemetry.tracer.start_span,
            name,
            outside,
            kind,
            attributes,
            start_time=self._wall,
            record_exception=False,
            set_status_on_exception=False,
        )
        self._recording = self._span.is_recording()
        self.current = set_span_in_context(self._span, outside)

    def note(self, name: str, attributes: Attributes) -> None:
        """An event of the span."""
        if self._events is None:
            self._events = []
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
        with self._stream.ending:
            self._failure = self._failure or (error, description)
            taken = self._taken
        if taken:
            self._stream.telemetry.finisher.put(self._finish)
        self._stream.open.pop(self, None)
        self.context = None  # by far the largest part: many wait to be finished

    def _finish(self) -> None:
        """On the helper, where everything may take its time."""
        if not self._unfinished:  # it was put twice: an exception came in, or it was closed while it was taken
            return
        self._unfinished = False
        telemetry = self._stream.telemetry
        if telemetry.has_processors() or not self._unstarted:
            self._given_up = not self.start()  # then whoever starts it still ends it as well
        error, description = self._failure or ("", "")
        took = self._took()
        failed: Attributes = {"error.type": error} if error else {}
        try:
            if self._recording:
                try:
                    self._tell(failed, description)
                except Exception:
                    telemetry.failed("the attributes of a span")
            if not self._unstarted:
                self._span.end(self._wall + took)
        except Exception:
            telemetry.failed("the end of a span")
        try:
            if telemetry.has_readers():
                self.measure(took / 1e9, failed)
        except Exception:
            telemetry.failed("a metric")

    def _took(self) -> int:
        """How long the operation was under way, in nanoseconds."""
        return (self._ended or self._began) - self._began

    def _tell(self, failed: Attributes, description: str) -> None:
        telemetry, span = self._stream.telemetry, self._span
        if attributes := {**self.late(), **failed}:
            span.set_attributes(attributes)
        for name, at, given in list(self._events or ()):  # a late answer may add one
            span.add_event(name, given, at)
        if failed:
            text = telemetry.redaction.text(description[:_LONGEST]) if self.may_say(failed["error.type"]) else ""
            span.set_status(Status(StatusCode.ERROR, text or None))
        if telemetry.content is not None:
            span.set_attributes(self.content(telemetry.content))

    def common(self, operation: str) -> Attributes:
        """What every span says."""
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.conversation.id": self._stream.core.session.id,
            "gen_ai.agent.name": self._agent_name,
        }

    def early(self) -> tuple[str, SpanKind, Attributes]:
        """The span's name and kind, and what is known at the start."""
        raise NotImplementedError

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

    __slots__ = ("_agent", "_asked", "_ending", "_first", "_session")

    def __init__(self, stream: StreamSpans, agent: Agent, asked: Sequence[Message]) -> None:
        self._agent = agent
        self._asked = asked
        core = stream.core
        self._ending = core.ending
        self._session = core.session
        self._first = len(core.session.messages) if stream.telemetry.content else 0
        super().__init__(stream, agent.name)

    def early(self) -> tuple[str, SpanKind, Attributes]:
        known, _ = self._stream.known(self._agent.model)
        attributes = {**self.common("invoke_agent"), **known}
        if self._agent.description:
            attributes["gen_ai.agent.description"] = self._agent.description[:_LONGEST]
        return f"invoke_agent {self._agent_name}", SpanKind.INTERNAL, attributes

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
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": self._agent_name, **failed}
        self._stream.telemetry.agent_seconds.record(seconds, attributes, self.current)


class _ModelCall(_Operation):
    """``chat``: a model call, with all attempts that were made at it."""

    __slots__ = ("_asked", "_first", "_model", "_reply", "_typed")

    def __init__(
        self,
        stream: StreamSpans,
        model: Model,
        messages: Sequence[Message],
        tools: Sequence[ToolDefinition],
        typed: bool,
    ) -> None:
        self._model = model
        self._typed = typed
        self._asked = (messages, tools) if stream.telemetry.content is not None else ((), ())
        self._first: int | None = None
        self._reply: Message | None = None
        super().__init__(stream, stream.core.agent.name)

    def early(self) -> tuple[str, SpanKind, Attributes]:
        known, request = self._stream.known(self._model)
        attributes = {**self.common("chat"), **known, **request}
        if self._typed:
            attributes["gen_ai.output.type"] = "json"
        # The model of `runtime.models.local` computes in this process.
        kind = SpanKind.INTERNAL if known["gen_ai.provider.name"] == "local" else SpanKind.CLIENT
        return f"chat {known['gen_ai.request.model']}", kind, attributes

    def watch(self, take: Take) -> Take:
        def heard(batch: Sequence[Any]) -> object:
            if self._first is None:
                self._first = time.perf_counter_ns()
            return take(batch)

        return heard

    def said(self, reply: Message) -> None:
        self._reply = reply

    def __enter__(self) -> _ModelCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if isinstance(error, Cancelled):
            self.let_go()
            return
        if isinstance(error, StopRun):
            error = error.__cause__ or error
        self.close(error_type(error), describe(error))

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
        attributes = {"gen_ai.operation.name": "chat", **self._stream.known(self._model)[0]}
        if reply is not None and reply.model:
            attributes["gen_ai.response.model"] = provider_and_model(reply.model)[1]
        telemetry.model_seconds.record(seconds, {**attributes, **failed} if failed else attributes, self.current)
        if self._first is not None:
            telemetry.first_seconds.record((self._first - self._began) / 1e9, attributes, self.current)
        if reply is not None and reply.usage is not None:
            for kind, tokens in (("input", reply.usage.input_tokens), ("output", reply.usage.output_tokens)):
                telemetry.model_tokens.record(tokens, {**attributes, "gen_ai.token.type": kind}, self.current)


class _ToolCall(_Operation):
    """``execute_tool``: a tool call; one of an MCP server is told in the words for these as well."""

    __slots__ = ("_arguments", "_call", "_result", "_tool", "_waited", "made")

    def __init__(
        self,
        stream: StreamSpans,
        call: ToolCall,
        tool: Tool | None,
        arguments: Mapping[str, Any],
        waited: float | None,
    ) -> None:
        self._call = call
        self._tool = tool
        self._arguments = arguments
        self._waited = waited
        self._result: ToolResult | None = None
        self.made = True
        super().__init__(stream, stream.core.agent.name)

    def early(self) -> tuple[str, SpanKind, Attributes]:
        tool = self._tool
        attributes = self.common("execute_tool")
        attributes["gen_ai.tool.call.id"] = self._call.id
        name, kind = "execute_tool", SpanKind.INTERNAL  # a tool that is not there has any name
        if tool is not None:
            name = f"execute_tool {tool.name}"
            attributes["gen_ai.tool.name"] = tool.name
            attributes["gen_ai.tool.type"] = "extension" if tool.server else "function"
            if tool.description:
                attributes["gen_ai.tool.description"] = tool.description[:_LONGEST]
            if tool.server:
                attributes["lockgate.mcp.server"] = tool.server
            if method := tool.traced.get("mcp.method.name"):  # one span is both, as the conventions want it
                name, kind = f"{method} {tool.name}", SpanKind.CLIENT
            attributes |= tool.traced
        if self._waited is not None:
            attributes["lockgate.approval.wait"] = self._waited
        return name, kind, attributes

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
        name = "" if self._tool is None else self._tool.name
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, **failed}
        self._stream.telemetry.tool_seconds.record(seconds, attributes, self.current)
