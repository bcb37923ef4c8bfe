"""`Snapshot`: what a store has of a session, at one moment; the session that it makes, and what an opening adds to it.

Stores differ in how they keep it. What it means is said here, once for all of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .._dataclasses import asdict, dataclass, field
from .._errors import SessionChanged
from ..foreign._sound import well_formed
from ..permissions import Rule
from ..session._journal import CallPhase, CallState, Mailed, Partial, Request, Status, Unfinished
from ..session._message import Message
from ..session._session import Session, Stored, settled
from ..usage import Usage
from ._store import Parent


@dataclass(slots=True)
class Call:
    """A tool call without a result."""

    seq: int  # of the message that made it, which tells it from an earlier one with the same id
    call_id: str
    arguments: str | None = None  # of its `Began`
    began: bool = False
    kept: dict[str, Any] = field(default_factory=dict)  # what each `Step` returned, by key
    nested: list[str] = field(default_factory=list)  # the sessions that it ran agents on, in the order of their opening

    def asked(self, requests: Sequence[Asking]) -> list[Request]:
        """The requests of this call, and of no earlier one with its id."""
        return [each.request for each in requests if each.request.call_id == self.call_id and each.at > self.seq]

    def state(self, requests: Sequence[Asking]) -> CallState:
        """How far it has come."""
        own = self.asked(requests)
        approval = next((request for request in reversed(own) if request.kind == "approval"), None)
        phase: CallPhase = "open"
        if self.began:
            phase = "began"
        elif approval is not None and approval.answer is not None:
            phase = "approved" if approval.answer["approved"] else "refused"
        elif approval is not None:
            phase = "asked"
        arguments = self.arguments
        if arguments is None and approval is not None:
            arguments = approval.arguments
        return CallState(
            call_id=self.call_id,
            phase=phase,
            arguments=arguments,
            nested=tuple(self.nested),
            kept=dict(self.kept),
            requests=tuple(own),
        )


@dataclass(slots=True)
class Asking:
    """A request that was not withdrawn, and how many messages there were when it was asked (the last time)."""

    request: Request
    at: int


@dataclass(slots=True)
class Snapshot:
    """Everything that a store has of a session, but for who runs it."""

    id: str
    title: str
    permissions: dict[str, Any]  # as in `Session.to_dict`
    created_at: datetime
    updated_at: datetime
    parent: Parent | None = None
    branch_of: str | None = None
    branch_at: int | None = None
    agent_name: str | None = None
    compacted: dict[str, Any] = field(default_factory=lambda: {"summary": "", "start": 0, "shortened": 0, "at": 0})
    usage: Usage | None = None
    status: Status = "idle"
    reason: str = ""
    epoch: int = 0
    messages: list[Message] = field(default_factory=list)  # in the order in which they came
    partial: Partial | None = None
    calls: list[Call] = field(default_factory=list)  # those without a result, in their order
    requests: list[Asking] = field(default_factory=list)  # in the order of their asking
    mail: list[Mailed] = field(default_factory=list)  # that the agent has not heard
    count: int | None = None  # of the messages, where they were not read

    def unfinished(self) -> Unfinished:
        """What the session has left to do."""
        count = len(self.messages) if self.count is None else self.count
        return Unfinished(
            calls={call.call_id: call.state(self.requests) for call in self.calls},
            requests=tuple(
                each.request
                for each in self.requests
                # A run that was given more turns has said something since.
                if each.request.call_id is None and (each.request.answer is None or each.at == count)
            ),
            mail=tuple(self.mail),
        )

    def session(self) -> Session:
        """The session, ready to be run."""
        said = list(self.messages)
        if self.partial is not None:  # of a reply that a process was reading when it died
            said.append(
                Message(
                    "assistant",
                    self.partial.text,
                    agent_name=self.partial.agent_name,
                    finish_reason="interrupted",
                    created_at=self.updated_at,
                )
            )
        session = Session.from_dict(
            {
                "id": self.id,
                "title": self.title,
                "messages": (),
                "permissions": self.permissions,
                "agent_name": self.agent_name,
                "compacted": self.compacted,
                "usage": None if self.usage is None else self.usage.to_dict(),
            }
        )
        session._messages = settled(said, None)
        session._stored = Stored(self.epoch, len(self.messages))
        session._unfinished = self.unfinished()
        return session


def permissions_of(session: Session) -> dict[str, Any]:
    """The permissions of a session, JSON-ready."""
    said = session.permissions
    rules = {name: [asdict(rule) for rule in getattr(said, name)] for name in ("allow", "ask", "deny")}
    return {**rules, "approve_all": said.approve_all}


def allowing(permissions: Mapping[str, Any], rule: Rule | None) -> dict[str, Any]:
    """The permissions with what the user has approved (`Allowed`)."""
    if rule is None:
        return {**permissions, "approve_all": True}
    return {**permissions, "allow": [*permissions["allow"], asdict(rule)]}


def to_write(session: Session, there: tuple[int, int] | None) -> tuple[list[Message], bool]:
    """The messages that an opening of ``session`` has to write, and whether that is all of it, anew.

    ``there`` is the epoch of the session in the store, and how many messages it has; None where it is not there.
    Raises `SessionChanged` where the store has more of it than this copy knows.
    """
    said, stored = list(session._messages), session._stored
    if there is None:
        return said, True
    epoch, messages = there
    if stored is None:
        raise SessionChanged(
            f"the store has a session {session.id}, and this one does not come from it: store.load({session.id!r})"
            " has that one; for another conversation, make a Session with another id"
        )
    if stored.epoch == epoch and stored.behind:
        return said, True
    if stored.epoch != epoch or stored.messages != messages:
        raise SessionChanged(
            f"session {session.id} was run by another copy of it since this one was loaded: load it again with"
            f" store.load({session.id!r})"
        )
    return said[messages:], False


def branched(session: Session, at: int | None, sub_session: bool) -> Session:
    """A new session with the messages of ``session`` before number ``at``. Raises `ValueError`, as `Store.branch`."""
    if sub_session:
        raise ValueError(f"session {session.id} is a sub-session, which goes on with its parent: branch that one")
    messages = session._messages
    if at is None:
        at = len(messages)
    elif isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < len(messages):
        raise ValueError(
            f"session {session.id} has no message {at!r}: say a number from 0 on, less than {len(messages)}"
        )
    elif messages[at].role != "user":
        raise ValueError(
            f"a branch begins before a message of the user; number {at} of session {session.id} is one of the"
            f" {messages[at].role}"
        )
    said = messages[:at]
    if len(settled(said, "")) != len(said):
        raise ValueError(f"session {session.id} has tool calls without a result there: run it to its end first")
    agent_name = session.agent_name
    if agent_name is not None and at < len(messages):  # it may have been handed over later
        agent_name = next((each.agent_name for each in reversed(said) if each.agent_name), None)
    return Session(
        said,
        id=uuid.uuid4().hex,
        title=well_formed(session.title),
        permissions=session.permissions,
        agent_name=agent_name,
        compacted=session.compacted if session.compacted.at <= at else None,
    )
