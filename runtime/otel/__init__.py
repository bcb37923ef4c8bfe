"""OpenTelemetry: the streams of a runtime as spans and metrics that follow the semantic conventions for generative AI.

    from runtime.otel import instrument

    instrument(runtime)

Install it with ``pip install 'lockgate[otel]'``, and an SDK with an exporter of your choice. docs/telemetry.md says
what is sent.
"""

from .._public import publish
from ._instrument import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]

publish(__name__, globals(), __all__)
