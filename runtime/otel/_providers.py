"""Whether anybody is told what a provider of OpenTelemetry takes. What is told to nobody need not be made.

The SDK's own attributes are asked, which are not promised: a provider that has none of these names counts as one that
tells somebody.
"""

from __future__ import annotations

from typing import Any, Final

#: The API's own providers, which take nothing. Another class is an SDK's.
_API: Final = ("opentelemetry.trace", "opentelemetry.metrics")


def is_sdk(provider: object) -> bool:
    """Whether a provider of traces or metrics is an SDK's."""
    return not type(provider).__module__.startswith(_API)


def has_processors(provider: Any) -> bool:
    """Whether a provider of traces has span processors, as it has none with ``OTEL_TRACES_EXPORTER=none``."""
    try:
        return bool(provider._active_span_processor._span_processors)
    except AttributeError:
        return is_sdk(provider)


def has_readers(provider: Any) -> bool:
    """Whether a provider of metrics has metric readers, as it has none with ``OTEL_METRICS_EXPORTER=none``."""
    try:
        return bool(provider._measurement_consumer._reader_storages)
    except AttributeError:
        return is_sdk(provider)
