"""The exceptions of the runtime, as a caller meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from channels import Cancelled

_LONGEST: Final = 50_000  # characters of the text of an exception: a traceback of another program may be one

ModelErrorCode: TypeAlias = Literal[
    "no_key",
    "unauthorized",
    "no_credit",
    "unknown_model",
    "bad_request",
    "context_overflow",
    "refused",
    "rate_limited",
    "overloaded",
    "server_error",
    "unreachable",
    "stalled",
    "bad_response",
]


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class Portable(Exception):
    """An exception that survives pickling and copying, whatever its ``__init__`` takes.

    Python makes a pickled exception anew by calling its class with ``args``. One whose ``__init__`` takes something
    else cannot be read back: a process pool that it was sent through breaks down, or waits for ever.
    """

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


class RunError(Portable):
    """A run did not end normally. Raised by `Runtime.run` and `EventStream.result`.

    ``code`` is the code of the `Error` event (``tool_failed``, ``hook_blocked``, ``model_error``, ``internal`` ...), or
    the reason of the end if there was no such event (``canceled``, ``max_iterations`` ...). ``reason`` is the reason of
    `StreamStopped`. The exception that ended the run, if there was one, is the ``__cause__``. ``stuck`` lists calls of
    the run that have not ended yet.
    """

    def __init__(
        self,
        code: str,
        message: str,
        reason: str,
        *,
        failures: Sequence[str] = (),
        stuck: StreamStuck | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.reason = reason
        self.stuck = stuck
        self._failures = tuple(failures)  # tracebacks of tools

    @property
    def traceback(self) -> str:
        """The tracebacks of the tools that failed in the run, the last few of them, and of what ended it. For people;
        it survives pickling, unlike ``__cause__``.
        """
        cause = self.__cause__
        tells = cause is not None and not isinstance(cause, Cancelled)
        import traceback  # not before there is something to tell: it brings the tokenizer along

        ended = ("".join(traceback.format_exception(cause)),) if tells else ()
        return "\n".join((*self._failures, *ended))

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        rebuild, (kind, args, state) = super().__reduce__()
        text = self.traceback
        return rebuild, (kind, args, {**state, "_failures": (text,) if text else ()})


class SessionBusy(Exception):
    """The session already has a live stream that is not about to end. A session can have only one at a time."""


class SessionNotFound(LookupError):
    """The store has no session with this id."""


class SessionChanged(Exception):
    """The store has more of the session than this copy knows: another copy of it was run meanwhile. Load it again."""


class StoreError(Exception):
    """A store could not be read or written. The text says why, and what to do. What was in the store is not lost."""


class StoreTooNew(StoreError):
    """The store was written by a later version of lockgate."""


class LeaseLost(StoreError):
    """Another process has taken the session over, because this one had not renewed its lease. It writes no more."""


class NotParkable(RuntimeError):
    """The run cannot be parked: it has no store, or something other than a question is under way. The text names it."""


class StillWaiting(RuntimeError):
    """The session waits for its user, and the run has nobody to ask. Nothing was run. The text names the requests."""


class NotRunning(LookupError):
    """The session has no stream, or its stream is too near its end to take the message. The message was not
    recorded."""


class StreamStuck(Exception):
    """Something that belongs to the stream did not end within the grace time.

    The text names the calls that still run, with their stacks; of many, the first few. They go on by themselves, and
    what they return is dropped. Raised by `EventStream.close` and by leaving the block of the stream. `Runtime.run` and
    `EventStream.result` do not raise it: they list the calls in ``RunResult.stuck`` or ``RunError.stuck``.
    """


class NotPending(LookupError):
    """There is no such open question: it was answered, was withdrawn, has timed out, or belongs to another stream."""


class InvalidAnswer(ValueError):
    """The answer does not fit the question. The question stays open."""


class MissingExtra(Portable, ImportError):
    """A feature needs a package that is not installed. The text names the package, and says how to install it."""

    def __init__(self, feature: str, extra: str, hint: str = "") -> None:
        super().__init__(f"{feature} needs an extra: pip install 'lockgate[{extra}]'{hint}")
        self.extra = extra


class ModelError(Portable):
    """A model call failed, before or during the reply. The text says why, and what to do.

    ``code`` is for programs. ``retryable`` says whether the same call may succeed a little later; ``retry_after`` is
    the number of seconds to wait, if the provider gave one. Neither the text nor the ``__cause__`` ever contains a key.

    The stream sends an `Error` event with the code ``model_error`` and this text. The exception is the cause of
    `RunError`.
    """

    def __init__(
        self, code: ModelErrorCode, message: str, *, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: ModelErrorCode = code
        self.retryable = retryable
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"ModelError({self.code!r}, {str(self)!r}, retryable={self.retryable}, retry_after={self.retry_after})"


class HookFailed(Exception):
    """A hook failed, or answered something that cannot be read. The stream goes on."""


class BadArguments(ValueError):
    """The arguments of a tool call are not what the tool takes. The model reads the text, and can call again."""


class NotInTime(TimeoutError):
    """A foreign call did not end within its timeout. An exception that the called function raises is never this one."""


def describe(error: BaseException) -> str:
    """An exception in one line, for people. Never raises: the text of an exception is foreign code."""
    try:
        text = str(error)
    except Exception as failed:
        return f"{type(error).__name__}, whose text cannot be had: {type(failed).__name__}"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    if isinstance(error, (HookFailed, ModelError, NotInTime, BadArguments, StoreError)):  # written for people
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
