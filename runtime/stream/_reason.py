"""Why a stream ended: decided once, by its worker, and told in the last event. The way there is in `_ending`."""

from __future__ import annotations

from typing import TypedDict

from .._errors import Portable
from ..events import StopReason, StreamStopped


class StopRun(Portable):
    """Ends the stream. Raised by whoever finds the reason, handled in one place: the worker.

    ``note`` is what the session says of it, for the model that goes on with it some other time.
    """

    def __init__(self, reason: StopReason, code: str, message: str, *, note: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.note = note


class Tags(TypedDict):
    """What every event of a stream is marked with."""

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
        """Say how it ends. ``code`` and ``message`` are those of the `Error` event, ``error`` is what was raised."""
        if not self.decided:
            self.decided = True
            self.reason, self.code, self.message, self.error = reason, code or reason, message, error

    def stopped(self) -> StreamStopped:
        """The last event, the same for all who ask once it is decided how the stream ends."""
        if self._stopped is None or self._stopped.reason != self.reason:
            self._stopped = StreamStopped(self.reason, **self._tags)
        return self._stopped

    def __repr__(self) -> str:
        return f"<Ending {self.reason if self.decided else 'undecided'}>"
