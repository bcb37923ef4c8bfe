"""Why a stream ended. The worker decides the reason once, and the last event tells it. The steps of the end are in
`_ending`."""

# Without `from __future__ import annotations`: a TypedDict compiles each annotation that is a text, and the first such
# compilation in a process takes a millisecond.

from typing import TypedDict

from .._errors import Portable
from ..events import StopReason, StreamStopped


class StopRun(Portable):
    """Ends the stream. It is raised where the reason is found, and handled in one place, the worker.

    ``note`` is a message for the session, which the model reads when the session is continued.
    """

    def __init__(self, reason: StopReason, code: str, message: str, *, note: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.note = note


class Tags(TypedDict):
    """The fields that all events of a stream have."""

    agent_name: str
    session_id: str


class Ending:
    """How a stream ends. Written by its worker only; the first decision stands, and until then it is "error"."""

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        self.decided = False
        self.reason: StopReason = "error"
        self.code = "internal"
        self.message = ""
        self.error: BaseException | None = None
        self._stopped: StreamStopped | None = None

    def decide(self, reason: StopReason, code: str = "", message: str = "", error: BaseException | None = None) -> None:
        """Decide how the stream ends. ``code`` and ``message`` are for the `Error` event, ``error`` is the
        exception."""
        if not self.decided:
            self.decided = True
            self.reason, self.code, self.message, self.error = reason, code or reason, message, error

    def stopped(self) -> StreamStopped:
        """The last event of the stream, always the same object once the reason is decided."""
        if self._stopped is None or self._stopped.reason != self.reason:
            self._stopped = StreamStopped(self.reason, **self._tags)
        return self._stopped

    def __repr__(self) -> str:
        return f"<Ending {self.reason if self.decided else 'undecided'}>"
