"""The sessions: lists, what is known of one, and what is changed in it while no run has it."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from .._errors import NotRunning, SessionBusy, SessionChanged, SessionNotFound
from ..permissions import Permissions
from ..session._idempotency import IdempotencyKey
from ..session._session import Session
from ..stores._snapshot import branched
from ._bodies import messages_of
from ._handlers import TITLE, Handlers, is_own, unknown
from ._http import Problem, field, form_of, number_of, reply
from ._idempotency import key_of, key_reused
from ._open_requests import asked_by
from ._session_json import info_json, permissions_json, session_json

SEVERAL: Final = 100  # sessions that are deleted with one request


class SessionHandlers(Handlers):
    """Sessions, but for their runs."""

    def sessions(self, request: Request, owner: str) -> Response:
        limit = int(number_of(request, "limit", default=100, most=1000) or 1)
        query = request.args.get("q", "")[:1000]
        live = self.backend.runs.ids()
        found = list(self.backend.infos(owner, query, limit))
        if request.args.get("active") == "true":
            found = [info for info in found if info.status == "running"]
        said = [info_json(info) for info in found]
        for each in said:
            each["streaming"] = each["id"] in live or each["status"] == "running"
        return reply(said)

    def create(self, request: Request, owner: str) -> Response:
        body = self.object_of(request)
        title = field(body, "title", str, "")[:TITLE]
        approved = field(body, "tools_approved", bool, False)
        if approved:
            self.refuse_unknown("tools_approved")
        key, id = key_of(request, "create", body), f"{owner}{uuid.uuid4().hex}"
        if key is not None:  # a session that is made twice is one, by its id
            id = f"{owner}{hashlib.sha256(f'{owner}{key.key}'.encode()).hexdigest()[:32]}"
            if self.backend.info(id) is not None:
                return self._made_before(request, id, key)
        session = Session(id=id, title=title, permissions=Permissions(approve_all=approved))
        session._idempotency = key
        if field(body, "messages", list, []):
            for text, images in messages_of(body["messages"]):
                session.add_user(text, images=images)
        try:
            self.backend.keep(session)
        except (SessionBusy, SessionChanged):  # somebody else was faster
            if key is None:
                raise
            return self._made_before(request, id, key)
        return reply(session_json(session, None, form_of(request)))

    def _made_before(self, request: Request, id: str, key: IdempotencyKey) -> Response:
        """The session that an earlier request with this key has made."""
        if self.known(id, key) is None:  # a day ago
            raise key_reused()
        return reply(session_json(self.load(id), self.backend.info(id), form_of(request)))

    def session(self, request: Request, owner: str, id: str) -> Response:
        session = self.load(id)
        return reply(session_json(session, self.backend.info(id), form_of(request)))

    def snapshot(self, request: Request, owner: str, id: str) -> Response:
        form = form_of(request)
        last = self.backend.log.last(id)  # first: what comes meanwhile is in the messages, and comes again as events
        run = self.backend.runs.get(id)
        session, info = self.load(id), self.backend.info(id)
        said = session_json(session, info, form)
        streaming = run is not None or (info is not None and info.status == "running")
        agent = run.agent if run is not None else self.backend.agent_of(session)
        said.update(
            streaming=streaming,
            status="running" if run is not None else info.status if info is not None else "idle",
            agent=session.agent_name or self.backend.teams[agent].root.name,
            served_agent=agent,
            last_event_seq=last,
            cost=session.usage.cost or 0.0,
            waiting=asked_by(self.backend, run, id, form),
            # What the live run has said: the messages before it, then the events after this id.
            run=self.backend.run_of(session) if streaming else None,
        )
        return reply(said)

    def status(self, request: Request, owner: str, id: str) -> Response:
        number_of(request, "wait")  # there is nothing to wait for: a session can always be asked
        run, session = self.backend.runs.get(id), self.load(id)
        info = self.backend.info(id)
        return reply(
            {
                "id": id,
                "title": session.title,
                "streaming": run is not None or (info is not None and info.status == "running"),
                "status": "running" if run is not None else info.status if info is not None else "idle",
                "agent": session.agent_name or self.backend.teams[self.backend.agent_of(session)].root.name,
                "input_tokens": session.usage.input_tokens,
                "output_tokens": session.usage.output_tokens,
                "num_messages": len(session.messages),
                "waiting": len(asked_by(self.backend, run, id, "lockgate")),
            }
        )

    def title(self, request: Request, owner: str, id: str) -> Response:
        title = field(self.object_of(request), "title", str, required=True)
        session = self.load(id)
        session.title = title[:TITLE]
        self.write(session)
        return reply({"id": id, "title": session.title})

    def permissions(self, request: Request, owner: str, id: str) -> Response:
        """Say which calls of the session are allowed, asked about and denied, in place of what was said before."""
        given = field(self.object_of(request), "permissions", dict, required=True)
        self.refuse_unknown("permissions")
        session = self.load(id)
        before = session.permissions
        known = {str(rule): rule for rule in (*before.allow, *before.ask, *before.deny)}  # one may be of an owner
        rules = {name: [known.get(each, each) for each in _texts(given, name)] for name in ("allow", "ask", "deny")}
        try:
            session._permissions = Permissions(**rules, approve_all=before.approve_all)
            self.check_permissions(self.backend.agent_of(session), session)
        except ValueError as error:
            raise Problem(400, "bad_request", str(error)) from None
        self.write(session)
        return reply({"message": "session permissions updated", "permissions": permissions_json(session)})

    def export(self, request: Request, owner: str, id: str) -> Response:
        """Everything that the store has of the session."""
        try:
            return reply(self.backend.store.export(id))
        except SessionNotFound:
            raise unknown() from None

    def toggle(self, request: Request, owner: str, id: str) -> Response:
        self.object_of(request)
        self.refuse_unknown("tools/toggle")
        session = self.load(id)
        before = session._permissions
        session._permissions = Permissions(
            allow=before.allow, ask=before.ask, deny=before.deny, approve_all=not before.approve_all
        )
        self.write(session)
        return reply({"tools_approved": session.permissions.approve_all})

    def fork(self, request: Request, owner: str, id: str) -> Response:
        index = field(self.object_of(request), "user_message_index", int, required=True)
        session = self.load(id)
        said = [number for number, message in enumerate(session.messages) if message.role == "user"]
        if not 0 <= index < len(said):
            raise Problem(400, "bad_request", f"user_message_index must be 0 or more, and less than {len(said)}")
        try:
            if owner:  # its id has to say whose it is
                copy = branched(session, said[index], False)
                copy.id = f"{owner}{copy.id}"
                self.backend.keep(copy)
            else:
                copy = self.backend.store.branch(id, said[index])
        except ValueError as error:
            raise Problem(400, "bad_request", str(error)) from None
        return reply(session_json(copy, None, form_of(request)))

    def delete(self, request: Request, owner: str, id: str) -> Response:
        wait = number_of(request, "timeout", default=10.0) if request.args.get("wait") == "true" else 5.0
        self.load(id)
        if not self._delete(id, time.monotonic() + (wait or 0.0)):
            return reply({"status": "stopping", "message": "stop still in progress"}, 202)
        return reply({"status": "deleted", "message": "session deleted"})

    def delete_several(self, request: Request, owner: str) -> Response:
        """Delete sessions; those that are not there, or whose runs do not end, are named in the reply."""
        ids = _texts(self.object_of(request), "session_ids")
        if not 0 < len(ids) <= SEVERAL:
            raise Problem(400, "bad_request", f"session_ids are 1 to {SEVERAL} ids of sessions")
        until, failed = time.monotonic() + 10.0, []
        for id in dict.fromkeys(ids):
            if not is_own(id, owner) or self.backend.info(id) is None or not self._delete(id, until):
                failed.append(id)
        deleted = len(set(ids)) - len(failed)
        return reply({"deleted_count": deleted, "failed_count": len(failed), "failed_ids": failed})

    def _delete(self, id: str, until: float) -> bool:
        """Delete a session once its run has ended; whether that was before ``until``."""
        with self.backend.log.watch(id) as watcher:
            while True:
                with contextlib.suppress(NotRunning):
                    self.runtime(id).cancel(id, "the session is deleted")
                try:
                    self.backend.store.delete(id)
                    break
                except SessionBusy:  # until its run has ended, here or in another process
                    left = until - time.monotonic()
                    if left <= 0:
                        return False
                    watcher.wait(min(left, 0.1))
                except SessionNotFound:
                    break  # somebody else was faster
        self.backend.log.end(id)
        return True


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of texts; an empty one where it is not there."""
    given = field(body, name, list, [])
    if not all(isinstance(each, str) for each in given):
        raise Problem(400, "bad_request", f"the field {name} must be a list of texts")
    return list(given)
