"""The runs of sessions: they are started, looked at, and cancelled."""

from __future__ import annotations

from werkzeug.wrappers import Request, Response

from .._errors import NotRunning, SessionBusy, SessionChanged
from ..session._session import Session
from ._bodies import messages_of, new_messages
from ._handlers import Handlers, Stream, running
from ._http import Problem, body_of, busy, field, form_of, number_of, reply, since_of
from ._runs import AlreadyRunning, LiveRun, TooManyRuns


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
        said = messages_of(field(body, "messages", list, []))
        form, streams = form_of(request), request.args.get("stream") != "false"
        if self.backend.runs.get(id) is not None:
            raise running(id)
        session = self.load(id)
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
        if not streams:
            run = self.start(agent, session)
            return reply({"status": "running", "session_id": id, "since": run.before}, 202)
        self.backend.open_stream(id)  # before it begins; the body closes it
        try:
            run = self.start(agent, session)
        except BaseException:
            self.backend.close_stream(id)
            raise
        return Stream(id, run.before, form, lambda: run.over.closed)

    def start(self, agent: str, session: Session) -> LiveRun:
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
