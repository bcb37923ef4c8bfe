"""`Store`: where sessions outlive the process that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from channels import Receiver, SupportsDone

from .._dataclasses import dataclass
from ..session._idempotency import IdempotencyKey
from ..session._journal import Journal, Mailed, MailPoint, Request, Status
from ..session._session import Session


@dataclass(frozen=True, slots=True)
class Parent:
    """The tool call that runs an agent on a session of its own, a sub-session."""

    session_id: str
    root_id: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An entry in a list of sessions: what is known of a session without loading it."""

    id: str
    title: str
    agent_name: str | None
    status: Status
    reason: str  # how its last stream ended
    messages: int
    created_at: datetime
    updated_at: datetime
    parent_id: str | None = None
    branch_of: str | None = None
    waiting: int = 0  # questions that nobody has answered, those of its sub-sessions too


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice of a change in the store, by this process or another.

    ``mailed`` and ``canceled``: there are new `Commands` for the stream that runs the session. ``events``: the event
    log of the session has grown.
    """

    kind: Literal["answered", "released", "deleted", "mailed", "canceled", "events"]
    session_id: str
    request: Request | None = None  # that was answered, with its answer


@dataclass(frozen=True, slots=True)
class Commands:
    """What the stream that runs a session was told through the store, by any process."""

    mail: tuple[Mailed, ...] = ()  # that it has not heard, the oldest first
    cancel: str | None = None  # the reason why it is to end; None: nobody has cancelled it
    looked_at: datetime | None = None  # when somebody last looked at it in another process


class Store(Protocol):
    """A place where sessions outlive their process. Synchronous; every method may be called from any thread.

    Every method raises `StoreError`, which says what to do, if the store cannot be read or written.
    """

    def load(self, id: str) -> Session:
        """The session with this id, ready to be run. Raises `SessionNotFound`.

        It may be loaded, to be read, while a stream runs on it. If two copies are run one after the other, the second
        one does not overwrite the first: it is refused (`SessionChanged`).
        """
        ...

    def open(self, session: Session, *, parent: Parent | None = None, listens: bool = False) -> Journal:
        """Take the lease of the session, and write what is not in the store yet: all of a new one, the messages that
        were added to one which was loaded, and its title and permissions. What it has left to do
        (``Session._unfinished``) is read anew: its questions may have been answered since it was loaded.

        A sub-session says which call of its ``parent`` runs it; a call may run several, one after the other. With
        ``listens``, the stream takes `commands`; without, `mail` and `cancel` are refused while it runs. If the session
        says which request opens it (``Session._idempotency``), that is noted in the same step (`idempotency_key`).
        Raises `SessionBusy`, naming the process and its host, while another stream has it, here or elsewhere, and
        `SessionChanged` where the store has more of the session than this copy knows. The lease of a process that has
        died is taken over.
        """
        ...

    def sessions(
        self, query: str = "", *, limit: int = 50, before: datetime | None = None, prefix: str = ""
    ) -> Sequence[SessionInfo]:
        """The sessions, the most recently changed first, without sub-sessions. With ``query``, only the sessions that
        have its words in their title or messages. ``before`` continues a list: give the ``updated_at`` of its last
        session. With ``prefix``, only the sessions whose ids begin with it; those of others cost nothing then.
        """
        ...

    def info(self, id: str) -> SessionInfo:
        """What is known of the session, or sub-session, with this id, as in the list. Raises `SessionNotFound`."""
        ...

    def branch(self, id: str, at: int | None = None) -> Session:
        """A new session with the messages of another before its message ``at``, which has to be a message of the user
        (None: with all messages). Raises `SessionNotFound`, and `ValueError` for a message that is not the user's, for
        a sub-session, and for a session that has open tool calls there.
        """
        ...

    def delete(self, id: str) -> None:
        """Delete the session and its sub-sessions. Raises `SessionNotFound` and `SessionBusy`."""
        ...

    def export(self, id: str) -> dict[str, Any]:
        """Everything about the session and its sub-sessions, JSON-ready, for `import_`. Raises `SessionNotFound`."""
        ...

    def import_(self, data: Mapping[str, Any]) -> Session:
        """Add a session that `export` wrote, with its sub-sessions, under their own ids. Raises `ValueError` if the
        data is not an export, or if the store has a session with one of these ids.
        """
        ...

    def pending(self, id: str | None = None, *, prefix: str = "") -> Sequence[Request]:
        """The open requests, the oldest first, of the session with this id and its sub-sessions, or of all sessions; or
        of those whose ids (``root_id``) begin with ``prefix``. A request is open until it is answered or its time is
        over.
        """
        ...

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        """Answer a request, in one step: the first answer counts. Returns the request with it.

        To an ``approval`` the answer is ``{"approved": bool, "scope": "once", "reason": ""}``, as in `Decision`; to a
        ``question`` or ``turns`` it is ``{"action": "accept", "content": {...}}``, ``{"action": "decline"}`` or
        ``{"action": "cancel"}``. Raises `NotPending` if the request was answered before, was withdrawn or has timed
        out, and `InvalidAnswer` if the answer does not fit the request or the schema that is stored with it.
        """
        ...

    def ready(self) -> Sequence[str]:
        """The ids of the waiting sessions whose requests were all answered or have timed out, and on which no stream
        runs."""
        ...

    def mail(self, id: str, point: MailPoint, text: str, *, key: IdempotencyKey | None = None) -> Mailed:
        """Put a message of the user into the mailbox of the session, for the stream that runs it, in any process: it
        takes the message as if it had been steered there (`Runtime.steer`, `Runtime.follow_up`). A message that comes
        too late for this stream is not lost: the next stream of the session takes it. A message whose ``key`` the
        session knows already is not put in again.

        Raises `SessionNotFound`, and `NotRunning` if no stream runs on the session, or one that does not listen.
        """
        ...

    def idempotency_key(self, id: str, key: str) -> IdempotencyKey | None:
        """The request with this key that has opened the session, or put a message into its mailbox, within the last 24
        hours; None if there was none. It is noted in the same step in which the request takes effect, so a process
        that dies leaves both, or neither. Raises `SessionNotFound`.
        """
        ...

    def cancel(self, id: str, reason: str = "") -> None:
        """Ask the stream that runs the session to end, whichever process has it. Raises as `mail`."""
        ...

    def look(self, id: str) -> None:
        """Note that somebody looks at the session now, for the process of the stream that runs it (`commands`): a run
        at which nobody looks may be ended there. Raises `SessionNotFound`.
        """
        ...

    def commands(self, id: str) -> Commands:
        """What the stream that runs the session was told, and has not done yet. Raises `SessionNotFound`."""
        ...

    def append_events(self, session: Session, events: Sequence[tuple[int, str]]) -> None:
        """Add events, as text that the store does not look into, to the event log of a session that a stream of this
        process runs, or was the last to run. Waits until they are durable; collect what comes meanwhile for the next
        call. The events are numbered from 1, without a gap, through all streams of the session (`last_event`). An
        event that the log has already is left out, so an append may be repeated.

        The log keeps the last 10,000 events of a session; once no stream runs on it, for an hour after the last one.

        Raises `LeaseLost` if another stream has opened the session since, so the events of one stream never come
        between those of another, and `ValueError` for a gap.
        """
        ...

    def events(self, id: str, since: int = 0, *, limit: int = 1000) -> Sequence[tuple[int, str]]:
        """The events of the log behind number ``since``, in their order, at most ``limit``. If the first one is not
        ``since + 1``, or if there is none and `last_event` is behind ``since``, the ones between are not kept any more.
        Raises `SessionNotFound`.
        """
        ...

    def last_event(self, id: str) -> int:
        """The number of the last event in the log, also after the log was emptied; 0 if there was none. Raises
        `SessionNotFound`.
        """
        ...

    def watch(self, cancel: SupportsDone, *, events: bool = False) -> Receiver[Notice]:
        """A channel with notices of what happens in the store from now on, in any process. It closes when ``cancel`` is
        done. A slow receiver misses the oldest notices. Those of event logs, which are many, are only for who wants
        ``events``; several appends to a log may make one notice.
        """
        ...

    def close(self) -> None:
        """Complete the writes under way, and close the file or the connections. Closing twice is harmless."""
        ...
