"""`ReplayModel`: answers what the model of a recorded run answered."""

from __future__ import annotations

import difflib
import json
import os
import re
import threading
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from channels import CancelToken

from .._dataclasses import replace
from .._errors import ModelError, Portable
from ..agent._agent import Agent, Team
from ..foreign._redact import Redaction
from ..model import Delta, Model, ToolDefinition
from ..recording._recording import CUT_OFF, Recording, Request, same, shown, shown_tool
from ..session._message import Message, ToolCall

_DELTAS: Final = {kind.__name__: kind for kind in typing.get_args(Delta)}
_KEPT: Final = re.compile(r"the full text is in [^\n\]]{1,4096}")  # a file that is new each time
_CONTEXT: Final = 2  # lines of a difference that are the same


class ReplayDiverged(Portable):
    """A request to the model differs from the recorded request. The text says which request, and how it differs.

    ``request`` is the number of the request in the record, or None if the record has no more requests.
    """

    def __init__(self, message: str, request: int | None) -> None:
        super().__init__(message)
        self.request = request


class Recorded(Exception):
    """The model failed in the record, or the record ends there."""


class ReplayModel:
    """A model that gives the replies of a recorded run, in the same pieces and in the same order.

    It may be the model of several agents at once. Each request gets the reply of the same recorded request, so streams
    that ran at the same time are told apart by their requests. A request that differs from the next request of every
    recorded stream ends the run with `ReplayDiverged`. With ``strict=False`` it gets the reply of the most similar
    request, and `differences` collects what differed. Use a `ReplayModel` for one run only. Thread-safe.
    """

    def __init__(self, recording: Recording | str | os.PathLike[str], *, strict: bool = True) -> None:
        self.recording = recording if isinstance(recording, Recording) else Recording(recording)
        self.strict = strict
        #: The differences so far, with ``strict=False``.
        self.differences: list[str] = []
        self._left = list(self.recording.requests)
        if not self._left:
            raise ValueError(f"{self.recording.path} has no model call to answer from")
        self.id = self._left[0].model
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[Message, dict[str, Any]]] = {}

    @property
    def left(self) -> int:
        """The number of recorded requests that were not made yet."""
        return len(self._left)

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        """The recorded reply. Raises `ReplayDiverged`, and the error of the recorded model: `ModelError` or
        `Recorded`."""
        return self._stream(messages, tools, cancel)

    def _stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDefinition],
        cancel: CancelToken,
        part: _Part | None = None,
    ) -> Iterator[Delta]:
        request = self._find(messages, tools, part)
        reply = request.reply or {"deltas": [], "error": CUT_OFF}
        for each in reply["deltas"]:
            if cancel.cancelled:
                return
            said = dict(each)
            yield _DELTAS[said.pop("delta")](**said)
        yield from request.mail  # type: ignore[misc]  # no deltas, but for the mailbox of the stream
        if reply.get("code"):
            error = reply["error"]
            raise ModelError(reply["code"], error, retryable=reply["retryable"], retry_after=reply["retry_after"])
        if "error" in reply:
            raise Recorded(f"the model failed in the record, too: {reply['error']}")

    def _find(self, messages: Sequence[Message], tools: Sequence[ToolDefinition], part: _Part | None) -> Request:
        redaction = self.recording.redaction
        asked = _Comparable(
            [self._shown(message) for message in messages], _as_json(map(shown_tool, tools), redaction), part
        )
        with self._lock:
            streams: dict[str, Request] = {}
            for request in self._left:
                streams.setdefault(request.session_id, request)
            if not streams:
                cut = "" if self.recording.whole else ", which is not whole"
                raise ReplayDiverged(f"the run calls the model once more than the record{cut}", None)
            recorded = {id: _Comparable(next.messages, next.tools, part) for id, next in streams.items()}

            def likeness(id: str) -> tuple[object, ...]:  # two agents may be given the same task in the same words
                return *asked.likeness(recorded[id]), part is not None and part.agent_name == streams[id].agent_name

            found = max(recorded, key=likeness)
            request = streams[found]
            difference = asked.difference(recorded[found])
            if difference:
                which = f"request {request.number}, of agent {request.agent_name!r}"
                text = f"{which}, is not that of the record:\n{difference}"
                if self.strict:
                    raise ReplayDiverged(text, request.number)
                self.differences.append(text)
            self._left.remove(request)
        return request

    def _shown(self, message: Message) -> dict[str, Any]:
        """``message``, as the record has it. Looked into once: it comes again with every request."""
        known = self._seen.get(id(message))
        if known is None or known[0] is not message:
            [said] = _as_json([shown(message)], self.recording.redaction)
            known = self._seen[id(message)] = message, said
        return known[1]

    def team(self, team: Team, *, live_tools: bool = False) -> Team:
        """A copy of ``team`` for the replay. This model replaces the model of every agent and of its summaries,
        including sub-agents and handoffs. Unless ``live_tools`` is true, the agents get the recorded tools.
        """

        def change(agent: Agent) -> Agent:
            tools: dict[str, Any] = {} if live_tools else {"tools": self.recording.tools(agent.name), "toolsets": ()}
            # Functions and hooks say something new each time, such as what time it is; a text does not.
            said_anew = agent._instructions.function is not None or bool(agent.hooks)
            compaction = agent.compaction
            if compaction is not None:  # it has to happen where it happened then
                other = compaction.model and _Part(self, compaction.model, agent.name, False, recorded_tools=True)
                window = compaction.window or getattr(agent.model, "context_window", None)
                compaction = replace(compaction, window=window, model=other)
            model = _Part(self, agent.model, agent.name, said_anew, recorded_tools=not live_tools)
            return replace(agent, model=model, compaction=compaction, **tools)

        return team.map(change)

    def agent(self, agent: Agent, *, live_tools: bool = False) -> Agent:
        """A copy of ``agent`` for the replay, as `team` makes it."""
        return self.team(Team((agent,)), live_tools=live_tools).root

    def __repr__(self) -> str:
        return f"<ReplayModel of {str(self.recording.path)!r}, {self.left} requests left>"


class _Part:
    """The `ReplayModel` as the model of one agent: with the name and the window of the agent's own."""

    def __init__(
        self, replay: ReplayModel, model: Model, agent_name: str, said_anew: bool, recorded_tools: bool
    ) -> None:
        self.id = model.id
        self.agent_name = agent_name
        self.context_window = getattr(model, "context_window", None)
        self.said_anew = said_anew  # the instructions may be others than in the record
        self.recorded_tools = recorded_tools  # and so the tools may be no others
        self._replay = replay

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        """The recorded answer, as `ReplayModel.stream`."""
        return self._replay._stream(messages, tools, cancel, self)

    def __repr__(self) -> str:
        return f"<{self.id} of {self._replay!r}>"


class _Comparable:
    """A request, without what differs each time: the ids of calls are numbers, arguments are JSON."""

    def __init__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], part: _Part | None) -> None:
        ids: dict[str, str] = {}

        def number(id: str) -> str:
            return ids.setdefault(id, f"call {len(ids) + 1}")

        self.messages = []
        for message in messages:
            message = {**message, "content": _KEPT.sub("the full text is in a file", message.get("content", ""))}
            if part is not None and part.said_anew and message["role"] == "system":
                message["content"] = "instructions"
            if "tool_calls" in message:
                message["tool_calls"] = [
                    {**each, "id": number(each["id"]), "arguments": _said(ToolCall(**each))}
                    for each in message["tool_calls"]
                ]
            if "tool_call_id" in message:
                message["tool_call_id"] = number(message["tool_call_id"])
            self.messages.append(message)
        self.tools = sorted(tools, key=lambda tool: str(tool["name"]))
        if part is not None and part.recorded_tools:
            self.tools = []

    def likeness(self, other: _Comparable) -> tuple[bool, int, bool]:
        """The most like is the highest."""
        alike = same(self.messages, other.messages)
        return self.messages == other.messages, alike, self.tools == other.tools

    def difference(self, recorded: _Comparable) -> str:
        """How this differs from what was recorded, for people; empty where it does not."""
        lines = []
        if self.messages != recorded.messages:
            lines += _difference("messages", recorded.messages, self.messages)
        if self.tools != recorded.tools:
            lines += _difference("tools", recorded.tools, self.tools)
        return "\n".join(lines)


def _difference(what: str, recorded: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    before, after = _lines(recorded), _lines(now)
    return [*difflib.unified_diff(before, after, f"{what} in the record", f"{what} now", n=_CONTEXT, lineterm="")]


def _lines(said: list[dict[str, Any]]) -> list[str]:
    """One line for each line of a text and each thing that is said of it."""
    lines = []
    for each in said:
        lines.append(f"[{each.get('role') or each.get('name')}]")
        for key, value in each.items():
            if key in ("role", "name"):
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
            lines += [f"  {key}: {line}" for line in text.splitlines() or [""]]
    return lines


def _as_json(said: Iterable[dict[str, Any]], redaction: Redaction) -> list[dict[str, Any]]:
    """As the record would have it."""
    return [json.loads(json.dumps(redaction.value(each), default=repr)) for each in said]


def _said(call: ToolCall) -> Any:
    parsed = call.parsed
    return call.arguments if parsed is None else parsed
