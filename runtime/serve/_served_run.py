"""One run that an MCP client has asked for: the thread that reads its stream, and what it has to say to the client."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from channels._lazy import lazy_logger

from .. import events
from .._dataclasses import dataclass, field
from .._errors import InvalidAnswer, NotPending, RunError, describe
from ..foreign import _json
from ..runtime import Runtime
from ..session._session import Session
from ..stream._event_stream import EventStream

_logger = lazy_logger("runtime.serve")
MORE: Final = 10  # turns that a user adds
SHOWN: Final = 2000  # characters of a call's arguments, or of progress
TRIES: Final = 3  # times that a question is asked whose answers are wrong


@dataclass(frozen=True, slots=True)
class Question:
    """Something that the user of the client is asked: a form, or a page to visit."""

    id: str
    message: str
    schema: Mapping[str, Any]
    url: str = ""
    event: Any = None
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What the run does."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the run."""

    text: str
    is_error: bool = False
    structured: Mapping[str, Any] = field(default_factory=dict)


Message: TypeAlias = Question | Progress | Done


class ServedRun:
    """A run under way. Used on the thread of one event loop, but for the thread that it has itself."""

    def __init__(self, runtime: Runtime, session: Session, *, interactive: bool) -> None:
        self.state = secrets.token_urlsafe(24)  # by which a client that comes back finds it: not to be guessed
        self.session = session
        self.open: dict[str, Question] = {}  # that the client has been asked
        self.steps = 0
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stream: EventStream = runtime.run_stream(session, interactive=interactive)
        self._thread = threading.Thread(target=self._read, name=f"served run {session.id[:8]}", daemon=True)
        self._thread.start()

    # -- the thread of the run

    def _read(self) -> None:
        try:
            with self._stream as stream:
                for event in stream:
                    if (message := _message(event)) is not None:
                        self._tell(message)
                result = stream.result()
            structured: dict[str, Any] = {"conversation": self.session.id}
            self._tell(Done(result.text or "[no text]", structured=structured))
        except RunError as error:
            if error.reason == "error":
                tags = self._stream._core.tags
                _logger.warning("a run of session %s has failed: %s", self.session.id, error, extra=tags)
            self._tell(Done(f"the run has failed: {error}", True, {"conversation": self.session.id}))
        except BaseException as error:
            self._tell(Done(f"the run has failed: {describe(error)}", True))

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    # -- the loop

    async def next(self) -> Message:
        """The next message."""
        return await self._messages.get()

    def asked_too(self) -> list[Question]:
        """The questions that are there already, one behind the other."""
        found: list[Question] = []
        kept: list[Message] = []
        while not self._messages.empty():
            message = self._messages.get_nowait()
            if isinstance(message, Question):
                found.append(message)
            else:
                kept.append(message)
        for message in kept:
            self._messages.put_nowait(message)
        return found

    def answer(self, question: Question, action: str, content: Mapping[str, Any] | None) -> None:
        """Answer a question of the run. A wrong answer is asked for once more."""
        self.open.pop(question.id, None)
        try:
            _answer(self._stream, question, action, dict(content or {}))
        except NotPending:
            pass  # it has been settled otherwise
        except InvalidAnswer as error:
            if question.tries >= TRIES:
                with contextlib.suppress(NotPending):
                    _answer(self._stream, question, "decline", {})
                return
            message = f"{question.message}\n(The last answer cannot be used: {error})"
            again = Question(question.id, message, question.schema, question.url, question.event, question.tries + 1)
            self._messages.put_nowait(again)

    def cancel(self, why: str) -> None:
        """End the run. Does not wait."""
        self._stream.cancel(why)

    def join(self, timeout: float) -> None:
        """Wait for the run's end. Any thread but the loop's."""
        self._thread.join(timeout)


def _message(event: events.Event) -> Message | None:
    """What the client has to know of an event."""
    match event:
        case events.ElicitationRequest():
            return Question(event.elicitation_id, event.message, event.schema, event.url, event)
        case events.ToolCallConfirmation():
            return Question(event.confirmation_id, _approval(event), _ALLOW, event=event)
        case events.MaxIterationsReached() if event.request_id:
            limit = f"its turn limit of {event.max_iterations}"
            message = f"{event.agent_name} has reached {limit}. May it take {MORE} more turns?"
            return Question(event.request_id, message, _GO_ON, event=event)
        case events.ToolCallStarted():
            return Progress(f"{event.agent_name} calls {event.tool_call.name}")
        case events.ToolCallOutput():
            return Progress(event.output[:SHOWN]) if event.output else None
        case events.AgentSwitching():
            return Progress(f"{event.to_agent} goes on")
        case events.Warning():
            return Progress(f"warning: {event.message[:SHOWN]}")
    return None


_ALLOW: Final = {
    "type": "object",
    "properties": {
        "allow": {
            "type": "string",
            "title": "Allow this call?",
            "enum": ["once", "tool", "session", "no"],
            "enumNames": ["This call", "All calls of this tool", "All calls of this conversation", "No"],
        }
    },
    "required": ["allow"],
}
_GO_ON: Final = {
    "type": "object",
    "properties": {"go_on": {"type": "boolean", "title": "Go on?"}},
    "required": ["go_on"],
}


def _approval(event: events.ToolCallConfirmation) -> str:
    arguments = _json.write(dict(event.arguments))
    if len(arguments) > SHOWN:
        arguments = f"{arguments[:SHOWN]} [... {len(arguments) - SHOWN} characters more]"
    of = f" of {event.server}" if event.server else ""
    may = " It says that it may destroy something." if event.destructive else ""
    return f"{event.agent_name} wants to call {event.tool_call.name}{of} with {arguments}.{may}"


def _answer(stream: EventStream, question: Question, action: str, content: dict[str, Any]) -> None:
    event = question.event
    if isinstance(event, events.ElicitationRequest):
        if action not in ("accept", "decline", "cancel"):
            raise InvalidAnswer(f"an answer is accept, decline or cancel, not {action!r:.50}")
        stream.respond(event, action, content if action == "accept" else None)  # type: ignore[arg-type]
    elif isinstance(event, events.ToolCallConfirmation):
        allow = content.get("allow", "once") if action == "accept" else "no"
        if allow not in ("once", "tool", "session", "no"):
            raise InvalidAnswer(f"allow is once, tool, session or no, not {allow!r:.50}")
        if allow == "no":
            stream.reject(event, "the user has refused it")
        else:
            stream.approve(event, allow)  # type: ignore[arg-type]
    else:
        goes_on = action == "accept" and content.get("go_on", True) is True
        stream.extend(event, MORE if goes_on else 0)
