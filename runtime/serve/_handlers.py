"""What the addresses of a server have in common: the session that is meant, what may be said of it, and errors that say
what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from werkzeug.wrappers import Request

from .._errors import SessionBusy, SessionChanged, SessionNotFound
from ..runtime import Runtime
from ..session._idempotency import IdempotencyKey
from ..session._session import Session
from ._backend import Backend
from ._http import Problem, object_of
from ._idempotency import key_reused

TITLE: Final = 1000  # characters of a title that are kept
_ID: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")


class Stream:
    """In place of a response: the events of a session, from an id on."""

    def __init__(self, session_id: str, since: int, form: str, run_is_over: Callable[[], bool] | None = None) -> None:
        self.session_id = session_id
        self.since = since
        self.form = form
        self.run_is_over = run_is_over


class Handlers:
    """Handlers of requests: methods that get the request, the beginning of the ids that the client may see (``owner``),
    and what stands in the address. They return a response, or a `Stream`, and raise `Problem`. Thread-safe.
    """

    def __init__(self, backend: Backend, *, max_body: int, knows_clients: bool) -> None:
        self.backend = backend
        self.max_body = max_body
        self.knows_clients = knows_clients  # so that they may give lasting approvals

    def object_of(self, request: Request) -> dict[str, Any]:
        """The body, as a JSON object."""
        return object_of(request, self.max_body)

    def refuse_unknown(self, what: str) -> None:
        """Refuse a lasting approval by a client that has not shown who it is."""
        if not self.knows_clients:
            raise Problem(
                403, "needs_token", f"{what} approves calls that nobody has seen: the server takes it only with a token"
            )

    def check_agent(self, agent: str, name: str | None = None) -> None:
        """Refuse an agent that is not served, or that has no agent with this ``name`` in its team."""
        if agent not in self.backend.teams:
            served = ", ".join(self.backend.teams)
            raise Problem(404, "unknown_agent", f"there is no agent {agent[:100]!r} here; there is: {served}")
        if name is not None and name not in self.backend.roster(agent):
            team = ", ".join(self.backend.roster(agent))
            raise Problem(404, "unknown_agent", f"{agent} has no agent {name[:100]!r}; it has: {team}")

    def check_permissions(self, agent: str, session: Session) -> None:
        """Raise `ValueError` for a permission of the session that matches no call of the agent's team."""
        self.backend.runtime(agent)._shared.roster.check(session.permissions)

    def load(self, id: str) -> Session:
        """The session with this id."""
        try:
            return self.backend.store.load(id)
        except SessionNotFound:
            raise unknown() from None

    def known(self, id: str, key: IdempotencyKey | None) -> IdempotencyKey | None:
        """The earlier request with this key, if there was one: it was carried out. Raises `Problem` if that request was
        another one.
        """
        try:
            found = None if key is None else self.backend.store.idempotency_key(id, key.key)
        except SessionNotFound:
            raise unknown() from None
        if found is not None and key is not None and found.fingerprint != key.fingerprint:
            raise key_reused()
        return found

    def write(self, session: Session) -> None:
        """Write what was changed in a session that has no run."""
        if self.backend.runs.get(session.id) is not None:
            raise running(session.id)
        try:
            self.backend.keep(session)
        except SessionBusy as error:
            raise Problem(409, "busy", str(error), headers={"Retry-After": "1"}) from None
        except SessionChanged as error:
            raise Problem(409, "changed", f"the session has changed meanwhile: try again ({error})") from None

    def runtime(self, id: str) -> Runtime:
        """The runtime of the session's run; of a run of another process, any: it tells that one through the store."""
        run = self.backend.runs.get(id)
        return self.backend.runtime(run.agent if run is not None else next(iter(self.backend.teams)))


def is_own(id: str, owner: str) -> bool:
    """Whether this may be the id of a session, and of one that the client may see."""
    return bool(_ID.fullmatch(id)) and id.startswith(owner)


def unknown() -> Problem:
    """There is no such session, or it is another owner's."""
    return Problem(404, "unknown_session", "there is no such session; GET /api/sessions lists those that there are")


def running(id: str) -> Problem:
    """The session has a run, which is in the way."""
    return Problem(
        409, "running", "the session has a run already: look at its events, steer it, or cancel it", session_id=id
    )
