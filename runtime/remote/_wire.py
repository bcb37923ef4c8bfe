"""What a caller and its worker say to each other, over two lanes of a connection.

======== ================== ==========================================================================
lane     from               what
======== ================== ==========================================================================
events   caller             one `Job`: the session, and how it is run
events   worker             the events of the stream, each as `Event.to_dict`; at last an `End`
requests caller             ``{"id": 1, "do": "respond", ...}``; at last maybe ``{"do": "cancel"}``
requests worker             ``{"id": 1, "value": ...}`` or ``{"id": 1, "error": ..., "message": ...}``;
                            at last ``{"over": ...}``: the worker has let go of the run
======== ================== ==========================================================================

All of it is JSON. What an `End` says of the session is what the run has changed in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import NoneType
from typing import Any, Final, get_args

from .._dataclasses import asdict, dataclass, field, fields
from ..events import Event, StopReason, StreamStopped
from ..session._message import Message
from ..session._session import Compacted, Session, Stored
from ..usage import Usage

VERSION: Final = 1
REQUESTS: Final = 64  # that may be under way, in each direction

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)
_scan: Final = json.JSONDecoder().decode


def write(value: Any) -> bytes:
    """An event, an `End` or another value that JSON can say."""
    if isinstance(value, Event):
        value = value.to_dict()
    elif isinstance(value, (End, Job)):
        # Not `asdict`, which copies what is in them: a whole session, message by message.
        value = {type(value).__name__: {each.name: getattr(value, each.name) for each in fields(value)}}
    return _encoder.encode(value).encode("utf-8", "surrogatepass")


def read(body: bytes) -> Any:
    """What `write` has written, but for events. Raises `ValueError`."""
    return _scan(body.decode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to run."""

    session: dict[str, Any]  # as `Session.to_dict`
    stored: dict[str, Any] | None  # what the session knows of its copy in a store
    interactive: bool = True
    budget: dict[str, Any] | None = None
    output_type: str | None = None
    quiet: bool = False  # the caller wants the requests and the last event only
    carrier: dict[str, str] = field(default_factory=dict)  # the context of a trace, as W3C has it


@dataclass(frozen=True, slots=True)
class End:
    """How a run has ended. ``session`` is what it has changed in its session (`changes`)."""

    stopped: dict[str, Any]  # the last event
    code: str = ""
    message: str = ""
    cause: str = ""  # the exception that has ended it, with its traceback
    failures: Sequence[str] = ()
    usage: dict[str, Any] | None = None
    output: Any = None
    session: dict[str, Any] | None = None

    def event(self) -> StreamStopped:
        """The last event. Raises `ValueError` and `TypeError`, also where something else of it is not sound: whoever
        asks for the result is not the one to find that out."""
        event = Event.from_dict(self.stopped)
        if not isinstance(event, StreamStopped):
            raise ValueError(f"a run ends with a stream_stopped, not with a {event.type}")
        if event.reason not in get_args(StopReason):
            raise ValueError(f"a run does not end for the reason {event.reason!r:.100}")
        if not all(isinstance(text, str) for text in (self.code, self.message, self.cause, *self.failures)):
            raise TypeError("the errors of a run are text")
        if self.usage is not None:
            usage = Usage(**self.usage)
            if not all(isinstance(count, (int, float, NoneType)) for count in asdict(usage).values()):
                raise TypeError("a usage is made of numbers")
        return event


def job_of(session: Session, **settings: Any) -> Job:
    """The job that runs ``session``."""
    stored = session._stored
    return Job(session.to_dict(), None if stored is None else asdict(stored), **settings)


def session_of(job: Job) -> Session:
    """The session of a job, for the worker. Raises `ValueError`, `KeyError` and `TypeError`."""
    session = Session.from_dict(job.session)
    if job.stored is not None:
        session._stored = Stored(**job.stored)
    return session


def changes(session: Session, before: Sequence[Message]) -> dict[str, Any]:
    """What a run has changed in its session, which had the messages ``before``."""
    now = list(session._messages)
    kept = next((i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old is not new), None)
    if kept is None:
        kept = min(len(before), len(now))
    whole = session.to_dict()
    del whole["messages"], whole["id"]
    stored = session._stored
    return {
        "kept": kept,
        "messages": [message.to_dict() for message in now[kept:]],
        "stored": None if stored is None else asdict(stored),
        **whole,
    }


def apply(session: Session, said: dict[str, Any]) -> None:
    """Make the same changes in the caller's session, which has its lease. Raises, and then nothing is changed."""
    kept = said["kept"]
    if not 0 <= kept <= len(session._messages):
        raise ValueError(f"the session has {len(session._messages)} messages; {kept} of them are to be kept")
    messages = [Message.from_dict(each) for each in said["messages"]]
    other = Session.from_dict({**said, "id": session.id, "messages": ()})
    usage = None if said["usage"] is None else Usage(**said["usage"])
    compacted = Compacted(**said["compacted"])
    stored = None if said["stored"] is None else Stored(**said["stored"])
    with session._lock:
        session._messages[kept:] = messages
        session._permissions = other._permissions
        session._settled = min(session._settled, kept)
        session._call_ids, session._sizes = (0, set()), None
        session._agent_name, session._compacted, session._usage = other._agent_name, compacted, usage
        session.title = other.title
        if stored is not None:
            session._stored, session._unfinished = stored, None
