"""The life of a stream: it is opened, it has one worker and one end, and it knows no turns."""

from ._event_stream import EventStream
from ._forwarder import Observer
from ._scope import EventSink, stream_scope

__all__ = [
    "EventSink",
    "EventStream",
    "Observer",
    "stream_scope",
]
