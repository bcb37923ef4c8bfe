"""OpenTelemetry's SDK with what it would send kept in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from runtime import Runtime
from runtime.otel import instrument


class Kept(SpanProcessor):
    """The spans that were started, and those of them that were ended."""

    def __init__(self) -> None:
        self.started: list[Span] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


class Telemetry:
    """Providers of traces and metrics, and what they were told."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(self.kept)
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("of the user")

    def instrument(self, runtime: Runtime, **more: Any) -> Runtime:
        instrument(runtime, tracer_provider=self.tracers, meter_provider=self.meters, **more)
        return runtime

    def span(self, name: str) -> ReadableSpan:
        """The one ended span of this name."""
        [found] = [span for span in self.kept.ended if span.name == name]
        return found

    def parents(self) -> list[tuple[str, str]]:
        """The names of all ended spans, each with that of its parent, in alphabetical order."""
        names = {span.context.span_id: span.name for span in self.kept.started}
        return sorted(
            (span.name, names[span.parent.span_id] if span.parent is not None else "") for span in self.kept.ended
        )

    def outcomes(self) -> dict[str, Any]:
        """The ``error.type`` of each ended span, by its name."""
        return {span.name: span.attributes.get("error.type") for span in self.kept.ended}

    def is_whole(self) -> bool:
        """Whether every span that was started was ended once, as it says itself."""
        started = sorted(span.context.span_id for span in self.kept.started)
        ended = sorted(span.context.span_id for span in self.kept.ended)
        return started == ended and all(span.end_time >= span.start_time for span in self.kept.ended)

    def points(self, metric: str) -> list[Any]:
        """What was measured."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
            for point in each.data.data_points
        ]
