"""OpenTelemetry: the streams of a runtime as spans and metrics, in the terms of the semantic conventions for GenAI.

    from runtime.otel import instrument

    instrument(runtime)

Install with ``pip install 'lockgate[otel]'``, and an SDK with an exporter of your choice. What is sent, and where to,
is in docs/telemetry.md.
"""

from .._public import publish
from ._instrument import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]

publish(__name__, globals(), __all__)
