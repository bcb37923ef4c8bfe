"""The exceptions of channel operations. A timeout is the built-in `TimeoutError`."""

from __future__ import annotations


class ChannelClosed(Exception):
    """The channel is closed: a send is refused, a receive has drained it. (Go panics, or says ``ok == false``.)"""


class WouldBlock(Exception):
    """The operation could not go ahead at once: Go's ``default`` case."""


class Cancelled(BaseException):
    """The wait was given a ``cancel=`` that is done. `cause` says why, when the canceller said.

    No `Exception`, as in asyncio (since Python 3.8) and trio: it is no failure that a worker logs and outlives. A loop
    with ``except Exception: continue`` around a receive would spin for ever, and its group would never end.

    A cause that is an exception is its ``__cause__`` too. It can be pickled and copied if its cause can.
    """

    def __init__(self, cause: object = None) -> None:
        super().__init__(*(() if cause is None else (cause,)))  # what pickling and copying make it of again
        self.cause = cause
        if isinstance(cause, BaseException):
            self.__cause__ = cause

    def __str__(self) -> str:
        if self.cause is None:
            return "cancelled"
        try:
            return f"cancelled: {self.cause}"
        except Exception:  # a cause is anything, and this may be on its way into a log
            return f"cancelled: a {type(self.cause).__name__}"
