"""A recorded run: a file of JSON lines, which `Runtime.run_stream` writes and `ReplayModel` answers from.

The first line says what was recorded and has the session as it was before; then come the events, in their wire form,
and what went to and from the models: ``model_request`` and ``model_reply``, which share a ``request`` number.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .. import events
from .._checks import check_path
from .._dataclasses import dataclass, fields, replace
from .._public import publish
from ..agent._agent import TEAM_TOOLS
from ..agent._tool import CallContext, Tool, ToolResult
from ..foreign._redact import Redaction
from ..human._mailbox import Mail
from ..model import ToolDefinition
from ..schema._checking import Schema
from ..session._journal import MailPoint
from ..session._message import Message, ToolCall, canonical
from ..session._session import Session

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
#: What the fields of an event have to be, by their annotations.
_KINDS: Final[Mapping[str, tuple[Any, str]]] = {
    "str": (str, "text"),
    "StopReason": (str, "text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number"),
    "bool": (bool, "true or false"),
    "ToolCall": (ToolCall, "a tool call"),
    "tuple[str, ...]": (tuple, "a list"),
}
HEADER: Final = "record"
REQUEST: Final = "model_request"
REPLY: Final = "model_reply"
RETURNED: Final = "tool_returned"
ANSWERED: Final = "user_answered"
MAILED: Final = "user_mailed"
TRAFFIC: Final = frozenset((REQUEST, REPLY, RETURNED, ANSWERED, MAILED))  # what is no event
CUT_OFF: Final = "cut off"  # the error of a reply whose stream was cancelled meanwhile
_NOT_SHOWN: Final = frozenset(("created_at", "agent_name", "model", "usage", "finish_reason"))

#: What `map` takes: the record of the run on a session, or None for none.
RecordOf: TypeAlias = "Callable[[Session], Recording | str | os.PathLike[str] | None]"


@dataclass(frozen=True, slots=True)
class Request:
    """One model call of a record. ``messages`` and ``tools`` are what `shown` and `Recording` make of them."""

    number: int
    agent_name: str
    session_id: str
    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    reply: Mapping[str, Any] | None  # None: the record ends before the model had answered
    mail: Sequence[Mail]  # what the user said before the next one of the stream


class _Unreadable(ValueError):
    """What is wrong with a record, said with its place."""


class Recording:
    """The file of a recorded run, which ``run_stream(session, record=...)`` writes and this class reads.

    Everything that looks like a secret is left out of the file: see docs/replay.md. ``redact`` removes more: it is
    called, on a helper thread, with every text, and returns the text to write. It has to leave a text alone that it has
    returned before. Reading raises `ValueError` for a file that is not a record, and `OSError`.
    """

    def __init__(self, path: str | os.PathLike[str], *, redact: Callable[[str], str] | None = None) -> None:
        from pathlib import Path  # which brings along how addresses are parsed

        check_path("the file of a recording", path)
        if redact is not None and not callable(redact):
            raise TypeError(f"redact must be a function from a text to a text, or None, not {redact!r:.200}")
        self.path: Path = Path(path)
        self.redaction = Redaction(redact)

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                with self._reading(number):
                    try:
                        said = json.loads(line.decode("utf-8"))
                    except (ValueError, RecursionError) as error:
                        if number == 1:
                            break
                        if not line.endswith(b"\n"):
                            break  # the process that wrote it died there
                        raise ValueError(f"not JSON: {error}") from None
                    if number > 1 and not (isinstance(said, dict) and isinstance(said.get("type"), str)):
                        raise ValueError("not an object that has a type")
                    lines.append(said)
        if not lines or not isinstance(lines[0], dict) or lines[0].get("type") != HEADER:
            if not self.path.stat().st_size:
                raise _Unreadable(f"{self.path} is empty, and no recorded run")
            raise _Unreadable(f"{self.path} is not a recorded run: its first line is not of type {HEADER!r}")
        if lines[0].get("version") != VERSION:
            version = lines[0].get("version")
            raise _Unreadable(f"{self.path} was recorded in version {version!r:.100} of the format, not {VERSION}")
        return lines

    @contextlib.contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        """What is wrong with a line, which may be anybody's, is said with its number."""
        try:
            yield
        except _Unreadable:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, LookupError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise _Unreadable(f"{self.path}, line {number}: {what:.500}") from None

    @property
    def whole(self) -> bool:
        """Whether the record has the last event of the run. It has not if the process was killed before, or if the
        record could not be written to its end, which was logged at that time.
        """
        return str(self._lines[-1]["type"]) == events.StreamStopped.type

    @property
    def agent_name(self) -> str:
        """The name of the agent that the run began with."""
        with self._reading(1):
            return str(self._lines[0]["agent_name"])

    def session(self) -> Session:
        """A new session that is as the recorded session was before the run, with what the user said to the run before
        its first model call.
        """
        with self._reading(1):
            session = Session.from_dict(self._lines[0]["session"])
        root = next((line.get("session_id") for line in self._lines[1:]), None)
        for number, line in enumerate(self._lines, 1):
            if line["type"] == REQUEST and line.get("session_id") == root:
                break
            if line["type"] == MAILED and line.get("session_id") == root:
                with self._reading(number):
                    session.add_user(_mail(line).text)
        return session

    def events(self) -> Iterator[events.Event]:
        """The events of the run and of its nested streams. The last is `StreamStopped`, if the record is `whole`."""
        for number, line in enumerate(self._lines, 1):
            if line["type"] != HEADER and line["type"] not in TRAFFIC:
                with self._reading(number):
                    event = events.Event.from_dict(line)
                    for each in fields(event):
                        kinds, said = _KINDS.get(str(each.type), (object, ""))
                        if not isinstance(getattr(event, each.name), kinds):
                            raise TypeError(f"{each.name} of {event.type} is not {said}")
                yield event

    @cached_property
    def requests(self) -> list[Request]:
        """The model calls of the run, in the order in which they began."""
        replies = {line["request"]: line for line in self._lines if line["type"] == REPLY and _is_number(line)}
        requests = []
        before: dict[str, list[dict[str, Any]]] = {}
        tools: dict[str, list[dict[str, Any]]] = {}
        mail: dict[str, list[Mail]] = {}  # for the latest request of each stream
        for at, line in enumerate(self._lines, 1):
            if line["type"] == MAILED:
                with self._reading(at):
                    mail.get(line["session_id"], []).append(_mail(line))
            elif line["type"] == REQUEST:
                with self._reading(at):
                    session, number = line["session_id"], line["request"]
                    messages = before.get(session, [])[: line["same"]]
                    for index, message in line.get("changed", {}).items():
                        messages[int(index)] = message
                    messages = before[session] = messages + line["messages"]
                    tools[session] = line.get("tools", tools.get(session, []))
                    if not (_is_number(line) and _are(_MESSAGE, messages) and _are(_TOOL, tools[session])):
                        raise ValueError("not a request to a model")
                    said = line["agent_name"], session, line["model"], messages, tools[session], replies.get(number)
                    mail[session] = []
                    requests.append(Request(number, *said, mail[session]))
        return requests

    def tools(self, agent_name: str | None = None) -> list[Tool]:
        """Tools of the named agent, or else of the agent that the run began with, that only return the recorded
        results.

        A call gets the result of the same recorded call, or else of a call with the same arguments, in the order of the
        calls. The tools that run or hand over to other agents are left out, because those agents run again. A call that
        is not in the record gets an error as its result.
        """
        agent_name = agent_name or self.agent_name
        results = _Results(self, agent_name)

        def tool(name: str, description: str, parameters: Mapping[str, Any]) -> Tool:
            def recorded(context_of_the_call: CallContext, **arguments: Any) -> ToolResult:
                id = getattr(context_of_the_call, "call_id", "")
                return results.take(ToolCall(id, name, json.dumps(self.redaction.value(arguments), default=repr)))

            made = Tool(name, recorded, description=description, parameters=parameters, read_only=True)
            # The record has what came of arguments that are wrong, too; and a run that was no loop is none again.
            made.schema = Schema({"type": "object"})
            made.polling = not results.loop
            return made

        requests = [request for request in self.requests if request.agent_name == agent_name]
        known = {each["name"]: each for request in requests for each in request.tools if each["name"] not in TEAM_TOOLS}
        return [tool(each["name"], each["description"], each["parameters"]) for each in known.values()]

    def __repr__(self) -> str:
        return f"<Recording {str(self.path)!r}>"


class _Results:
    """The results of an agent's calls, each of which is given once. Thread-safe: calls run side by side."""

    def __init__(self, recording: Recording, agent_name: str) -> None:
        returned: dict[tuple[str, str], deque[ToolResult]] = {}
        for number, line in enumerate(recording._lines, 1):
            if line["type"] == RETURNED:
                with recording._reading(number):
                    key = line["session_id"], line["tool_call_id"]
                    returned.setdefault(key, deque()).append(ToolResult(line["content"], line["is_error"]))
        #: Each call with its result, in the order in which they were made, and not in that in which they ended.
        self._left: list[list[Any]] = []
        self.loop = False  # whether the run has ended as one that goes round in circles
        open: dict[tuple[str, str], list[Any]] = {}
        for event in recording.events():
            if isinstance(event, events.Error):
                self.loop = self.loop or event.code == "loop_detected"
            if not isinstance(event, (events.ToolCallStarted, events.ToolCallResponse)):
                continue
            if event.agent_name != agent_name:
                continue
            key = event.session_id, event.tool_call.id
            if isinstance(event, events.ToolCallStarted):
                open[key] = [event.tool_call, None]
                self._left.append(open[key])
            elif key in open:
                result = ToolResult(event.response, bool(event.is_error), event.images)
                if returned.get(key):
                    result = replace(returned[key].popleft(), images=event.images)
                open.pop(key)[1] = result
        self._lock = threading.Lock()

    def take(self, call: ToolCall) -> ToolResult:
        """The result of ``call``. Raises `LookupError` where there is none (any more)."""

        def likeness(each: list[Any]) -> int:
            made: ToolCall = each[0]
            return 2 * (canonical(made, made.parsed) == arguments) + (made.id == call.id)

        arguments = canonical(call, call.parsed)
        with self._lock:
            known = [each for each in self._left if each[0].name == call.name and each[1] is not None]
            found = max(known, key=likeness, default=None)  # the first of those
            if found is None or not likeness(found):
                raise LookupError(f"the record has no (other) call of {call.name} with these arguments")
            self._left.remove(found)
        result: ToolResult = found[1]
        return result


_MESSAGE: Final = {"role": str}
_TOOL: Final = {"name": str, "description": str, "parameters": dict}


def _are(kind: Mapping[str, type], given: object) -> bool:
    """Whether ``given`` is a list of objects that have these fields."""
    if not isinstance(given, list):
        return False
    return all(isinstance(each, dict) and all(isinstance(each.get(k), t) for k, t in kind.items()) for each in given)


def _is_number(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("request"), int)


def _mail(line: Mapping[str, Any]) -> Mail:
    point, text = line["point"], line["text"]
    if point not in typing.get_args(MailPoint) or not isinstance(text, str):
        raise ValueError("not a message of the user")
    return Mail(point, text)


def shown(message: Message) -> dict[str, Any]:
    """What a model sees of a message, as JSON has it."""
    return {key: value for key, value in message.to_dict().items() if key not in _NOT_SHOWN}


def shown_tool(tool: ToolDefinition) -> dict[str, Any]:
    """What a model sees of a tool, as JSON has it."""
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def same(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> int:
    """How many messages at the beginning of both are the same."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False)))


publish("runtime", globals(), ["Recording"])  # here: `runtime` imports this file when somebody asks for it
