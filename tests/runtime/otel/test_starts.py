"""Spans are started where nobody waits for it, unless something that runs inside of them asks for them."""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult

from runtime import Agent, Runtime, Session, ToolContext, tool
from runtime.otel import instrument
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.telemetry import Kept, Telemetry
from support.waiting import eventually

MODELS = pytest.mark.parametrize("model", [Scripted, AsyncScripted])


@tool(read_only=True)
def act() -> str:
    """Does nothing."""
    return "ok"


def within(telemetry: Telemetry, look: Callable[[], object], *, model: type[Scripted] = Scripted) -> None:
    """A run with a tool that calls ``look``."""

    @tool(read_only=True)
    def looks() -> str:
        """Looks."""
        look()
        return "ok"

    agent = Agent("a", model([call("looks")], say("x")), tools=[looks])
    with telemetry.instrument(Runtime(agent)) as runtime:
        runtime.run(Session.from_user("go"))


def name(span: Any) -> str:
    """The name of a span; none where there is no span."""
    return getattr(span, "name", "")


class Watching(SpanProcessor):
    """Notes what is found where a span is started."""

    def __init__(self, look: Callable[[Span, Any], object]) -> None:
        self.look = look
        self.found: dict[str, Any] = {}

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.found[span.name] = self.look(span, parent_context)


@MODELS
def test_the_worker_starts_no_span(telemetry: Telemetry, model: type[Scripted]) -> None:
    """That of the run is started where the stream is opened, the others on a helper."""
    watching = Watching(lambda span, parent: threading.current_thread().name.rstrip("0123456789"))
    telemetry.tracers.add_span_processor(watching)
    agent = Agent("a", model([call("act")], say("x")), tools=[act])
    with telemetry.instrument(Runtime(agent)) as runtime:
        runtime.run(Session.from_user("go"))
    assert telemetry.is_whole()
    assert watching.found == {
        "invoke_agent a": threading.current_thread().name,
        "chat scripted": "lockgate-helper-",
        "execute_tool act": "lockgate-helper-",
    }


@MODELS
def test_the_span_of_what_goes_on_is_started_while_it_does(telemetry: Telemetry, model: type[Scripted]) -> None:
    """Processors that show what is under way are told of it."""
    with Stall() as stall:

        @tool(read_only=True)
        def slow() -> str:
            """Takes its time."""
            stall()
            return "ok"

        agent = Agent("a", model([call("slow")], say("x")), tools=[slow])
        with telemetry.instrument(Runtime(agent)) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            names = ["invoke_agent a", "chat scripted", "execute_tool slow"]
            assert eventually(lambda: [span.name for span in telemetry.kept.started] == names)
            assert eventually(lambda: [span.name for span in telemetry.kept.ended] == ["chat scripted"])
            stall.go_on.set()
            for _ in stream:
                pass
    assert telemetry.is_whole()


def test_times_are_those_of_the_work(telemetry: Telemetry) -> None:
    """And not those at which its span is started and ended."""
    ran: list[int] = []

    @tool(read_only=True)
    def noted() -> str:
        """Notes when it runs."""
        ran.append(time.time_ns())
        return "ok"

    turns = [[call("noted", id=str(n))] for n in range(5)]
    agent = Agent("a", Scripted(*turns, say("x")), tools=[noted], max_repeated_calls=None)
    began = time.time_ns()
    with telemetry.instrument(Runtime(agent)) as runtime:
        runtime.run(Session.from_user("go"))
    calls = sorted((s for s in telemetry.kept.ended if s.name.startswith("execute")), key=lambda s: s.start_time)
    assert len(calls) == len(ran) == 5
    for span, at in zip(calls, ran, strict=True):
        assert began <= span.start_time <= at + 1_000_000
        assert at - 1_000_000 <= span.end_time
    order = sorted((s for s in telemetry.kept.ended if not s.name.startswith("invoke")), key=lambda s: s.start_time)
    assert all(one.end_time <= next.start_time + 1_000_000 for one, next in itertools.pairwise(order))


READS: dict[str, Callable[[], Any]] = {
    "the current span": trace.get_current_span,
    "a value of the context": lambda: baggage.get_all(),
    "a context with more in it": lambda: trace.get_current_span(context.set_value("mine", 1)),
    "an item": lambda: list(context.get_current().values()),
    "a header": lambda: inject({}),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_whoever_reads_the_context_finds_the_span_of_its_call(telemetry: Telemetry, read: Callable[[], Any]) -> None:
    names: list[str] = []

    def look() -> None:
        read()
        names.extend(span.name for span in telemetry.kept.started if span.name.startswith("execute_tool"))
        found = trace.get_current_span()
        assert isinstance(found, ReadableSpan)
        names.append(found.name)
        [named] = [value for value in dict(context.get_current()).values() if isinstance(value, ReadableSpan)]
        names.append(named.name)

    within(telemetry, look)
    assert names == ["execute_tool looks"] * 3
    assert telemetry.is_whole()


def test_what_a_tool_says_on_the_current_span_is_on_its_call(telemetry: Telemetry) -> None:
    within(telemetry, lambda: trace.get_current_span().set_attribute("rows", 12))
    assert telemetry.span("execute_tool looks").attributes["rows"] == 12


def test_threads_of_a_tool_that_ask_at_once_find_the_same_span(telemetry: Telemetry) -> None:
    together = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        together.wait(10)
        found.append(trace.get_current_span())

    def look() -> None:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(ask,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    within(telemetry, look)
    assert [span.name for span in set(found)] == ["execute_tool looks"]
    assert len(found) == 8
    assert telemetry.is_whole()


def test_a_thread_that_a_tool_leaves_behind_stays_inside_of_its_call(telemetry: Telemetry) -> None:
    go, done = threading.Event(), threading.Event()

    def later() -> None:
        assert go.wait(10)
        telemetry.tracer.start_span("late").end()
        done.set()

    within(telemetry, lambda: threading.Thread(target=contextvars.copy_context().run, args=(later,)).start())
    go.set()
    assert done.wait(10)
    assert ("late", "execute_tool looks") in telemetry.parents()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_a_tool_forks_is_inside_of_its_call(telemetry: Telemetry) -> None:
    read, write = os.pipe()

    def look() -> None:
        if (pid := os.fork()) == 0:
            os.write(write, trace.get_current_span().get_span_context().span_id.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(pid, 0)

    within(telemetry, look)
    told = os.read(read, 8)
    os.close(read)
    os.close(write)
    assert told == telemetry.span("execute_tool looks").context.span_id.to_bytes(8, "big")


def test_processors_find_the_callers_context_and_the_parent(telemetry: Telemetry) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    watching = Watching(
        lambda span, parent: (tenant.get(), baggage.get_baggage("shop", parent), name(trace.get_current_span(parent)))
    )
    telemetry.tracers.add_span_processor(watching)
    token = tenant.set("tulips")
    attached = context.attach(baggage.set_baggage("shop", "17"))
    try:
        with telemetry.tracer.start_as_current_span("GET"):
            within(telemetry, lambda: None)
    finally:
        context.detach(attached)
        tenant.reset(token)
    assert watching.found.pop("GET")
    assert watching.found == {
        "invoke_agent a": ("tulips", "17", "GET"),
        "chat scripted": ("tulips", "17", "invoke_agent a"),
        "execute_tool looks": ("tulips", "17", "invoke_agent a"),
    }


@pytest.mark.parametrize("look", [trace.get_current_span, lambda: None], ids=["asked for", "not asked for"])
def test_a_processor_may_ask_for_the_current_span(telemetry: Telemetry, look: Callable[[], object]) -> None:
    """It is being started: what is outside of it is current still."""
    watching = Watching(lambda span, parent: name(trace.get_current_span()))
    telemetry.tracers.add_span_processor(watching)
    within(telemetry, look)
    assert watching.found["execute_tool looks"] == "invoke_agent a"


class Choosy(Sampler):
    """Drops the spans that it is given, and notes what it was told."""

    def __init__(self, *drops: str) -> None:
        self.drops = drops
        self.told: dict[str, Any] = {}

    def should_sample(self, parent: Any, trace_id: int, name: str, *more: Any, **kinds: Any) -> SamplingResult:
        found = more[1] if len(more) > 1 else kinds.get("attributes")
        self.told[name] = dict(found or {}), trace.get_current_span(parent).get_span_context().trace_id
        return SamplingResult(Decision.DROP if name in self.drops else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "choosy"


def test_a_sampler_is_told_of_each_span_and_what_it_drops_is_dropped(telemetry: Telemetry) -> None:
    sampler, kept = Choosy("execute_tool looks"), Kept()
    telemetry.tracers, telemetry.kept = TracerProvider(sampler), kept
    telemetry.tracers.add_span_processor(kept)
    within(telemetry, lambda: None)
    assert [span.name for span in kept.ended] == ["chat scripted", "chat scripted", "invoke_agent a"]
    told, parent = sampler.told["execute_tool looks"]
    assert told["gen_ai.tool.name"] == "looks"
    assert parent == kept.ended[-1].context.trace_id
    assert sampler.told["chat scripted"][0]["gen_ai.request.model"] == "scripted"
    [measured] = telemetry.points("gen_ai.execute_tool.duration")
    assert measured.count == 1


def test_a_processor_that_stands_still_at_a_start_holds_up_no_model_and_no_tool() -> None:
    with Stall() as stall:

        class Stuck(SpanProcessor):
            def on_start(self, span: Span, parent_context: Any = None) -> None:
                if not span.name.startswith("invoke_agent"):
                    stall()

        made = TracerProvider()
        made.add_span_processor(Stuck())
        with Runtime(Agent("a", Scripted([call("act")], say("x")), tools=[act]), grace=0.05) as runtime:
            instrument(runtime, tracer_provider=made)
            began = time.monotonic()
            assert runtime.run(Session.from_user("go")).text == "x"
            assert time.monotonic() - began < 5


def test_a_tool_waits_once_for_a_span_that_cannot_be_started() -> None:
    """A processor stands still over it. What the tool finds then is the span around its call."""
    took: list[float] = []
    found: list[str] = []
    with Stall() as stall:

        class Stuck(SpanProcessor):
            def on_start(self, span: Span, parent_context: Any = None) -> None:
                if span.name.startswith("execute_tool"):
                    stall()

        @tool(read_only=True)
        def looks() -> str:
            """Looks often."""
            assert stall.reached.wait(10)
            began = time.monotonic()
            found.extend(name(trace.get_current_span()) for _ in range(20))
            took.append(time.monotonic() - began)
            return "ok"

        made = TracerProvider()
        made.add_span_processor(Stuck())
        with Runtime(Agent("a", Scripted([call("looks")], say("x")), tools=[looks]), grace=0.2) as runtime:
            instrument(runtime, tracer_provider=made)
            assert runtime.run(Session.from_user("go")).text == "x"
    assert found == ["invoke_agent a"] * 20
    assert 0.2 <= took[0] < 2


def test_a_span_whose_start_outlasts_its_stream_is_ended_all_the_same(telemetry: Telemetry) -> None:
    """A tool has asked for it, and a processor stands still over it for longer than anybody waits."""
    with Stall() as stall:

        class Stuck(SpanProcessor):
            def on_start(self, span: Span, parent_context: Any = None) -> None:
                if span.name.startswith("execute_tool"):
                    stall()

        @tool(read_only=True, timeout=0.05)
        def looks() -> str:
            """Looks."""
            trace.get_current_span()
            return "ok"

        telemetry.tracers.add_span_processor(Stuck())
        runtime = telemetry.instrument(
            Runtime(Agent("a", Scripted([call("looks")], say("x")), tools=[looks]), grace=0.1)
        )
        assert runtime.run(Session.from_user("go")).text == "x"
        assert stall.reached.wait(10)
        assert eventually(lambda: "invoke_agent a" in {span.name for span in telemetry.kept.ended})
        assert not telemetry.is_whole()
    assert eventually(telemetry.is_whole)
    runtime.close()


@pytest.mark.parametrize("readers", [False, True], ids=["no readers", "readers"])
def test_spans_that_nobody_takes_are_not_made(telemetry: Telemetry, readers: bool) -> None:
    """A provider without processors is what OTEL_TRACES_EXPORTER=none makes. Metrics are measured all the same."""
    sampler = Choosy()
    meters = telemetry.meters if readers else MeterProvider()
    with Runtime(Agent("a", Scripted([call("act")], say("x")), tools=[act])) as runtime:
        instrument(runtime, tracer_provider=TracerProvider(sampler), meter_provider=meters)
        runtime.run(Session.from_user("go"))
    assert list(sampler.told) == ["invoke_agent a"]
    assert [point.count for point in telemetry.points("gen_ai.execute_tool.duration")] == [1] * readers
    assert [point.count for point in telemetry.points("gen_ai.client.operation.duration")] == [2] * readers


def test_without_processors_too_a_tool_finds_the_span_of_its_call() -> None:
    """It may hand it on to another process, which exports its own."""
    headers: dict[str, str] = {}
    sampler = Choosy()

    @tool(read_only=True)
    def asks(context: ToolContext) -> str:
        """Asks another process."""
        inject(headers)
        return "ok"

    with Runtime(Agent("a", Scripted([call("asks")], say("x")), tools=[asks])) as runtime:
        instrument(runtime, tracer_provider=TracerProvider(sampler))
        runtime.run(Session.from_user("go"))
    assert list(sampler.told) == ["invoke_agent a", "execute_tool asks"]
    assert headers["traceparent"].split("-")[1] == f"{sampler.told['execute_tool asks'][1]:032x}"


def test_processors_that_are_added_while_a_stream_runs_are_told_of_what_comes_after(telemetry: Telemetry) -> None:
    with Stall() as stall:
        made = TracerProvider(ALWAYS_ON)
        agent = Agent("a", Scripted([call("act")], [stall, *say("x")]), tools=[act])
        with Runtime(agent) as runtime:
            instrument(runtime, tracer_provider=made)
            stream = runtime.run_stream(Session.from_user("go"))
            assert stall.reached.wait(10)
            made.add_span_processor(telemetry.kept)
            stall.go_on.set()
            for _ in stream:
                pass
    assert {"chat scripted", "invoke_agent a"} <= {span.name for span in telemetry.kept.ended}


class Foreign:
    """A provider of another SDK, of which nothing is known."""

    def __init__(self, inner: TracerProvider) -> None:
        self.inner = inner

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.get_tracer(*args, **kwargs)


def test_providers_of_which_nothing_is_known_are_told_everything(telemetry: Telemetry) -> None:
    names: Sequence[str] = ("chat scripted", "invoke_agent a")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        instrument(runtime, tracer_provider=Foreign(telemetry.tracers))  # type: ignore[arg-type]
        runtime.run(Session.from_user("go"))
    assert [span.name for span in telemetry.kept.ended] == list(names)
