"""Logging: the loggers of `LOGGERS`, whose records say which run they are of, and hold no secrets.

Which run that is stands in a context variable, which travels wherever the work of a stream does. So a filter finds it
in records of other loggers too, such as those of a tool or of a library that it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Final

from channels._lazy import before_logging, lazy

from .foreign._redact import Redaction

if TYPE_CHECKING:
    import logging
else:
    logging = lazy("logging")

LOGGERS: Final = ("runtime", "runtime.mcp", "runtime.serve", "runtime.remote", "channels")
_FIELDS: Final = ("session_id", "agent_name")
_LONGEST: Final = 20_000  # characters of a message, or of a traceback, that are looked through for secrets and kept
_NOWHERE: Final[Mapping[str, object]] = {}

#: The session and the agent of the stream whose work this is. The mapping is the stream's own: agents may change.
_current: ContextVar[Mapping[str, object]] = ContextVar("the stream that is logged about", default=_NOWHERE)


def enter(context: Context, tags: Mapping[str, object]) -> None:
    """What runs in ``context``, or in a copy of it, is work of the stream with these ``tags``."""
    context.run(_current.set, tags)


class SessionFilter:
    """Adds the attributes ``session_id`` and ``agent_name`` to each log record: those of the run in which it was
    logged, or else empty ones. It lets every record pass.

    The records of ``runtime`` and ``channels`` have these attributes anyway. For the records of other loggers, add the
    filter to a handler: ``handler.addFilter(SessionFilter())``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete the record. Attributes that it has stay as they are."""
        tags = _current.get()
        for name in _FIELDS:
            if not hasattr(record, name):
                setattr(record, name, tags.get(name, ""))
        return True


class _OwnFilter(SessionFilter):
    """For our own loggers: it takes secrets out, too. What others log is theirs."""

    def filter(self, record: logging.LogRecord) -> bool:
        super().filter(record)
        with suppress(Exception):  # of an argument that cannot be shown: its handler will say so
            _redact(record)
        return True


def _redact(record: logging.LogRecord) -> None:
    """Take out what looks like a secret. A record without stays as it is, its exception too, for handlers that send
    that somewhere; in one with a secret, the text of the exception stands in its place.
    """
    redaction = Redaction()  # with the environment as it is now: programs load secrets into it as they go
    said = record.getMessage()
    clean = redaction.text(_bounded(said))
    if clean != said:
        record.msg, record.args = clean, ()
    if record.exc_info and record.exc_info[1] is not None:
        text = logging.Formatter().formatException(record.exc_info)
        clean = redaction.text(_bounded(text))
        if clean != text:
            record.exc_text, record.exc_info = clean, None


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


_own: Final = _OwnFilter()


def _prepare() -> None:
    """Harmless twice: a filter is in a logger once."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_own)


before_logging.append(_prepare)
