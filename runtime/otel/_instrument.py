"""`instrument` and `uninstrument`. OpenTelemetry is imported when the first of them is called, not before."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING

from .._checks import check
from .._errors import MissingExtra
from ..runtime import Runtime
from ..stream._core import Shared
from ..stream._tracing import UNTRACED, for_new_runtimes

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def instrument(
    runtime: Runtime | None = None,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    redact: Callable[[str], str] | None = None,
) -> None:
    """Trace and measure the streams of ``runtime`` that start from now on, with OpenTelemetry.

    Without a ``runtime``, the streams of all runtimes that are made from now on are traced, such as the runtime of the
    command ``lockgate`` and those of `runtime.serve`.

    Each run is a span ``invoke_agent``, which contains the spans of its model calls (``chat``), its tool calls
    (``execute_tool``, or ``tools/call`` for a tool of an MCP server) and the runs of sub-agents. Its parent is the span
    that is current where `Runtime.run_stream` is called. Spans that tools, hooks and models start are inside the span
    of their call. All spans are ended, however the run ends, with the reason as ``error.type``.

    Without a ``tracer_provider`` and a ``meter_provider``, the providers of the process are used, which may be set
    later. The texts of users, models and tools are sent only if the environment variable
    ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true`` now. Secrets are then removed, as in a
    `Recording`, and ``redact`` gets each text and returns the text to send.

    Spans are started and ended on a helper thread, with the times at which things happened, so that span processors and
    exporters cannot make a run fail or delay it; only the span of the run is started where the stream is opened. At its
    end, a run waits for them, at most for the grace time. A second call changes the settings for runs that start later;
    no span is doubled. Thread-safe. Raises `MissingExtra` if OpenTelemetry is not installed.
    """
    check("what to instrument", runtime, (Runtime, NoneType), "a Runtime, such as Runtime(agent)")
    check("redact", redact, (Callable, NoneType), "a function of a text")  # type: ignore[arg-type]
    _check_provider("tracer_provider", tracer_provider, "get_tracer", "a TracerProvider")
    _check_provider("meter_provider", meter_provider, "get_meter", "a MeterProvider")
    try:
        from ._telemetry import Telemetry
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise MissingExtra("OpenTelemetry", "otel") from error

    def traced(shared: Shared) -> Telemetry:
        return Telemetry(shared.helpers, shared.grace, tracer_provider, meter_provider, redact)

    if runtime is None:
        for_new_runtimes[:] = [traced]
    else:
        runtime._shared.tracing = traced(runtime._shared)


def _check_provider(name: str, given: object, method: str, what: str) -> None:
    """By what it can do: SDKs have classes of their own."""
    if given is not None and (isinstance(given, type) or not callable(getattr(given, method, None))):
        raise TypeError(f"{name} must be {what} of OpenTelemetry, not {given!r:.200}")


def uninstrument(runtime: Runtime | None = None) -> None:
    """Stop tracing and measuring streams that start from now on. Streams that run are traced to their end. Without a
    ``runtime``, those of runtimes that are made from now on.

    Harmless if nothing was instrumented.
    """
    check("what was instrumented", runtime, (Runtime, NoneType), "a Runtime")
    if runtime is None:
        for_new_runtimes.clear()
    else:
        runtime._shared.tracing = UNTRACED
