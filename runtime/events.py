"""The events of a stream: one frozen dataclass for each kind.

The wire form (`Event.to_dict`) is JSON with a ``type``. The type names are those that docker-agent's API clients know;
the class names are the same words in CamelCase. ``agent_name`` is the agent that the event is about, ``session_id`` the
session of the stream (a nested stream has its own), ``timestamp`` the time of the event, in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

from ._dataclasses import dataclass, field, fields, shown
from ._errors import describe
from .session._message import Image, Message, ToolCall

__all__ = [
    "AgentChoice",
    "AgentChoiceReasoning",
    "AgentInfo",
    "AgentSwitching",
    "AuthorizationEvent",
    "BudgetExceeded",
    "ElicitationRequest",
    "Error",
    "Event",
    "HookBlocked",
    "HookFinished",
    "HookStarted",
    "MaxIterationsReached",
    "McpInitFinished",
    "McpInitStarted",
    "MessageAdded",
    "ModelFallback",
    "PartialToolCall",
    "Paused",
    "RequestSettled",
    "SessionCompaction",
    "SessionSummary",
    "SessionTitle",
    "StopReason",
    "StreamStarted",
    "StreamStopped",
    "SubSessionCompleted",
    "TeamInfo",
    "TokenUsage",
    "ToolCallConfirmation",
    "ToolCallOutput",
    "ToolCallResponse",
    "ToolCallStarted",
    "ToolsetInfo",
    "UserMessage",
    "Warning",
]

StopReason: TypeAlias = Literal[
    "normal", "error", "canceled", "hook_blocked", "loop_detected", "max_iterations", "budget_exceeded", "waiting"
]


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events, with the fields that all of them have."""

    type: ClassVar[str] = ""

    agent_name: str = field(default="", kw_only=True)
    session_id: str = field(default="", kw_only=True)
    timestamp: datetime = field(default_factory=partial(datetime.now, UTC), kw_only=True)

    def __init_subclass__(cls) -> None:
        if "__repr__" not in vars(cls):  # a dataclass would show what all events have first, and what it says last
            setattr(cls, "__repr__", Event.__repr__)  # noqa: B010

    def __repr__(self) -> str:
        common = ("agent_name", "session_id", "timestamp")
        told = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in common]
        told += [(name, getattr(self, name)) for name in common[:2] if getattr(self, name)]
        said = [*(f"{name}={shown(value)}" for name, value in told), f"timestamp={self.timestamp.isoformat()}"]
        return f"{type(self).__name__}({', '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        """The wire form, ready for `json.dumps`."""
        form: dict[str, Any] = {"type": self.type}
        for name in _names(type(self)):
            value = getattr(self, name)
            form[name] = value if type(value) is str else _wire_form(value)
        return form

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Event:
        """The event that `to_dict` wrote. Fields that this version does not know are ignored. Raises `ValueError` for
        anything else.
        """
        try:
            return _read(data)
        except (AttributeError, KeyError, TypeError) as error:
            problem = describe(error) if isinstance(data, Mapping) else f"a mapping is wanted, not {data!r:.200}"
            raise ValueError(f"this is not an event as to_dict() writes it: {problem}") from error


@dataclass(frozen=True, slots=True)
class StreamStarted(Event):
    """The first event of every stream."""

    type: ClassVar[str] = "stream_started"


@dataclass(frozen=True, slots=True)
class StreamStopped(Event):
    """The last event of every stream, and why it ended."""

    type: ClassVar[str] = "stream_stopped"

    reason: StopReason = "normal"


@dataclass(frozen=True, slots=True)
class UserMessage(Event):
    """What the user said, as the agent will see it."""

    type: ClassVar[str] = "user_message"

    message: str


@dataclass(frozen=True, slots=True)
class AgentChoice(Event):
    """A piece of the agent's reply."""

    type: ClassVar[str] = "agent_choice"

    content: str


@dataclass(frozen=True, slots=True)
class AgentChoiceReasoning(Event):
    """A piece of the reasoning that the model shows."""

    type: ClassVar[str] = "agent_choice_reasoning"

    content: str


@dataclass(frozen=True, slots=True)
class PartialToolCall(Event):
    """A tool call that the model is still writing; ``tool_call`` holds the part that has arrived."""

    type: ClassVar[str] = "partial_tool_call"

    tool_call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallStarted(Event):
    """A tool call begins: it will be checked, approved and run. A `ToolCallResponse` always follows."""

    type: ClassVar[str] = "tool_call"

    tool_call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallConfirmation(Event):
    """A tool call needs the user's approval. Answer with `EventStream.approve` or `reject`.

    ``arguments`` are the values that the tool will get, with the changes of hooks and with defaults. ``server`` is the
    MCP server that the tool belongs to, or empty. The tool itself declares ``destructive`` (its effect cannot be
    undone) and ``open_world`` (it reaches things outside).
    """

    type: ClassVar[str] = "tool_call_confirmation"

    tool_call: ToolCall
    confirmation_id: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    destructive: bool = False
    server: str = ""
    open_world: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallOutput(Event):
    """Progress of a running tool (`ToolContext.progress`): a text, and how far the tool has come, out of ``total``."""

    type: ClassVar[str] = "tool_call_output"

    tool_call: ToolCall
    output: str = ""
    progress: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class ToolCallResponse(Event):
    """The result of a tool call, as the model will see it."""

    type: ClassVar[str] = "tool_call_response"

    tool_call: ToolCall
    response: str
    is_error: bool = False
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class HookBlocked(Event):
    """A hook has blocked what was about to happen at the point ``hook_event``."""

    type: ClassVar[str] = "hook_blocked"

    hook_event: str
    reason: str
    tool_call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class HookStarted(Event):
    """A hook begins."""

    type: ClassVar[str] = "hook_started"

    hook_event: str
    hook: str


@dataclass(frozen=True, slots=True)
class HookFinished(Event):
    """A hook has ended. If it failed, ``error`` says how."""

    type: ClassVar[str] = "hook_finished"

    hook_event: str
    hook: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class ElicitationRequest(Event):
    """A tool asks the user a question. Answer with `EventStream.respond`.

    ``mode`` is ``form`` (``schema`` is the JSON schema of the answer) or ``url`` (the user is asked to visit ``url``).
    ``tool_name`` is the tool that asks, ``server`` the MCP server that the tool belongs to, or empty. ``tool_call_id``
    is the call that asks; it is empty for a server that asks while it is being started.
    """

    type: ClassVar[str] = "elicitation_request"

    elicitation_id: str
    message: str
    mode: str = "form"
    schema: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    tool_name: str = ""
    server: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class RequestSettled(Event):
    """A question, an approval or a request for more turns is not open any more: it was answered, by this consumer or
    another, or its time is over, or it was withdrawn.

    ``request_id`` is its ``elicitation_id``, ``confirmation_id`` or ``request_id``. ``outcome`` is ``approved`` or
    ``rejected`` for an approval, else ``accept``, ``decline`` or ``cancel``; ``reason`` is what was said with it, such
    as that nobody answered in time. Only runs that several consumers may look at send it (`runtime.serve`).
    """

    type: ClassVar[str] = "request_settled"

    request_id: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuthorizationEvent(Event):
    """A server wants the user to sign in at ``url`` (``status`` is ``required``; an `ElicitationRequest` follows), or a
    sign-in has ended: it was ``granted``, or has ``failed``.
    """

    type: ClassVar[str] = "authorization_event"

    server: str
    status: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Error(Event):
    """The stream failed. ``code`` is for programs: ``tool_failed``, ``hook_blocked``, ``model_error``, ``internal``
    ...
    """

    type: ClassVar[str] = "error"

    error: str
    code: str = "internal"


@dataclass(frozen=True, slots=True)
class Warning(Event):
    """Something went wrong, and the stream goes on."""

    type: ClassVar[str] = "warning"

    message: str


@dataclass(frozen=True, slots=True)
class TokenUsage(Event):
    """The tokens that a model call used, and the totals of the stream so far, including nested streams.

    ``cached_tokens`` are included in the input tokens, ``reasoning_tokens`` in the output tokens. Costs are in dollars,
    and None if a model has no price.
    """

    type: ClassVar[str] = "token_usage"

    model: str
    input_tokens: int
    output_tokens: int
    total_input_tokens: int
    total_output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None
    total_cost: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFallback(Event):
    """A model has failed, and the next one takes over."""

    type: ClassVar[str] = "model_fallback"

    from_model: str
    to_model: str
    reason: str


@dataclass(frozen=True, slots=True)
class MaxIterationsReached(Event):
    """The agent has used up its turns. Answer with `EventStream.extend`.

    ``request_id`` is empty if the run is not interactive; it then ends.
    """

    type: ClassVar[str] = "max_iterations_reached"

    max_iterations: int
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class BudgetExceeded(Event):
    """The stream has used up a budget: ``kind`` is ``tokens``, ``cost`` (dollars) or ``time`` (seconds)."""

    type: ClassVar[str] = "budget_exceeded"

    kind: str
    limit: float
    used: float


@dataclass(frozen=True, slots=True)
class AgentInfo(Event):
    """The agent that is in charge (``agent_name``), with its model and description."""

    type: ClassVar[str] = "agent_info"

    model: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class TeamInfo(Event):
    """The names of the agents of the team."""

    type: ClassVar[str] = "team_info"

    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolsetInfo(Event):
    """The names of the tools that the agent has."""

    type: ClassVar[str] = "toolset_info"

    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentSwitching(Event):
    """The conversation is handed over from one agent to another."""

    type: ClassVar[str] = "agent_switching"

    from_agent: str
    to_agent: str


@dataclass(frozen=True, slots=True)
class SubSessionCompleted(Event):
    """A nested stream has ended; ``reason`` is as in its own `StreamStopped`."""

    type: ClassVar[str] = "sub_session_completed"

    sub_session_id: str
    reason: StopReason = "normal"


@dataclass(frozen=True, slots=True)
class MessageAdded(Event):
    """The session has one more message. This version can read and write the event, but never sends it."""

    type: ClassVar[str] = "message_added"

    message: Message


@dataclass(frozen=True, slots=True)
class SessionTitle(Event):
    """The session has got a title."""

    type: ClassVar[str] = "session_title"

    title: str


@dataclass(frozen=True, slots=True)
class SessionSummary(Event):
    """A model has written a summary of the older messages of the session."""

    type: ClassVar[str] = "session_summary"

    summary: str


@dataclass(frozen=True, slots=True)
class SessionCompaction(Event):
    """The conversation is being shortened: ``status`` is ``started``, then ``completed`` or ``failed``."""

    type: ClassVar[str] = "session_compaction"

    status: str


@dataclass(frozen=True, slots=True)
class McpInitStarted(Event):
    """A toolset is being started, which may take a while."""

    type: ClassVar[str] = "mcp_init_started"

    toolset: str


@dataclass(frozen=True, slots=True)
class McpInitFinished(Event):
    """A toolset has started."""

    type: ClassVar[str] = "mcp_init_finished"

    toolset: str


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The stream is paused until `Runtime.resume`."""

    type: ClassVar[str] = "paused"


_TYPES: dict[str, type[Event]] = {
    kind.type: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}


_known: dict[type[Event], tuple[str, ...]] = {}


def _names(kind: type[Event]) -> tuple[str, ...]:
    """The fields of an event: to look them up anew costs more than to write them."""
    names = _known.get(kind)
    if names is None:
        names = _known[kind] = tuple(each.name for each in fields(kind))
    return names


def _wire_form(value: Any) -> Any:
    """``value`` in its wire form, ready for JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (Message, Image)):
        return value.to_dict()
    if isinstance(value, ToolCall):
        return {"id": value.id, "name": value.name, "arguments": value.arguments}
    if isinstance(value, Mapping):
        return {key: _wire_form(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_wire_form(item) for item in value]
    return value


def _read(data: Mapping[str, Any]) -> Event:
    kind = _TYPES.get(data.get("type", ""))
    if kind is None:
        raise ValueError(f"unknown event type {data.get('type')!r:.200}; known are {', '.join(sorted(_TYPES))}")
    values = {f.name: data[f.name] for f in fields(kind) if f.name in data}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(values.get("timestamp"), str):
        values["timestamp"] = datetime.fromisoformat(values["timestamp"])
    if isinstance(values.get("tool_call"), Mapping):
        values["tool_call"] = ToolCall(**values["tool_call"])
    if kind is ToolCallResponse and "images" in values:
        values["images"] = tuple(Image.from_dict(each) for each in values["images"])
    if kind is MessageAdded and isinstance(values.get("message"), Mapping):
        values["message"] = Message.from_dict(dict(values["message"]))
    return kind(**values)
