"""What fails in OpenTelemetry, or stands still there, reaches no run."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult

from channels import Channel
from channels._timer import THREAD_NAME
from runtime import Agent, Runtime, Session, tool
from runtime.execution._helpers import HelperPool
from runtime.otel import instrument
from runtime.otel._finisher import Finisher
from support.scripted import Scripted, Stall, call, say
from support.telemetry import Telemetry


@tool(read_only=True)
def act() -> str:
    """Does something."""
    return "ok"


def agent() -> Agent:
    return Agent("a", Scripted([call("act")], say("x")), tools=[act])


class Broken(SpanProcessor):
    """Raises where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        if self.where == "start":
            raise LookupError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "end":
            raise LookupError("on_end")


class BrokenSampler(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise LookupError("sampler")

    def get_description(self) -> str:
        return "broken"


class BrokenExporter(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise SystemExit("exporter")


def provider(what: str) -> TracerProvider:
    made = TracerProvider(BrokenSampler()) if what == "sampler" else TracerProvider()
    if what == "exporter":
        made.add_span_processor(SimpleSpanProcessor(BrokenExporter()))
    elif what != "sampler":
        made.add_span_processor(Broken(what))
    return made


@pytest.mark.parametrize("what", ["start", "end", "sampler", "exporter"])
def test_what_raises_is_logged_once_and_the_run_goes_on(what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "runtime")
    with Runtime(agent()) as runtime:
        instrument(runtime, tracer_provider=provider(what))
        assert runtime.run(Session.from_user("go")).text == "x"
    said = [record.levelno for record in caplog.records if record.name.startswith("runtime")]
    assert said == [logging.WARNING]


def test_metrics_that_raise(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    class Meters:
        def get_meter(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def create_histogram(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def record(self, *args: Any) -> None:
            raise LookupError("record")

    with Runtime(agent()) as runtime:
        instrument(runtime, tracer_provider=telemetry.tracers, meter_provider=Meters())  # type: ignore[arg-type]
        assert runtime.run(Session.from_user("go")).text == "x"
    assert telemetry.is_whole()
    assert sum("OpenTelemetry failed" in record.getMessage() for record in caplog.records) == 1


def test_a_model_whose_settings_raise(telemetry: Telemetry) -> None:
    class Odd(Scripted):
        @property
        def settings(self) -> Any:
            raise LookupError("settings")

    with telemetry.instrument(Runtime(Agent("a", Odd(say("x"))))) as runtime:
        runtime.run(Session.from_user("go"))
    assert telemetry.is_whole()
    assert telemetry.span("chat scripted").attributes["gen_ai.request.model"] == "scripted"


class Stuck(SpanExporter):
    """Stands still."""

    def __init__(self) -> None:
        self.stall = Stall()
        self.seen: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.stall()
        self.seen += [span.name for span in spans]
        return SpanExportResult.SUCCESS


def test_an_exporter_that_stands_still_holds_up_no_event_and_no_later_run(caplog: pytest.LogCaptureFixture) -> None:
    """The first run waits for it when it has ended, for the grace time; those after it do not wait again."""
    stuck = Stuck()
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(stuck))
    model = Scripted(*[turn for n in range(5) for turn in ([call("act", id=str(n))], say("x"))])
    grace = 1.0
    with stuck.stall:
        runtime = Runtime(Agent("a", model, tools=[act]), grace=grace)
        instrument(runtime, tracer_provider=made)
        took = []
        for _ in range(5):
            began = time.monotonic()
            with runtime.run_stream(Session.from_user("go")) as stream:
                assert [event.type for event in stream][-1] == "stream_stopped"
                read = time.monotonic() - began
                assert read < grace, read  # the grace time is no part of it
            took.append(time.monotonic() - began)
        assert took[0] >= grace
        assert max(took[1:]) < grace
        [said] = [record for record in caplog.records if "were not ended within" in record.getMessage()]
        assert said.levelno == logging.WARNING
    runtime.close()
    assert len(stuck.seen) == 20  # once it goes on, it is given all of them


def test_spans_that_wait_for_an_exporter_without_end_are_dropped_at_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import runtime.otel._finisher as finisher

    monkeypatch.setattr(finisher, "_QUEUE", 3)
    stuck = Stuck()
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(stuck))
    with stuck.stall:
        runtime = Runtime(Agent("a", Scripted(*[say("x")] * 9)), grace=0.05)
        instrument(runtime, tracer_provider=made)
        for _ in range(9):
            runtime.run(Session.from_user("go"))
        assert sum("spans are dropped" in record.getMessage() for record in caplog.records) == 1
    runtime.close()
    assert len(stuck.seen) < 18


def test_no_processor_runs_on_the_worker_of_a_stream() -> None:
    ran = []

    class Where(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            ran.append(threading.current_thread().name)

    made = TracerProvider()
    made.add_span_processor(Where())
    with Runtime(agent()) as runtime:
        instrument(runtime, tracer_provider=made)
        runtime.run(Session.from_user("go"))
    assert len(ran) == 4
    assert all(name.startswith("lockgate-helper") for name in ran)


def test_an_executor_of_the_users_that_is_shut_down_or_full(telemetry: Telemetry) -> None:
    """Where there is no thread to be had, spans are ended where they are."""
    executor = ThreadPoolExecutor(1)
    with telemetry.instrument(Runtime(agent(), executor=executor)) as runtime:
        runtime.run(Session.from_user("go"))
        assert telemetry.is_whole()
        executor.shutdown()
        with pytest.raises(Exception, match="shutdown"):
            runtime.run(Session.from_user("go"))
    assert telemetry.is_whole()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_traces_streams_of_its_own(script: Callable[..., str]) -> None:
    said = script(
        """
import os, sys
sys.path[:0] = ["tests"]
from runtime import Agent, Runtime, Session
from support.scripted import Scripted, say
from support.telemetry import Telemetry

telemetry = Telemetry()
runtime = telemetry.instrument(Runtime(Agent("a", Scripted(say("x"), say("y")))))
runtime.run(Session.from_user("go"))
assert len(telemetry.kept.ended) == 2
if (pid := os.fork()) == 0:
    runtime.run(Session.from_user("go"))
    print(len(telemetry.kept.ended), telemetry.is_whole(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
""",
        stderr=None,
    )
    assert said.split() == ["4", "True"]


def test_spans_are_never_ended_on_the_timer_thread() -> None:
    """There an exporter that stands still would hold up every timer of the process."""
    helpers = HelperPool()
    helpers.close()  # as those of a runtime that was closed: the job is done without one
    names: Channel[str] = Channel(1)
    Finisher(helpers, lambda what: None).put(lambda: names.send(threading.current_thread().name))
    assert names.recv(timeout=5) != THREAD_NAME


def test_no_job_is_left_that_is_put_when_the_helper_leaves(threads: Any) -> None:
    """It comes when the helper has looked for the last time, and nothing is put after it."""
    done: Channel[str] = Channel(2)
    finisher = Finisher(HelperPool(), lambda what: None)

    class Jobs(deque[Any]):
        last = put = False

        def popleft(self) -> Any:
            self.last = not super().__len__()
            return super().popleft()

        def __len__(self) -> int:
            found = super().__len__()
            if self.last and not found and not self.put:  # once: each that comes so is the last one again
                self.put = True
                threads.go(finisher.put, lambda: done.send("late")).thread.join(0.2)
            return found

    finisher._jobs = Jobs()
    finisher.put(lambda: done.send("first"))
    assert [done.recv(timeout=5), done.recv(timeout=5)] == ["first", "late"]
