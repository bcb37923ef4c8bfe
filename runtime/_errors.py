"""What can go wrong, as a caller meets it."""

from __future__ import annotations


class RunError(Exception):
    """A stream ended other than normally. Raised by `Runtime.run` and `EventStream.result`.

    ``code`` is that of the `Error` event (``tool_failed``, ``hook_blocked``, ``model_error``, ``internal`` ...), or
    the reason of the end where there was no such event (``canceled``, ``max_iterations`` ...). ``reason`` is that of
    `StreamStopped`. The exception in the worker, if there was one, is the ``__cause__``.
    """

    def __init__(self, code: str, message: str, reason: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.reason = reason


class SessionBusy(Exception):
    """The session already has a live stream; one at a time."""


class StreamStuck(Exception):
    """Something that belongs to the stream did not end within the grace time.

    The text names it, with its stack. It goes on by itself; what it returns late is dropped.
    """


class NotPending(LookupError):
    """No such question is waiting: it was answered, withdrawn or timed out, or belongs to another stream."""


class InvalidAnswer(ValueError):
    """The answer does not fit what was asked for. The question is still waiting for another one."""


class MissingExtra(ImportError):
    """A feature needs a package that is not installed. The text says which, and how to get it."""

    def __init__(self, feature: str, extra: str, hint: str = "") -> None:
        super().__init__(f"{feature} needs an extra: pip install 'lockgate[{extra}]'{hint}")
        self.extra = extra
