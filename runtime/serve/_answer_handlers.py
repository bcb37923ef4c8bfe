"""Answers to what sessions ask their users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from werkzeug.wrappers import Request, Response

from .._errors import InvalidAnswer, NotPending, SessionNotFound
from ._handlers import Handlers, unknown
from ._http import Problem, field, form_of, one_of, reply
from ._open_requests import answer_live, open_request
from ._session_json import request_json, settled_event

MORE: Final = 10  # turns that a user adds by approving
_SCOPES: Final = {"approve": "once", "approve-tool": "tool", "approve-session": "session"}
_NOT_OURS: Final = ("approve-balanced", "approve-autonomous")


class AnswerHandlers(Handlers):
    """Approvals, answers to questions, and more turns."""

    def waiting(self, request: Request, owner: str) -> Response:
        form = form_of(request)
        return reply([request_json(each, form) for each in self.backend.store.pending(prefix=owner)])

    def resume(self, request: Request, owner: str, id: str) -> Response:
        body = self.object_of(request)
        said = one_of(body, "confirmation", (*_SCOPES, "reject", *_NOT_OURS))
        reason, tool = field(body, "reason", str, ""), field(body, "tool_name", str, "")
        turns = field(body, "iterations", int, MORE)
        if said in _NOT_OURS:
            raise Problem(422, "no_safety_policy", f"there is no {said} here: approve, approve-tool or approve-session")
        if said == "approve-session":
            self.refuse_unknown(said)
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
        body = self.object_of(request)
        action = one_of(body, "action", ("accept", "decline", "cancel"))
        content = field(body, "content", dict, {})
        asked = self._one(id, field(body, "elicitation_id", str, ""), "", ("question",))
        answer = {"action": action, "content": content} if action == "accept" else {"action": action}
        self._answer(id, asked, answer, owner)
        return reply({"status": "answered", "message": "elicitation answered", "elicitation_id": asked["id"]})

    def _open(self, id: str) -> list[dict[str, Any]]:
        """The open requests of a session: id, kind, and the tool that it is about."""
        run = self.backend.runs.get(id)
        if run is not None:
            found = [open_request(event) for event in run.stream.pending]
            if found:
                return found
        self.load(id)  # an unknown session is another error than one that asks nothing
        return [
            {"id": each.id, "kind": each.kind, "tool": (each.event.get("tool_call") or {}).get("name", "")}
            for each in self.backend.store.pending(id)
        ]

    def _one(self, id: str, given: str, tool: str, kinds: Sequence[str]) -> dict[str, Any]:
        """The request that is answered: the one with the ``given`` id, or the only one. Raises `Problem`."""
        found = [each for each in self._open(id) if each["kind"] in kinds]
        if given:
            found = [each for each in found if each["id"] == given]
        elif tool and len(found) > 1:
            found = [each for each in found if each["tool"] == tool]
        if not found:
            raise not_pending()
        if len(found) > 1:  # an approval must not go to another call than the one that was seen
            ids = [each["id"] for each in found]
            raise Problem(
                409, "which", f"{len(found)} are waiting, so the answer needs an id: {', '.join(ids)}", ids=ids
            )
        return found[0]

    def _answer(self, id: str, asked: Mapping[str, Any], answer: Mapping[str, Any], owner: str) -> None:
        run = self.backend.runs.get(id)
        settled = None
        try:
            if run is None or not answer_live(run, asked, answer):
                settled = self.backend.store.answer(asked["id"], answer, by="http")
        except InvalidAnswer as error:
            problems = str(error).split("; ")
            raise Problem(422, "invalid_answer", str(error), problems=problems) from None
        except NotPending:
            raise not_pending() from None
        except SessionNotFound:
            raise unknown() from None
        self.backend.runs.answered(id)
        if self.backend.runs.get(id) is None:  # it was parked, before or meanwhile
            goes_on = self.backend.runs.go_on(id, self.backend.agent_of(self.load(id)))
            if not goes_on and settled is not None and self.backend.own_store:  # of others, the log watches
                self.backend.log.tell(id, settled_event(settled))


def not_pending() -> Problem:
    return Problem(409, "not_pending", "nothing like that is waiting: it was answered, was withdrawn, or has timed out")
