"""The exceptions of channel operations. A timeout is the built-in `TimeoutError`."""

from __future__ import annotations


class ChannelClosed(Exception):
    """The channel is closed, so a value cannot be sent; or it is closed and drained, so none can be received. (In Go, a
    send panics and a receive returns ``ok == false``.)"""


class WouldBlock(Exception):
    """The operation would have to wait, and was called so that it does not: Go's ``default`` case."""


class Cancelled(BaseException):
    """The operation was called with a ``cancel=`` that is done. `cause` is the reason, if `CancelToken.cancel` was
    given one.

    `Cancelled` is not an `Exception`, as in asyncio (since Python 3.8) and trio, because a cancel is not a failure that
    a worker logs before it goes on: a loop with ``except Exception: continue`` around a receive would spin for ever,
    and its group would never end.

    If the cause is an exception, it is the ``__cause__`` too. `Cancelled` can be pickled and copied if its cause can.
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
