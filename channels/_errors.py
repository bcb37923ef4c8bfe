"""What a channel operation can say instead of succeeding. A timeout is the built-in `TimeoutError`."""

from __future__ import annotations


class ChannelClosed(Exception):
    """The channel is closed: a send is refused, a receive has drained it. (Go panics, or says ``ok == false``.)"""


class WouldBlock(Exception):
    """The operation could not go ahead at once: Go's ``default`` case."""


class Cancelled(Exception):
    """The wait was given a ``cancel=`` that is done. `cause` says why, when the canceller said."""

    def __init__(self, cause: object = None) -> None:
        super().__init__("cancelled" if cause is None else f"cancelled: {cause}")
        self.cause = cause
