"""The runs of sessions: they are started, looked at, and cancelled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from .._dataclasses import replace
from .._errors import NotRunning, SessionBusy, SessionChanged
from ..session._idempotency import IdempotencyKey
from ..session._session import Session
from ._bodies import messages_of, new_messages
from ._handlers import Handlers, Stream, running
from ._http import Problem, body_of, busy, field, form_of, number_of, reply, since_of
from ._idempotency import key_of
from ._runs import PARKING, AlreadyRunning, LiveRun, TooManyRuns

_EVERY: Final = 1.0  # seconds between two looks whether a run of another process is over


class RunHandlers(Handlers):
    """Runs, and their events."""

    def run(self, request: Request, owner: str, id: str, agent: str, name: str | None = None) -> Response | Stream:
        self.check_agent(agent, name)
        body = body_of(request, self.max_body)
        if isinstance(body, list):  # as clients of earlier versions send it
            body = {"messages": body}
        if not isinstance(body, dict):
            raise Problem(
                400, "bad_request", 'the body is an object: {"messages": [{"role": "user", "content": "hello"}]}'
            )
        if field(body, "model", str, ""):
            raise Problem(422, "no_model_switch", "the model of an agent is what its program says: leave model out")
        messages_of(field(body, "messages", list, []))
        live = self.backend.runs.get(id)
        session = self.load(id)  # before its keys are looked at: a run that another process starts now makes it stale
        key = key_of(request, f"run {agent}/{name or ''}", body)
        if (known := self.known(id, key)) is not None:
            return self._again(request, id, known)
        if live is not None:
            raise running(id)
        try:
            return self._run(request, session, key, body, agent, name)
        except Problem as problem:
            if problem.code not in ("running", "busy", "changed") or (known := self.known(id, key)) is None:
                raise
            return self._again(request, id, known)  # it was sent twice at the same moment

    def _run(
        self,
        request: Request,
        session: Session,
        key: IdempotencyKey | None,
        body: dict[str, Any],
        agent: str,
        name: str | None,
    ) -> Response | Stream:
        id, said = session.id, messages_of(field(body, "messages", list, []))
        info = self.backend.info(id)
        if info is not None and info.parent_id is not None:
            raise Problem(409, "sub_session", f"the session belongs to a run of session {info.parent_id}: use that one")
        if said and session.waiting:
            raise Problem(
                409,
                "waiting",
                "the session waits for its user: answer what it asks (GET /api/waiting) before you say more, or cancel",
            )
        for text, images in new_messages(said, session):
            session.add_user(text, images=images)
        left = session._unfinished
        if not session.messages or (
            session.messages[-1].ends_turn and not (left is not None and (left.calls or left.requests or left.mail))
        ):
            raise Problem(400, "nothing_to_do", 'say something: {"messages": [{"role": "user", "content": "hello"}]}')
        if name is not None:
            session._agent_name = name
        if key is not None:
            session._idempotency = replace(key, since=self.backend.log.last(id))
        if request.args.get("stream") == "false":
            run = self.start(agent, session)
            return reply({"status": "running", "session_id": id, "since": run.before}, 202)
        self.backend.open_stream(id)  # before it begins; the body closes it
        try:
            run = self.start(agent, session)
        except BaseException:
            self.backend.close_stream(id)
            raise
        return Stream(id, run.before, form_of(request), lambda: run.over.closed)

    def _again(self, request: Request, id: str, known: IdempotencyKey) -> Response | Stream:
        """The same run once more: its events, from the first one on. It may be over, and may be another process's."""
        if request.args.get("stream") == "false":
            said = {"status": "running", "session_id": id, "since": known.since, "duplicate": True}
            return reply(said, 202)
        self.backend.open_stream(id)
        return Stream(id, known.since, form_of(request), self._is_over(id))

    def _is_over(self, id: str) -> Callable[[], bool]:
        """A function that says whether no run is under way, whose last event could come: that reaches the log a moment
        after the run is over. Of a run whose process has died its reader is told otherwise.
        """
        look_at, over_at = 0.0, math.inf

        def is_over() -> bool:
            nonlocal look_at, over_at
            now = time.monotonic()
            if now >= look_at and over_at == math.inf:
                look_at = now + _EVERY
                info = self.backend.info(id)
                lives = info is not None and info.status in ("running", "interrupted")
                if not lives and self.backend.runs.get(id) is None:
                    over_at = now + PARKING
            return now >= over_at

        return is_over

    def start(self, agent: str, session: Session) -> LiveRun:
        """Start a run. Raises `Problem`, before it begins as far as that can be known: from then on its key is used."""
        left, acting = session._unfinished, session.agent_name
        if left is not None and left.calls and acting is not None and acting not in self.backend.roster(agent):
            text = (
                f"the session waits with calls of agent {acting!r}, which {agent!r} does not have: run it with that one"
            )
            raise Problem(409, "other_agent", text)
        try:
            self.check_permissions(agent, session)
        except ValueError as error:  # they are of a run of another agent
            raise Problem(409, "other_agent", str(error)) from None
        try:
            return self.backend.runs.start(agent, session)
        except AlreadyRunning:
            raise running(session.id) from None
        except TooManyRuns:
            raise busy("too_many_runs", "the server has as many runs as it may: try again in a moment", 5) from None
        except SessionBusy as error:
            raise Problem(409, "busy", str(error), headers={"Retry-After": "1"}) from None
        except SessionChanged as error:
            raise Problem(409, "changed", str(error)) from None
        except LookupError as error:  # it waits with calls of an agent that is not served under this name
            raise Problem(409, "other_agent", str(error)) from None

    def cancel(self, request: Request, owner: str, id: str) -> Response:
        self.object_of(request)
        session = self.load(id)
        try:
            self.runtime(id).cancel(id, "cancelled by the client")
            return reply({"status": "cancelling"}, 202)
        except NotRunning:
            pass
        if session.waiting or (session._unfinished is not None and session._unfinished.calls):
            run = self.start(self.backend.agent_of(session), session)  # which ends its open calls
            run.stream.cancel("cancelled by the client")
            return reply({"status": "cancelling"}, 202)
        return reply({"status": "idle"})

    def events(self, request: Request, owner: str, id: str) -> Response | Stream:
        since, form = since_of(request), form_of(request)
        wait = number_of(request, "wait", most=60.0)
        self.load(id)
        if wait is None:
            self.backend.open_stream(id)
            return Stream(id, since, form)
        return reply(self.backend.long_poll(id, since, form, wait))
