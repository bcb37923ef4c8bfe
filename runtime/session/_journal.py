"""The entries that a stream writes to the store of its session, so that the session outlives the process.

A stream writes to its session only through its `SessionLog`. The log passes each change to the `Journal` of the
session's store, as one of the entries in this file. The store keeps the sum of the entries: the session, the state of
each tool call that has no result yet, and the open questions to the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias

from channels import SupportsDone

from .._dataclasses import dataclass, field, replace
from ..permissions import Rule
from ..usage import Usage
from ._message import Message

RequestKind: TypeAlias = Literal["approval", "question", "turns"]
#: Where the hooks are that are told of a message: one that comes while the agent is at work, or for afterwards.
MailPoint: TypeAlias = Literal["user_steering_messages_submit", "user_followup_submit"]
#: Of a session in a store: ``running`` under a lease, ``waiting`` for the user, ``interrupted`` when the process that
#: ran it has died, else ``idle``.
Status: TypeAlias = Literal["idle", "running", "waiting", "interrupted"]


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the user that the store keeps: the approval of a tool call, a question of a tool or of an MCP
    server, or whether a run may take more turns.

    ``event`` is the wire form of the event that the consumer was sent. ``answer`` is what `Store.answer` takes.
    ``ordinal`` numbers the questions that one call asks, from 0.
    """

    id: str
    session_id: str
    root_id: str  # the session whose consumer answers: that of the outermost stream
    kind: RequestKind
    event: Mapping[str, Any]
    call_id: str | None = None
    arguments: str | None = None  # of the call whose approval is asked for, in JSON: hooks may have changed the model's
    ordinal: int = 0
    schema: Mapping[str, Any] | None = None  # of the content of an accepted answer
    expires_at: datetime | None = None
    answer: Mapping[str, Any] | None = None
    answered_by: str = ""

    @property
    def expired(self) -> bool:
        """Whether the time to answer is over without an answer."""
        return self.answer is None and self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    def answered(self, answer: Mapping[str, Any], by: str = "") -> Request:
        """The request with its answer."""
        return replace(self, answer=answer, answered_by=by)


# -- entries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A new message of the session. A message of an assistant opens its tool calls. ``mail`` is the id of the `Mailed`
    that it was, which is taken with this.
    """

    message: Message
    mail: str | None = None


@dataclass(frozen=True, slots=True)
class Requested:
    """A question to the user, which is stored before the user is asked."""

    request: Request


@dataclass(frozen=True, slots=True)
class Began:
    """The tool of a call is about to be entered, with these arguments in JSON (hooks may have changed them)."""

    call_id: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a resumable tool was made, and this (JSON) is what it returned (`ToolContext.once`)."""

    call_id: str
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """A call has its result. Its requests that nobody has answered are withdrawn with it."""

    message: Message  # its `tool_call_id` says which


@dataclass(frozen=True, slots=True)
class Partial:
    """The part of a model's reply that has arrived so far. The next `Said` of an assistant replaces it."""

    text: str
    agent_name: str


@dataclass(frozen=True, slots=True)
class Counted:
    """The usage of a model call that left no message."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Named:
    """The session has a title."""

    title: str


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The conversation was handed to another agent."""

    agent_name: str


@dataclass(frozen=True, slots=True)
class Shortened:
    """What a model is shown in place of the first messages (`Compacted`, as its fields)."""

    summary: str
    start: int
    shortened: int
    at: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """The user has approved the calls that ``rule`` is about for the whole session, or all calls with None."""

    rule: Rule | None


@dataclass(frozen=True, slots=True)
class Mailed:
    """A steering message or a follow-up that the agent has not taken yet."""

    id: str
    point: MailPoint
    text: str


Entry: TypeAlias = (
    Said | Requested | Began | Step | Ended | Partial | Counted | Named | HandedOver | Shortened | Allowed | Mailed
)


class Journal(Protocol):
    """The writing end of one session in a store, for as long as a stream holds the lease. Thread-safe.

    Entries are written in the order of the calls, each call in one transaction. Once one has failed, every later call
    raises the same error, and writes nothing: a store never has a gap.
    """

    def append(self, *entries: Entry, cancel: SupportsDone | None = None) -> None:
        """Write the entries, and wait until they are durable, and all that was posted before; without entries, wait for
        these alone.

        Raises `StoreError` where that fails, `LeaseLost` where another process has taken the session over, and
        `Cancelled` when ``cancel`` is done first: the entries are on their way then, and are written if the store can.
        """
        ...

    def post(self, *entries: Entry) -> None:
        """Write the entries without waiting for them; raises nothing. The next `append` or `release` finds out."""
        ...

    def release(
        self, status: Status, reason: str = "", *, timeout: float | None = None, cancel: SupportsDone | None = None
    ) -> None:
        """Give the lease back, once all is written. Raises as `append`, and `StoreError` after ``timeout`` seconds: if
        the store cannot do it later, the lease runs out by itself. With another status than ``waiting``, requests that
        nobody has answered are withdrawn. Twice is harmless.
        """
        ...


# -- what a loaded session knows ---------------------------------------------------------------------------------------

CallPhase: TypeAlias = Literal["open", "asked", "approved", "refused", "began"]


@dataclass(frozen=True, slots=True)
class CallState:
    """How far a tool call without a result had come, by what the store has of it.

    ``open``: nothing was decided. ``asked``: its approval is waited for. ``approved``, ``refused``: the user has
    decided. ``began``: its tool was entered, so it may have taken effect.
    """

    call_id: str
    phase: CallPhase = "open"
    arguments: str | None = None  # of its `Began`, or else of the request for its approval; None: those of the model
    nested: tuple[str, ...] = ()  # the ids of the sessions that it ran agents on, in the order of their opening
    kept: Mapping[str, Any] = field(default_factory=dict)  # what each `Step` returned, by key
    requests: tuple[Request, ...] = ()  # in the order of their asking


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The unfinished work of a session that was loaded from its store."""

    calls: Mapping[str, CallState]  # those without a result, by id
    requests: tuple[Request, ...] = ()  # that belong to no call: whether the run may take more turns
    mail: tuple[Mailed, ...] = ()  # that the agent has not heard
