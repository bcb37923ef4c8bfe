"""Sessions, messages and requests as replies have them: in docker-agent's JSON, and what only we have beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ..events import Event, RequestSettled
from ..session._journal import Request
from ..session._message import Message
from ..session._session import Session
from ..stores._store import SessionInfo
from ._event_log import FORMS

JSON = dict[str, Any]


def session_json(session: Session, info: SessionInfo | None, form: str) -> JSON:
    """The session with its messages."""
    messages = session.messages
    created = info.created_at if info is not None else messages[0].created_at if messages else datetime.now(UTC)
    usage = session.usage
    return {
        "id": session.id,
        "title": session.title,
        "messages": [message_json(each, form) for each in messages],
        "created_at": created.isoformat(),
        "tools_approved": session.permissions.approve_all,
        "permissions": permissions_json(session),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }


def permissions_json(session: Session) -> JSON:
    """Which calls of the session are allowed, asked about and denied."""
    said = session.permissions
    return {name: [str(rule) for rule in getattr(said, name)] for name in ("allow", "ask", "deny")}


def info_json(info: SessionInfo, session: Session | None = None) -> JSON:
    """An entry in a list of sessions."""
    usage = None if session is None else session.usage
    return {
        "id": info.id,
        "title": info.title,
        "created_at": info.created_at.isoformat(),
        "updated_at": info.updated_at.isoformat(),
        "num_messages": info.messages,
        "input_tokens": 0 if usage is None else usage.input_tokens,
        "output_tokens": 0 if usage is None else usage.output_tokens,
        "status": info.status,
        "waiting": info.waiting,
    }


def message_json(message: Message, form: str) -> JSON:
    """A message, in docker-agent's JSON or ours."""
    if form == "lockgate":
        said = message.to_dict()
        said.pop("native", None)  # what only the provider reads, and may be long
        return said
    inner: JSON = {"role": message.role, "content": message.content, "created_at": message.created_at.isoformat()}
    if message.images:
        inner["multi_content"] = [
            {"type": "text", "text": message.content},
            *(
                {
                    "type": "image_url",
                    "image_url": {"url": f"data:{each.media_type};base64,{base64.b64encode(each.data).decode()}"},
                }
                for each in message.images
            ),
        ]
    if message.tool_calls:
        inner["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in message.tool_calls
        ]
    if message.tool_call_id is not None:
        inner["tool_call_id"] = message.tool_call_id
        inner["is_error"] = message.is_error
    if message.model is not None:
        inner["model"] = message.model
    return {"agentName": message.agent_name or "", "message": inner}


def request_json(request: Request, form: str) -> JSON:
    """A request that waits for its user."""
    return {
        "id": request.id,
        "session_id": request.root_id,
        "kind": request.kind,
        "event": stored_event(request.event, form),
        "expires_at": None if request.expires_at is None else request.expires_at.isoformat(),
    }


def settled_event(request: Request) -> RequestSettled:
    """The event that tells of the answer which a store has for a request."""
    said = request.answer or {}
    if request.kind == "approval":
        outcome = "approved" if said.get("approved") else "rejected"
    else:
        outcome = str(said.get("action", "cancel"))
    return RequestSettled(request.id, outcome, str(said.get("reason") or ""), session_id=request.session_id)


def stored_event(wire: Mapping[str, Any], form: str) -> JSON:
    """An event that a store has kept, in the form that the client wants."""
    if form == "lockgate":
        return dict(wire)
    try:
        return FORMS[form](Event.from_dict(wire))
    except (TypeError, ValueError, KeyError):  # of another version
        return dict(wire)


def event_list(events: Iterable[Event], form: str) -> list[JSON]:
    """Events in the form that the client wants."""
    return [FORMS[form](event) for event in events]
