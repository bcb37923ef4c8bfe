"""The events in docker-agent's JSON, so that its API clients decode them.

The names of the types are docker-agent's already, but for one; the fields of these types are not. What docker-agent
has no field for stands beside its own, under our name, where a client needs it to answer (``confirmation_id``) or to
show what happened. Its clients, which are written in Go, leave out fields that they do not know, refuse a field of the
wrong JSON type with the whole event, and match names without regard to case: no name here may be one of theirs with
another type. The source of the fields is the ``Event`` types of its package ``runtime``, of November 2026.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

from .. import events
from .._catalog import window_of
from ..session._message import ToolCall

JSON = dict[str, Any]


def docker_agent_json(event: events.Event) -> JSON:
    """The event as docker-agent would send it, ready for `json.dumps`."""
    form = _FORMS.get(type(event))
    if form is None:
        return event.to_dict()
    common = {
        "type": event.type,
        "agent_name": event.agent_name,
        "session_id": event.session_id,
        "timestamp": event.timestamp.isoformat(),
    }
    return {**common, **form(event)}


def _text(event: events.AgentChoice | events.AgentChoiceReasoning) -> JSON:
    return {"content": event.content}  # as `to_dict` has it, which asks for the fields: most events are these two


def _user_message(event: events.UserMessage) -> JSON:
    return {"message": event.message, "session_position": -1}  # -1: unknown


def _call(event: events.ToolCallStarted | events.PartialToolCall) -> JSON:
    return {"tool_call": _tool_call(event.tool_call), "tool_definition": _definition(event.tool_call.name)}


def _confirmation(event: events.ToolCallConfirmation) -> JSON:
    hints = {"destructiveHint": event.destructive, "openWorldHint": event.open_world}
    return {
        "tool_call": _tool_call(event.tool_call),
        "tool_definition": _definition(event.tool_call.name, event.server, hints),
        "confirmation_id": event.confirmation_id,
        "arguments": event.to_dict()["arguments"],
        "destructive": event.destructive,
        "server": event.server,
        "open_world": event.open_world,
    }


def _output(event: events.ToolCallOutput) -> JSON:
    return {
        "tool_call_id": event.tool_call.id,
        "tool_definition": _definition(event.tool_call.name),
        "output": event.output,
        "progress": event.progress,
        "total": event.total,
    }


def _response(event: events.ToolCallResponse) -> JSON:
    result: JSON = {"output": event.response, "isError": event.is_error}
    if event.images:
        result["images"] = [
            {"data": base64.b64encode(image.data).decode(), "mimeType": image.media_type} for image in event.images
        ]
    return {
        "tool_call_id": event.tool_call.id,
        "tool_call": _tool_call(event.tool_call),  # what clients of before May 2026 read instead of the id
        "tool_definition": _definition(event.tool_call.name),
        "response": event.response,
        "result": result,
        "is_error": event.is_error,
    }


def _elicitation(event: events.ElicitationRequest) -> JSON:
    asked: JSON = {"message": event.message, "mode": event.mode, "elicitation_id": event.elicitation_id}
    if event.schema:
        asked["schema"] = event.to_dict()["schema"]
    if event.url:
        asked["url"] = event.url
    return {**asked, "tool_name": event.tool_name, "server": event.server, "tool_call_id": event.tool_call_id}


def _authorization(event: events.AuthorizationEvent) -> JSON:
    """docker-agent tells how a sign-in has ended; where it is only asked for, nothing is confirmed."""
    ended = {"granted": "accept", "failed": "decline"}
    said = {"server": event.server, "status": event.status, "url": event.url}
    return {"confirmation": ended.get(event.status, ""), **said}


def _usage(event: events.TokenUsage) -> JSON:
    """docker-agent's counts are those of the last model call, which is what fills the context; its cost is the total.
    Its input tokens are without those from the cache where it tells of the last message, and with them elsewhere.
    """
    last = {
        "input_tokens": event.input_tokens - event.cached_tokens,
        "output_tokens": event.output_tokens,
        "cached_input_tokens": event.cached_tokens,
        "cached_write_tokens": 0,
        "reasoning_tokens": event.reasoning_tokens,
        "Cost": event.cost or 0.0,
        "Model": event.model,
    }
    usage = {
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "context_length": event.input_tokens + event.output_tokens,
        "context_limit": window_of(event.model, None) or 0,
        "cost": event.total_cost or 0.0,
        "last_message": last,
    }
    return {
        "usage": usage,
        "total_input_tokens": event.total_input_tokens,
        "total_output_tokens": event.total_output_tokens,
        "total_cost": event.total_cost,  # null where a model has no price; docker-agent says 0
    }


def _fallback(event: events.ModelFallback) -> JSON:
    """The attempts are not counted here: a model has failed for good when the next one takes over."""
    models = {"failed_model": event.from_model, "fallback_model": event.to_model}
    return {**models, "reason": event.reason, "attempt": 1, "max_attempts": 1}


def _budget(event: events.BudgetExceeded) -> JSON:
    return {
        "budget": "",  # its name; budgets have none here
        "limit": event.kind,
        "used": event.used,
        "max": event.limit,
        "config_path": "",
        "stop_message": f"the budget of {event.limit:g} ({event.kind}) is used up: {event.used:g}",
    }


def _team(event: events.TeamInfo) -> JSON:
    agents = [{"name": name, "description": "", "provider": "", "model": ""} for name in event.agents]
    return {"available_agents": agents, "current_agent": event.agent_name}


def _toolset(event: events.ToolsetInfo) -> JSON:
    return {"available_tools": len(event.tools), "loading": False, "tools": list(event.tools)}


def _switching(event: events.AgentSwitching) -> JSON:
    return {"switching": True, "from_agent": event.from_agent, "to_agent": event.to_agent}


def _sub_session(event: events.SubSessionCompleted) -> JSON:
    session = {"id": event.sub_session_id, "title": "", "messages": [], "created_at": event.timestamp.isoformat()}
    return {"parent_session_id": event.session_id, "sub_session": session, "reason": event.reason}


def _hook_started(event: events.HookStarted) -> JSON:
    return {"hook_event": event.hook_event, "hook": event.hook}


def _hook_finished(event: events.HookFinished) -> JSON:
    more = {"duration_ms": 0, "allowed": not event.error, "error": event.error}
    return {"hook_event": event.hook_event, "hook": event.hook, **more}


def _hook_blocked(event: events.HookBlocked) -> JSON:
    call = event.tool_call or ToolCall("", "", "")  # a hook may block what is no tool call; docker-agent has no such
    return {
        "tool_call": _tool_call(call),
        "tool_definition": _definition(call.name),
        "message": event.reason,
        "hook_event": event.hook_event,
    }


def _compaction(event: events.SessionCompaction) -> JSON:
    """A compaction that has failed is over, and its outcome says how: a client that waits for its end sees it."""
    outcomes = {"completed": "applied", "failed": "failed"}
    if outcome := outcomes.get(event.status):
        return {"status": "completed", "outcome": outcome}
    return {"status": event.status}


def _paused(event: events.Paused) -> JSON:
    return {"type": "runtime_paused"}


def _tool_call(call: ToolCall) -> JSON:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _definition(name: str, server: str = "", hints: Mapping[str, bool] | None = None) -> JSON:
    """What an event knows of its tool; docker-agent repeats the whole definition in every event."""
    known = {"name": name, "category": "mcp" if server else "", "description": ""}
    return {**known, "parameters": None, "annotations": dict(hints or {}), "outputSchema": None}


_FORMS: Final[Mapping[type[events.Event], Callable[[Any], JSON]]] = {
    events.AgentChoice: _text,
    events.AgentChoiceReasoning: _text,
    events.UserMessage: _user_message,
    events.ToolCallStarted: _call,
    events.PartialToolCall: _call,
    events.ToolCallConfirmation: _confirmation,
    events.ToolCallOutput: _output,
    events.ToolCallResponse: _response,
    events.ElicitationRequest: _elicitation,
    events.AuthorizationEvent: _authorization,
    events.TokenUsage: _usage,
    events.ModelFallback: _fallback,
    events.BudgetExceeded: _budget,
    events.TeamInfo: _team,
    events.ToolsetInfo: _toolset,
    events.AgentSwitching: _switching,
    events.SubSessionCompleted: _sub_session,
    events.HookStarted: _hook_started,
    events.HookFinished: _hook_finished,
    events.HookBlocked: _hook_blocked,
    events.SessionCompaction: _compaction,
    events.Paused: _paused,
}
