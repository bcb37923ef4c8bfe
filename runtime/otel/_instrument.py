"""`instrument` and `uninstrument`. OpenTelemetry is imported when the first of them is called, not before."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING

from .._checks import check
from .._errors import MissingExtra
from ..runtime import Runtime
from ..stream._tracing import UNTRACED

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def instrument(
    runtime: Runtime,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    redact: Callable[[str], str] | None = None,
) -> None:
    """Trace and measure the streams of ``runtime`` that start from now on, with OpenTelemetry.

    Each run is a span ``invoke_agent``. In it are its model calls (``chat``), its tool calls (``execute_tool``, or
    ``tools/call`` where the tool is of an MCP server) and the runs of sub-agents. Its parent is the span that is
    current where `Runtime.run_stream` is called; the spans of tools, hooks and models are its children. All of them end
    however the run ends, with the reason as ``error.type``.

    Without a ``tracer_provider`` and a ``meter_provider``, those of the process are used, which may be set later. What
    users, models and tools say is sent only where the environment variable
    ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true`` now, and without secrets, as in a `Recording`;
    ``redact`` is then given what is left of every text, and returns what may be sent.

    Spans are ended on a helper thread, where span processors and exporters can neither fail a run nor hold it up. A run
    waits for them when it has ended, for the grace time at most. Calling this again changes the settings, for runs that
    start later; no span is doubled. Thread-safe. Raises `MissingExtra` where OpenTelemetry is not installed.
    """
    check("what to instrument", runtime, Runtime, "a Runtime, such as Runtime(agent)")
    check("redact", redact, (Callable, NoneType), "a function of a text")  # type: ignore[arg-type]
    try:
        from ._telemetry import Telemetry
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise MissingExtra("OpenTelemetry", "otel") from error
    shared = runtime._shared
    shared.tracing = Telemetry(shared.helpers, shared.grace, tracer_provider, meter_provider, redact)


def uninstrument(runtime: Runtime) -> None:
    """Trace and measure no stream that starts from now on. Those under way are traced to their ends.

    Harmless where the runtime was not instrumented.
    """
    check("what was instrumented", runtime, Runtime, "a Runtime")
    runtime._shared.tracing = UNTRACED
