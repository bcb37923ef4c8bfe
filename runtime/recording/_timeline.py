"""The timeline of a recorded run: what was under way from when to when, of whom, and what came of it.

Times are those that the events say, which a file from elsewhere may say as it likes: a span never ends before it
begins, and nothing is before the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from .. import events
from .._dataclasses import dataclass, field
from ..session._message import ToolCall
from ._recording import ANSWERED, HEADER, REPLY, REQUEST, TRAFFIC, Recording

SpanKind: TypeAlias = Literal["model", "tool", "user", "hook", "toolset", "agent", "pause"]
NoteKind: TypeAlias = Literal["user", "agent", "note", "error"]

_DEEPEST: Final = 10  # streams inside each other, as far as they are told apart


@dataclass(slots=True)
class Span:
    """Something that took its time. Times are seconds since the run began."""

    kind: SpanKind
    name: str
    start: float
    end: float
    agent_name: str
    depth: int  # of the stream, in others
    turn: int  # of its stream
    said: str = ""  # arguments, or what the user was asked
    result: str = ""
    failed: bool = False
    whole: bool = True  # False: the record does not have its end

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(slots=True)
class Note:
    """Something that was said."""

    kind: NoteKind
    text: str
    at: float
    agent_name: str
    depth: int
    turn: int


@dataclass(slots=True)
class Timeline:
    """A recorded run, in its order."""

    agent_name: str
    began: datetime | None
    seconds: float = 0.0
    reason: str = ""  # why it ended; "" where the record does not have its end
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    turns: int = 0  # of the outermost stream
    entries: list[Span | Note] = field(default_factory=list)  # by when they began

    @property
    def spans(self) -> list[Span]:
        """What took its time."""
        return [entry for entry in self.entries if isinstance(entry, Span)]

    def total(self, kind: SpanKind) -> float:
        """For how many seconds something of this kind was under way in the outermost stream, side by side counted
        once.
        """
        total = until = 0.0
        for span in sorted((span for span in self.spans if span.kind == kind), key=lambda span: span.start):
            total += max(0.0, span.end - max(span.start, until))
            until = max(until, span.end)
        return total


def timeline(recording: Recording) -> Timeline:
    """The timeline of the run. Raises `ValueError` for a file that is no record, and `OSError`."""
    return _Reader(recording).read()


class _Reader:
    """Reads a record once, top to bottom."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._line = Timeline(recording.agent_name, None)
        self._now = 0.0
        self._open: dict[tuple[str, ...], Span] = {}
        self._depths: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._asked: dict[tuple[str, str], str] = {}  # the approvals that calls wait for
        self._text: dict[str, Note] = {}  # by session: what its agent is saying

    def read(self) -> Timeline:
        self._nesting()
        parsed = self._recording.events()
        for number, said in enumerate(self._recording._lines, 1):
            with self._recording._reading(number):
                if said["type"] == HEADER:
                    continue
                session = str(said.get("session_id", ""))
                if said["type"] in TRAFFIC:
                    self._traffic(session, said)
                    continue
                event = next(parsed)
                self._clock(event.timestamp)
                self._take(session, event)
        line = self._line
        for span in self._open.values():
            span.end, span.whole = max(self._now, span.start), False
        line.seconds = max([self._now, *(span.end for span in line.spans)])
        line.entries.sort(key=lambda entry: entry.start if isinstance(entry, Span) else entry.at)
        return line

    def _nesting(self) -> None:
        """How deep each session is in others."""
        parents: dict[str, str] = {}
        root = ""
        for event in self._recording.events():
            root = root or event.session_id
            if isinstance(event, events.SubSessionCompleted):
                parents.setdefault(event.sub_session_id, event.session_id)
        for session in {event.session_id for event in self._recording.events()}:
            at, depth = session, 0
            while at != root and depth < _DEEPEST:
                at, depth = parents.get(at, root), depth + 1
            self._depths[session] = depth

    def _clock(self, moment: Any) -> None:
        if not isinstance(moment, datetime):
            return
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        if self._line.began is None:
            self._line.began = moment
        self._now = max((moment - self._line.began).total_seconds(), 0.0)

    def _begin(self, key: tuple[str, ...], kind: SpanKind, name: str, session: str, agent: str, said: str = "") -> Span:
        depth, turn = self._depths.get(session, 0), self._turns.get(session, 0)
        span = Span(kind, name, self._now, self._now, agent, depth, turn, said)
        self._end(key)  # a second of the same name: the first has no end in the record
        self._open[key] = span
        self._line.entries.append(span)
        return span

    def _end(self, key: tuple[str, ...], result: str = "", failed: bool = False) -> None:
        span = self._open.pop(key, None)
        if span is not None:
            span.end, span.result, span.failed = max(self._now, span.start), result, failed

    def _note(self, kind: NoteKind, text: str, event: events.Event) -> Note:
        session = event.session_id
        depth, turn = self._depths.get(session, 0), self._turns.get(session, 0)
        note = Note(kind, text, self._now, event.agent_name, depth, turn)
        self._line.entries.append(note)
        return note

    def _traffic(self, session: str, said: Mapping[str, Any]) -> None:
        if isinstance(said.get("timestamp"), str):
            self._clock(datetime.fromisoformat(said["timestamp"]))
        if said["type"] == REQUEST:
            self._turns[session] = self._turns.get(session, 0) + 1
            if not self._depths.get(session):
                self._line.turns = self._turns[session]
            self._text.pop(session, None)
            name, agent = str(said.get("model", "")), str(said.get("agent_name", ""))
            self._begin(("model", str(said.get("request"))), "model", name, session, agent)
        elif said["type"] == REPLY:
            error = str(said.get("error", ""))
            self._end(("model", str(said.get("request"))), error, bool(error))
        elif said["type"] == ANSWERED:
            self._end(("user", str(said.get("request_id"))))

    def _take(self, session: str, event: events.Event) -> None:
        self._end(("pause", session))
        if isinstance(event, events.AgentChoice):
            note = self._text.get(session)
            if note is None:
                self._text[session] = self._note("agent", event.content, event)
            else:
                note.text += event.content
            return
        for take in (self._take_call, self._take_question, self._take_other):
            if take(session, event):
                return

    def _take_call(self, session: str, event: events.Event) -> bool:
        if isinstance(event, events.ToolCallStarted):
            call = event.tool_call
            self._text.pop(session, None)
            self._begin(("tool", session, call.id), "tool", call.name, session, event.agent_name, call.arguments)
        elif isinstance(event, events.ToolCallResponse):
            self._end(("user", self._asked.pop((session, event.tool_call.id), "")))
            self._end(("tool", session, event.tool_call.id), event.response, event.is_error)
        else:
            return False
        return True

    def _take_question(self, session: str, event: events.Event) -> bool:
        if isinstance(event, events.ToolCallConfirmation):
            self._asked[session, event.tool_call.id] = event.confirmation_id
            asked = event.confirmation_id, f"may {event.tool_call.name} be called?"
        elif isinstance(event, events.ElicitationRequest):
            asked = event.elicitation_id, event.message
        elif isinstance(event, events.MaxIterationsReached) and event.request_id:
            asked = event.request_id, "may it take more turns?"
        else:
            return False
        self._begin(("user", asked[0]), "user", "the user", session, event.agent_name, asked[1])
        return True

    def _take_other(self, session: str, event: events.Event) -> bool:
        if isinstance(event, events.HookStarted):
            self._begin(("hook", session, event.hook), "hook", event.hook, session, event.agent_name, event.hook_event)
        elif isinstance(event, events.HookFinished):
            self._end(("hook", session, event.hook), event.error, bool(event.error))
        elif isinstance(event, events.McpInitStarted):
            self._begin(("toolset", session, event.toolset), "toolset", event.toolset, session, event.agent_name)
        elif isinstance(event, events.McpInitFinished):
            self._end(("toolset", session, event.toolset))
        elif isinstance(event, events.AgentInfo) and self._depths.get(session):
            self._begin(("agent", session), "agent", event.agent_name, session, event.agent_name)
        elif isinstance(event, events.SubSessionCompleted):
            self._end(("agent", event.sub_session_id), event.reason, event.reason != "normal")
        elif isinstance(event, events.Paused):
            self._begin(("pause", session), "pause", "paused", session, event.agent_name)
        elif isinstance(event, events.TokenUsage):
            if not self._depths.get(session):  # with those of the streams inside
                self._line.input_tokens, self._line.output_tokens = event.total_input_tokens, event.total_output_tokens
                self._line.cost = event.total_cost
        elif isinstance(event, events.StreamStopped):
            if not self._depths.get(session):
                self._line.reason = event.reason
        else:
            self._say(event)
        return True

    def _say(self, event: events.Event) -> None:
        if isinstance(event, events.UserMessage):
            self._note("user", event.message, event)
        elif isinstance(event, events.Error):
            self._note("error", f"{event.code}: {event.error}", event)
        elif isinstance(event, events.Warning):
            self._note("note", event.message, event)
        elif isinstance(event, events.ModelFallback):
            self._note("note", f"{event.from_model} failed, {event.to_model} takes over: {event.reason}", event)
        elif isinstance(event, events.HookBlocked):
            self._note("note", f"a {event.hook_event} hook blocks: {event.reason}", event)
        elif isinstance(event, events.AgentSwitching):
            self._note("note", f"{event.from_agent} hands over to {event.to_agent}", event)
        elif isinstance(event, events.BudgetExceeded):
            self._note("error", f"{event.kind} {event.used:g}, of {event.limit:g} allowed", event)


def arguments_of(span: Span, most: int) -> Iterator[tuple[str, str]]:
    """The arguments of a tool call, each as JSON and at most so long; one without a name where they are no object."""
    parsed = ToolCall("", span.name, span.said).parsed
    if parsed is None:
        if span.said:
            yield "", span.said[:most]
        return
    for name, value in parsed.items():
        yield str(name), json.dumps(value, ensure_ascii=False)[:most]
