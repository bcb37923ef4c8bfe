"""`Store`: where sessions outlive the process that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from channels import Receiver, SupportsDone

from .._dataclasses import dataclass
from ..session._journal import Journal, Request, Status
from ..session._session import Session


@dataclass(frozen=True, slots=True)
class Parent:
    """The call that runs an agent on a session of its own, a sub-session."""

    session_id: str
    root_id: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session in a list: what is known of it without loading it."""

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
    """Something happened in the store, in this process or another."""

    kind: Literal["answered", "released", "deleted"]
    session_id: str
    request: Request | None = None  # that was answered, with its answer


class Store(Protocol):
    """Sessions that last. Synchronous; every method may be called from any thread.

    Every method raises `StoreError`, with what to do, where the store cannot be read or written.
    """

    def load(self, id: str) -> Session:
        """The session with this id, ready to be run. Raises `SessionNotFound`.

        It may be loaded while a stream runs on it, to be read. Two copies that are run one after the other do not
        write over each other: the older one is refused (`SessionChanged`).
        """
        ...

    def open(self, session: Session, *, parent: Parent | None = None) -> Journal:
        """Take the lease of the session, and write what is not in the store yet: all of a new one, the messages that
        were added to one which was loaded, and its title and permissions. What it has left to do
        (``Session._unfinished``) is read anew: its questions may have been answered since it was loaded.

        A sub-session says which call of its ``parent`` runs it; a call may run several, one after the other.
        Raises `SessionBusy`, naming the process and its host, while another stream has it, here or elsewhere, and
        `SessionChanged` where the store has more of the session than this copy knows. The lease of a process that has
        died is taken over.
        """
        ...

    def sessions(self, query: str = "", *, limit: int = 50, before: datetime | None = None) -> Sequence[SessionInfo]:
        """The sessions, those that changed last first, without sub-sessions. ``query`` is searched for in titles and
        messages; ``before`` goes on where a list ended, with the ``updated_at`` of its last.
        """
        ...

    def branch(self, id: str, at: int | None = None) -> Session:
        """A new session with the messages of another before its message ``at``, which has to be one of the user (None:
        before none, so all of them). Raises `SessionNotFound`, and `ValueError` for another message, a sub-session,
        or a session that has open calls there.
        """
        ...

    def delete(self, id: str) -> None:
        """Forget the session and its sub-sessions. Raises `SessionNotFound`, `SessionBusy`."""
        ...

    def export(self, id: str) -> dict[str, Any]:
        """Everything about the session and its sub-sessions, JSON-ready, for `import_`. Raises `SessionNotFound`."""
        ...

    def import_(self, data: Mapping[str, Any]) -> Session:
        """Add a session that `export` wrote, under its own id; sub-sessions too. Raises `ValueError` where the data is
        not what `export` writes, or the id is there already.
        """
        ...

    def pending(self, id: str | None = None) -> Sequence[Request]:
        """The requests that nobody has answered and whose time is not over: of the session with this id and its
        sub-sessions, or of all. The oldest comes first.
        """
        ...

    def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
        """Answer a request, in one step: the first answer counts. Returns the request with it.

        To an ``approval`` the answer is ``{"approved": bool, "scope": "once", "reason": ""}``, as in `Decision`; to a
        ``question`` or ``turns`` it is ``{"action": "accept", "content": {...}}``, ``{"action": "decline"}`` or
        ``{"action": "cancel"}``. Raises `NotPending` where it was answered before, withdrawn or timed out, and
        `InvalidAnswer` where the answer does not fit the request or the schema that is stored with it.
        """
        ...

    def ready(self) -> Sequence[str]:
        """The ids of the waiting sessions whose requests are all answered, or timed out, and which no stream has."""
        ...

    def watch(self, cancel: SupportsDone) -> Receiver[Notice]:
        """What happens in the store from now on, also by other processes; the channel closes when ``cancel`` is done.
        A receiver that is slow misses the oldest notices.
        """
        ...

    def close(self) -> None:
        """Write what is on its way, and let go of the file or the connections. Twice is harmless."""
        ...
