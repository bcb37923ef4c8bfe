"""What is at which address. The addresses and their JSON are docker-agent's where its clients need them; what only we
have is named in docs/serving.md.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from .. import events
from .._errors import (
    InvalidAnswer,
    NotPending,
    NotRunning,
    SessionBusy,
    SessionChanged,
    SessionNotFound,
)
from ..permissions import Permissions
from ..runtime import Runtime
from ..session._session import Session
from ..stores._snapshot import branched
from ._backend import Backend
from ._bodies import messages_of, new_messages
from ._http import (
    Problem,
    body_of,
    busy,
    field,
    form_of,
    number_of,
    object_of,
    one_of,
    reply,
    since_of,
)
from ._runs import AlreadyRunning, LiveRun, TooManyRuns
from ._session_json import event_list, info_json, request_json, session_json, stored_event

MORE: Final = 10  # turns that a user adds by approving
TITLE: Final = 1000  # characters of a title that are kept
QUEUED: Final = 100  # messages to a run that it has not taken
KEYS: Final = 10_000  # of messages that were sent, so that one that is sent again is not said twice
_KEY: Final = 200  # characters of such a key
_ID: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")
_SCOPES: Final = {"approve": "once", "approve-tool": "tool", "approve-session": "session"}
_NOT_OURS: Final = ("approve-balanced", "approve-autonomous")


class Stream:
    """In place of a response: the events of a session, from an id on."""

    def __init__(self, session_id: str, since: int, form: str, run_is_over: Callable[[], bool] | None = None) -> None:
        self.session_id = session_id
        self.since = since
        self.form = form
        self.run_is_over = run_is_over


class Api:
    """The addresses of an application, and what is done there. ``owner`` is the beginning of the ids that the client
    may see."""

    def __init__(self, backend: Backend, *, max_body: int, knows_clients: bool) -> None:
        self._backend = backend
        self._max_body = max_body
        self._knows_clients = knows_clients  # so that they may give lasting approvals
        self._lock = threading.Lock()
        self._keys: OrderedDict[tuple[str, str], None] = OrderedDict()
        rules: list[Rule] = []
        self._handlers: dict[str, Callable[..., Any]] = {}

        def at(method: str, path: str, handler: Callable[..., Any]) -> None:
            rules.append(Rule(path, methods=[method], endpoint=handler.__name__))
            self._handlers[handler.__name__] = handler

        at("GET", "/api/ping", self.ping)
        at("GET", "/api/agents", self.agents)
        at("GET", "/api/agents/<agent>", self.agent)
        at("GET", "/api/agents/<agent>/<name>/tools/count", self.tools)
        at("GET", "/api/waiting", self.waiting)
        at("GET", "/api/sessions", self.sessions)
        at("POST", "/api/sessions", self.create)
        at("GET", "/api/sessions/<id>", self.session)
        at("DELETE", "/api/sessions/<id>", self.delete)
        at("GET", "/api/sessions/<id>/status", self.status)
        at("GET", "/api/sessions/<id>/snapshot", self.snapshot)
        at("GET", "/api/sessions/<id>/events", self.events)
        at("PATCH", "/api/sessions/<id>/title", self.title)
        at("POST", "/api/sessions/<id>/fork", self.fork)
        at("POST", "/api/sessions/<id>/agent/<agent>", self.run)
        at("POST", "/api/sessions/<id>/agent/<agent>/<name>", self.run)
        at("POST", "/api/sessions/<id>/resume", self.resume)
        at("POST", "/api/sessions/<id>/elicitation", self.elicitation)
        at("POST", "/api/sessions/<id>/steer", self.steer)
        at("POST", "/api/sessions/<id>/followup", self.followup)
        at("POST", "/api/sessions/<id>/cancel", self.cancel)
        at("POST", "/api/sessions/<id>/tools/toggle", self.toggle)
        self._map = Map(rules, strict_slashes=False, merge_slashes=False, redirect_defaults=False)

    def respond(self, request: Request, owner: str) -> Response | Stream:
        """Do what is asked. Raises `Problem`, and the exceptions of routing."""
        adapter = self._map.bind("localhost")
        endpoint, values = adapter.match(request.path, request.method)
        if "id" in values and not (_ID.fullmatch(values["id"]) and values["id"].startswith(owner)):
            raise _unknown(values["id"])
        made: Response | Stream = self._handlers[endpoint](request, owner, **values)
        return made

    # -- agents --------------------------------------------------------------------------------------------------------

    def ping(self, request: Request, owner: str) -> Response:
        return reply({"status": "ok"})

    def agents(self, request: Request, owner: str) -> Response:
        return reply(
            [
                {"name": name, "description": team.root.description, "multi": len(self._backend.roster(name)) > 1}
                for name, team in self._backend.teams.items()
            ]
        )

    def agent(self, request: Request, owner: str, agent: str) -> Response:
        self._known(agent)
        said = [
            {
                "name": each.name,
                "description": each.description,
                "model": str(each.model.id),
                "tools": [tool.name for tool in each.made_tools],
            }
            for each in self._backend.roster(agent).values()
        ]
        return reply({"name": agent, "description": self._backend.teams[agent].root.description, "agents": said})

    def tools(self, request: Request, owner: str, agent: str, name: str) -> Response:
        self._known(agent, name)
        return reply({"available_tools": len(self._backend.roster(agent)[name].made_tools)})

    def _known(self, agent: str, name: str | None = None) -> None:
        if agent not in self._backend.teams:
            served = ", ".join(self._backend.teams)
            raise Problem(404, "unknown_agent", f"there is no agent {agent[:100]!r} here; there is: {served}")
        if name is not None and name not in self._backend.roster(agent):
            team = ", ".join(self._backend.roster(agent))
            raise Problem(404, "unknown_agent", f"{agent} has no agent {name[:100]!r}; it has: {team}")

    # -- sessions ------------------------------------------------------------------------------------------------------

    def sessions(self, request: Request, owner: str) -> Response:
        limit = int(number_of(request, "limit", default=100, most=1000) or 1)
        query = request.args.get("q", "")[:1000]
        live = self._backend.runs.ids()
        found = list(self._backend.infos(owner, query, limit))
        if request.args.get("active") == "true":
            found = [info for info in found if info.status == "running"]
        said = [info_json(info) for info in found]
        for each in said:
            each["streaming"] = each["id"] in live or each["status"] == "running"
        return reply(said)

    def create(self, request: Request, owner: str) -> Response:
        body = self._object(request)
        title = field(body, "title", str, "")[:TITLE]
        approved = field(body, "tools_approved", bool, False)
        if approved:
            self._refuse_unknown("tools_approved")
        session = Session(id=f"{owner}{uuid.uuid4().hex}", title=title, permissions=Permissions(approve_all=approved))
        if field(body, "messages", list, []):
            for text, images in messages_of(body["messages"]):
                session.add_user(text, images=images)
        self._backend.keep(session)
        return reply(session_json(session, None, form_of(request)))

    def session(self, request: Request, owner: str, id: str) -> Response:
        session = self._load(id)
        return reply(session_json(session, self._backend.info(id), form_of(request)))

    def snapshot(self, request: Request, owner: str, id: str) -> Response:
        form = form_of(request)
        last = self._backend.log.last(id)  # first: what comes meanwhile is in the messages, and comes again as events
        run = self._backend.runs.get(id)
        session, info = self._load(id), self._backend.info(id)
        said = session_json(session, info, form)
        streaming = run is not None or (info is not None and info.status == "running")
        agent = run.agent if run is not None else self._backend.agent_of(session)
        said.update(
            streaming=streaming,
            status="running" if run is not None else info.status if info is not None else "idle",
            agent=session.agent_name or self._backend.teams[agent].root.name,
            served_agent=agent,
            last_event_seq=last,
            cost=session.usage.cost or 0.0,
            waiting=self._asked(run, id, form),
            # What the live run has said: the messages before it, then the events after this id.
            run=self._backend.run_of(session) if streaming else None,
        )
        return reply(said)

    def status(self, request: Request, owner: str, id: str) -> Response:
        number_of(request, "wait")  # there is nothing to wait for: a session can always be asked
        run, session = self._backend.runs.get(id), self._load(id)
        info = self._backend.info(id)
        return reply(
            {
                "id": id,
                "title": session.title,
                "streaming": run is not None or (info is not None and info.status == "running"),
                "status": "running" if run is not None else info.status if info is not None else "idle",
                "agent": session.agent_name or self._backend.teams[self._backend.agent_of(session)].root.name,
                "input_tokens": session.usage.input_tokens,
                "output_tokens": session.usage.output_tokens,
                "num_messages": len(session.messages),
                "waiting": len(self._asked(run, id, "lockgate")),
            }
        )

    def title(self, request: Request, owner: str, id: str) -> Response:
        title = field(self._object(request), "title", str, required=True)
        session = self._load(id)
        session.title = title[:TITLE]
        self._write(session)
        return reply({"id": id, "title": session.title})

    def toggle(self, request: Request, owner: str, id: str) -> Response:
        self._object(request)
        self._refuse_unknown("tools/toggle")
        session = self._load(id)
        before = session._permissions
        session._permissions = Permissions(
            allow=before.allow, ask=before.ask, deny=before.deny, approve_all=not before.approve_all
        )
        self._write(session)
        return reply({"tools_approved": session.permissions.approve_all})

    def fork(self, request: Request, owner: str, id: str) -> Response:
        index = field(self._object(request), "user_message_index", int, required=True)
        session = self._load(id)
        said = [number for number, message in enumerate(session.messages) if message.role == "user"]
        if not 0 <= index < len(said):
            raise Problem(400, "bad_request", f"the session has {len(said)} messages of the user, from number 0 on")
        try:
            if owner:  # its id has to say whose it is
                copy = branched(session, said[index], False)
                copy.id = f"{owner}{copy.id}"
                self._backend.keep(copy)
            else:
                copy = self._backend.store.branch(id, said[index])
        except ValueError as error:
            raise Problem(400, "bad_request", str(error)) from None
        return reply(session_json(copy, None, form_of(request)))

    def delete(self, request: Request, owner: str, id: str) -> Response:
        wait = number_of(request, "timeout", default=10.0) if request.args.get("wait") == "true" else 5.0
        self._load(id)
        until = time.monotonic() + (wait or 0.0)
        with self._backend.log.watch(id) as watcher:
            while True:
                with contextlib.suppress(NotRunning):
                    self._runtime(id).cancel(id, "the session is deleted")
                try:
                    self._backend.store.delete(id)
                    break
                except SessionBusy:  # until its run has ended, here or in another process
                    left = until - time.monotonic()
                    if left <= 0:
                        return reply({"status": "stopping", "message": "stop still in progress"}, 202)
                    watcher.wait(min(left, 0.1))
                except SessionNotFound:
                    break  # somebody else was faster
        self._backend.log.end(id)
        return reply({"status": "deleted", "message": "session deleted"})

    # -- runs ----------------------------------------------------------------------------------------------------------

    def run(self, request: Request, owner: str, id: str, agent: str, name: str | None = None) -> Response | Stream:
        self._known(agent, name)
        body = body_of(request, self._max_body)
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
        if self._backend.runs.get(id) is not None:
            raise _running(id)
        session = self._load(id)
        info = self._backend.info(id)
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
            run = self._start(agent, session)
            return reply({"status": "running", "session_id": id, "since": run.before}, 202)
        self._backend.open_stream(id)  # before it begins; the body closes it
        try:
            run = self._start(agent, session)
        except BaseException:
            self._backend.close_stream(id)
            raise
        return Stream(id, run.before, form, lambda: run.over.closed)

    def _start(self, agent: str, session: Session) -> LiveRun:
        try:
            return self._backend.runs.start(agent, session)
        except AlreadyRunning:
            raise _running(session.id) from None
        except TooManyRuns:
            raise busy("too_many_runs", "the server has as many runs as it may: try again in a moment", 5) from None
        except SessionBusy as error:
            raise Problem(409, "busy", str(error), headers={"Retry-After": "1"}) from None
        except SessionChanged as error:
            raise Problem(409, "changed", str(error)) from None
        except LookupError as error:  # it waits with calls of an agent that is not served under this name
            raise Problem(409, "other_agent", str(error)) from None

    def cancel(self, request: Request, owner: str, id: str) -> Response:
        self._object(request)
        session = self._load(id)
        try:
            self._runtime(id).cancel(id, "cancelled by the client")
            return reply({"status": "cancelling"}, 202)
        except NotRunning:
            pass
        if session.waiting or (session._unfinished is not None and session._unfinished.calls):
            run = self._start(self._backend.agent_of(session), session)  # which ends its open calls
            run.stream.cancel("cancelled by the client")
            return reply({"status": "cancelling"}, 202)
        return reply({"status": "idle"})

    def events(self, request: Request, owner: str, id: str) -> Response | Stream:
        since, form = since_of(request), form_of(request)
        wait = number_of(request, "wait", most=60.0)
        self._load(id)
        if wait is None:
            self._backend.open_stream(id)
            return Stream(id, since, form)
        return reply(self._backend.long_poll(id, since, form, wait))

    # -- what people say -----------------------------------------------------------------------------------------------

    def steer(self, request: Request, owner: str, id: str) -> Response:
        body = self._object(request)
        framing = field(body, "framing", str, "plain")
        if framing not in ("plain", "instruction"):
            raise Problem(422, "no_framing", "a message to a run is said as it is: leave framing out")
        said = self._texts(body)
        self._check_room(id)
        self._load(id)
        if self._repeated(request, id):
            return reply({"status": "duplicate", "duplicate": True}, 202)
        try:
            for text in said:
                self._runtime(id).steer(id, text)
        except NotRunning:
            self._forget_key(request, id)
            raise Problem(
                409, "not_running", "the session has no run to steer: POST the message to its agent instead"
            ) from None
        return reply({"status": "queued"}, 202)

    def followup(self, request: Request, owner: str, id: str) -> Response:
        said = self._texts(self._object(request))
        self._check_room(id)
        session = self._load(id)
        if self._repeated(request, id):
            return reply({"status": "duplicate", "duplicate": True}, 202)
        try:
            for text in said:
                self._runtime(id).follow_up(id, text)
            return reply({"status": "queued_streaming", "duplicate": False}, 202)
        except NotRunning:
            pass
        try:
            if session.waiting:
                raise Problem(409, "waiting", "the session waits for its user: answer what it asks before you say more")
            session = self._load(id)
            for text in said:
                session.add_user(text)
            self._write(session)
        except Problem:
            self._forget_key(request, id)
            raise
        return reply({"status": "queued_idle", "duplicate": False}, 202)

    def _texts(self, body: Mapping[str, Any]) -> list[str]:
        said = messages_of(field(body, "messages", list, required=True))
        if not said or any(images for _, images in said):
            raise Problem(400, "bad_request", 'one message or more, of text: {"messages": [{"content": "hello"}]}')
        return [text for text, _ in said]

    def _runtime(self, id: str) -> Runtime:
        """The runtime of the session's run; of a run of another process, any: it tells that one through the store."""
        run = self._backend.runs.get(id)
        return self._backend.runtime(run.agent if run is not None else next(iter(self._backend.teams)))

    def _check_room(self, id: str) -> None:
        run = self._backend.runs.get(id)
        if run is None:
            return
        box = run.stream._core.mailbox
        if len(box._steering) + len(box._following) >= QUEUED:
            text = f"{QUEUED} messages wait to be heard: wait a moment"
            raise Problem(429, "queue_full", text, headers={"Retry-After": "1"})

    def _repeated(self, request: Request, id: str) -> bool:
        """Whether a message with this key was sent before."""
        key = self._key(request)
        if not key:
            return False
        with self._lock:
            if (id, key) in self._keys:
                return True
            self._keys[id, key] = None
            if len(self._keys) > KEYS:
                self._keys.popitem(last=False)
        return False

    def _forget_key(self, request: Request, id: str) -> None:
        """The message was not taken: it may be sent again."""
        with self._lock:
            self._keys.pop((id, self._key(request)), None)

    @staticmethod
    def _key(request: Request) -> str:
        key = request.headers.get("Idempotency-Key", "")
        if len(key) > _KEY:
            raise Problem(400, "bad_request", f"an Idempotency-Key has {_KEY} characters at most")
        return key

    # -- answers -------------------------------------------------------------------------------------------------------

    def waiting(self, request: Request, owner: str) -> Response:
        form = form_of(request)
        return reply([request_json(each, form) for each in self._backend.store.pending(prefix=owner)])

    def resume(self, request: Request, owner: str, id: str) -> Response:
        body = self._object(request)
        said = one_of(body, "confirmation", (*_SCOPES, "reject", *_NOT_OURS))
        reason, tool = field(body, "reason", str, ""), field(body, "tool_name", str, "")
        turns = field(body, "iterations", int, MORE)
        if said in _NOT_OURS:
            raise Problem(422, "no_safety_policy", f"there is no {said} here: approve, approve-tool or approve-session")
        if said == "approve-session":
            self._refuse_unknown(said)
        if not 0 <= turns <= 1000:
            raise Problem(400, "bad_request", "iterations are turns that the run may take in addition, 1000 at most")
        given = field(body, "confirmation_id", str, "")
        asked = self._one(id, given, tool, ("approval", "turns"))
        if asked["kind"] == "turns":
            approves = said != "reject" and turns > 0
            answer: dict[str, Any] = {"action": "accept" if approves else "decline"}
            if approves:
                answer["content"] = {"iterations": turns}
        elif said == "reject":
            answer = {"approved": False, "reason": reason}
        else:
            answer = {"approved": True, "scope": _SCOPES[said]}
        self._answer(id, asked, answer, owner)
        return reply({"status": "resumed", "message": "session resumed", "confirmation_id": asked["id"]})

    def elicitation(self, request: Request, owner: str, id: str) -> Response:
        body = self._object(request)
        action = one_of(body, "action", ("accept", "decline", "cancel"))
        content = field(body, "content", dict, {})
        asked = self._one(id, field(body, "elicitation_id", str, ""), "", ("question",))
        answer = {"action": action, "content": content} if action == "accept" else {"action": action}
        self._answer(id, asked, answer, owner)
        return reply({"status": "answered", "message": "elicitation answered", "elicitation_id": asked["id"]})

    def _asked(self, run: LiveRun | None, id: str, form: str) -> list[dict[str, Any]]:
        """What the session asks: the events of the requests that nobody has answered."""
        if run is not None:
            return event_list(run.stream.pending, form)
        return [stored_event(each.event, form) for each in self._backend.store.pending(id)]

    def _open(self, id: str) -> list[dict[str, Any]]:
        """The open requests of a session: id, kind, and the tool that it is about."""
        run = self._backend.runs.get(id)
        if run is not None:
            found = [_open_request(event) for event in run.stream.pending]
            if found:
                return found
        self._load(id)  # an unknown session is another error than one that asks nothing
        return [
            {"id": each.id, "kind": each.kind, "tool": (each.event.get("tool_call") or {}).get("name", "")}
            for each in self._backend.store.pending(id)
        ]

    def _one(self, id: str, given: str, tool: str, kinds: Sequence[str]) -> dict[str, Any]:
        """The request that is answered: the one with the ``given`` id, or the only one. Raises `Problem`."""
        found = [each for each in self._open(id) if each["kind"] in kinds]
        if given:
            found = [each for each in found if each["id"] == given]
        elif tool and len(found) > 1:
            found = [each for each in found if each["tool"] == tool]
        if not found:
            raise _not_pending()
        if len(found) > 1:  # an approval must not go to another call than the one that was seen
            ids = [each["id"] for each in found]
            raise Problem(
                409, "which", f"{len(found)} are waiting, so the answer needs an id: {', '.join(ids)}", ids=ids
            )
        return found[0]

    def _answer(self, id: str, asked: Mapping[str, Any], answer: Mapping[str, Any], owner: str) -> None:
        run = self._backend.runs.get(id)
        try:
            if run is None or not _answer_live(run, asked, answer):
                self._backend.store.answer(asked["id"], answer, by="http")
        except InvalidAnswer as error:
            problems = str(error).split("; ")
            raise Problem(422, "invalid_answer", str(error), problems=problems) from None
        except NotPending:
            raise _not_pending() from None
        except SessionNotFound:
            raise _unknown(id) from None
        self._backend.runs.answered(id)
        if self._backend.runs.get(id) is None:  # it was parked, before or meanwhile
            self._backend.runs.go_on(id, self._backend.agent_of(self._load(id)))

    # -- shared --------------------------------------------------------------------------------------------------------

    def _object(self, request: Request) -> dict[str, Any]:
        return object_of(request, self._max_body)

    def _refuse_unknown(self, what: str) -> None:
        if not self._knows_clients:
            raise Problem(
                403, "needs_token", f"{what} approves calls that nobody has seen: the server takes it only with a token"
            )

    def _load(self, id: str) -> Session:
        try:
            return self._backend.store.load(id)
        except SessionNotFound:
            raise _unknown(id) from None

    def _write(self, session: Session) -> None:
        """Write what was changed in a session that has no run."""
        if self._backend.runs.get(session.id) is not None:
            raise _running(session.id)
        try:
            self._backend.keep(session)
        except SessionBusy as error:
            raise Problem(409, "busy", str(error), headers={"Retry-After": "1"}) from None
        except SessionChanged as error:
            raise Problem(409, "changed", f"the session has changed meanwhile: try again ({error})") from None


def _open_request(event: events.Event) -> dict[str, Any]:
    if isinstance(event, events.ToolCallConfirmation):
        return {"id": event.confirmation_id, "kind": "approval", "tool": event.tool_call.name}
    if isinstance(event, events.ElicitationRequest):
        return {"id": event.elicitation_id, "kind": "question", "tool": event.tool_name}
    return {"id": getattr(event, "request_id", ""), "kind": "turns", "tool": ""}


def _answer_live(run: LiveRun, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    """Answer a request of a live run; whether it took the answer, which it does not if it is being parked."""
    try:
        if asked["kind"] == "approval":
            if answer["approved"]:
                run.stream.approve(asked["id"], answer["scope"])
            else:
                run.stream.reject(asked["id"], answer["reason"])
        elif asked["kind"] == "turns":
            run.stream.extend(asked["id"], (answer.get("content") or {"iterations": 0})["iterations"])
        else:
            run.stream.respond(asked["id"], answer["action"], answer.get("content"))
    except NotPending:
        return False
    return True


def _unknown(id: str) -> Problem:
    return Problem(404, "unknown_session", "there is no such session; GET /api/sessions lists those that there are")


def _running(id: str) -> Problem:
    return Problem(
        409, "running", "the session has a run already: look at its events, steer it, or cancel it", session_id=id
    )


def _not_pending() -> Problem:
    return Problem(409, "not_pending", "nothing like that is waiting: it was answered, was withdrawn, or has timed out")
