"""What a session asks its user: the approvals, questions and requests for more turns that nobody has answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import events
from .._errors import NotPending
from ._backend import Backend
from ._runs import LiveRun
from ._session_json import event_list, stored_event


def asked_by(backend: Backend, run: LiveRun | None, id: str, form: str) -> list[dict[str, Any]]:
    """What the session asks: the events of the requests that nobody has answered."""
    if run is not None:
        return event_list(run.stream.pending, form)
    return [stored_event(each.event, form) for each in backend.store.pending(id)]


def open_request(event: events.Event) -> dict[str, Any]:
    """What an answer has to know of the request that an event has told of: id, kind, and the tool that it is about."""
    if isinstance(event, events.ToolCallConfirmation):
        return {"id": event.confirmation_id, "kind": "approval", "tool": event.tool_call.name}
    if isinstance(event, events.ElicitationRequest):
        return {"id": event.elicitation_id, "kind": "question", "tool": event.tool_name}
    return {"id": getattr(event, "request_id", ""), "kind": "turns", "tool": ""}


def answer_live(run: LiveRun, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
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
