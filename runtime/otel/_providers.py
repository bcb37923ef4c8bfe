"""Whether anybody is told what a provider of OpenTelemetry takes. What is told to nobody need not be made."""

from __future__ import annotations

from typing import Any, Final

#: The API's own providers, which take nothing. Another class is an SDK's.
_API: Final = ("opentelemetry.trace", "opentelemetry.metrics")


def is_sdk(provider: object) -> bool:
    """Whether a provider of traces or metrics is an SDK's."""
    return not type(provider).__module__.startswith(_API)


def has_processors(provider: object) -> bool:
    """Whether a provider of traces has span processors, as it has none with ``OTEL_TRACES_EXPORTER=none``."""
    return is_sdk(provider) and _has(provider, "_active_span_processor", "_span_processors")


def has_readers(provider: object) -> bool:
    """Whether a provider of metrics has metric readers, as it has none with ``OTEL_METRICS_EXPORTER=none``."""
    return is_sdk(provider) and _has(provider, "_measurement_consumer", "_reader_storages")


def _has(provider: object, part: str, members: str) -> bool:
    """Whether a part of the SDK has members. Both names are the SDK's own, and not promised: where they are not found,
    which is so in another SDK, it counts as one that has."""
    found: Any = getattr(getattr(provider, part, None), members, None)
    return bool(found) if isinstance(found, (tuple, list, dict)) else True
