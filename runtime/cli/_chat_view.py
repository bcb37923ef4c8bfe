"""What a chat shows of a conversation: text as it streams, and a line for each tool call."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Final

from .. import events
from .._dataclasses import dataclass
from ..foreign._printable import escaped, printable
from ..session._message import Message, ToolCall
from ._markdown import MarkdownStream, Paint, PlainStream, Stream
from ._prompt import Prompt
from ._show import named, said

_FRAME: Final = 0.05  # seconds between two looks at a text under way
_SPIN: Final = 0.25  # seconds between two pictures of the spinner
_SPINNER: Final = "|/-\\"
_ARGUMENT: Final = 60  # characters of an argument in the line of a call
_KEPT: Final = 20  # calls that can be opened
_OPENED: Final = 500  # lines of a result that is opened
_SAID: Final = 200  # lines of what the user has said
_TAILS: Final = 3  # agents whose text is shown while it is under way
_PROGRESS: Final = 500  # characters


@dataclass(slots=True)
class _Speaker:
    """An agent whose text is under way."""

    name: str
    kind: str
    stream: Stream


@dataclass(frozen=True, slots=True)
class _Done:
    """A call that is over."""

    who: str
    call: ToolCall
    response: str
    is_error: bool


class View:
    """Shows events above a prompt. ``agent`` is who is spoken to: others are named. Used by one thread."""

    def __init__(self, prompt: Prompt, paint: Paint, agent: str) -> None:
        self._prompt = prompt
        self._paint = paint
        self._agent = agent
        self._speakers: dict[str, _Speaker] = {}  # by their sessions
        self._last = ""  # who or what was written last
        self._calls: dict[str, tuple[str, str]] = {}  # under way: the line of each, and how far it has come
        self._done: deque[_Done] = deque(maxlen=_KEPT)
        self._queue: list[str] = []  # what the user has said, and the agent has not seen yet
        self._doing = ""
        self._since = 0.0
        self._next = 0.0  # when to look at what is under way
        self._changed = False

    @property
    def agent(self) -> str:
        """Who is spoken to."""
        return self._agent

    def talk_to(self, agent: str) -> None:
        """The user talks to another agent now."""
        self._agent = agent

    # -- a turn --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A turn begins."""
        self._paint.measure()
        self._doing, self._since = "thinking", time.monotonic()
        self.tick(at_once=True)

    def end(self) -> None:
        """The turn is over: what is still under way is as it is."""
        self._doing = ""
        for session_id in list(self._speakers):
            self._finish(session_id)
        for line, _ in self._calls.values():
            self._write("calls", [self._paint.text(f"- {line}: no result", "dim")])
        self._calls.clear()
        for text in self._queue:
            self.user(text)
        self._queue.clear()
        self._prompt.show([])

    def doing(self, what: str) -> None:
        """Say what is being done, in place of what the events tell."""
        self._doing = what
        self.tick(at_once=True)

    def queue(self, text: str) -> None:
        """The user has said something that the agent has not seen yet."""
        self._queue.append(text)
        self.tick(at_once=True)

    @property
    def pause(self) -> float:
        """How many seconds to wait before the next `tick`."""
        return max(self._next - time.monotonic(), 0.001)

    def tick(self, *, at_once: bool = False) -> None:
        """Write what is finished, and draw what is not, if it is time for that."""
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._changed |= self._paint.measure()
        for speaker in self._speakers.values():
            self._write_text(speaker, speaker.stream.take())
        self._changed = False
        self._next = now + _SPIN
        self._prompt.show(self._under_way(now))

    def _under_way(self, now: float) -> list[str]:
        paint = self._paint
        lines: list[str] = []
        for speaker in list(self._speakers.values())[-_TAILS:]:
            if tail := speaker.stream.tail():
                lines += [*self._label(speaker), *tail]
        shown = [f"{line}{f'  {progress}' if progress else ''}" for line, progress in self._calls.values()]
        below = [paint.text(paint.cut(f"- {line} ...", paint.width - 1)) for line in shown[-5:]]
        queue = [f"> {text}  (not seen yet)" for text in self._queue[-3:]]
        if self._doing:
            waited = now - self._since
            mark = _SPINNER[int(waited / _SPIN) % 4]
            ending = self._doing in ("stopping", "ending")
            keys = "Ctrl-C again ends the program" if ending else "Ctrl-C stops, Enter steers"
            queue.append(f"{mark} {self._doing} ... {waited:.0f} s  ({keys})")
        below += [paint.text(paint.cut(line, paint.width - 1), "dim") for line in queue]
        room = max(self._prompt.rows - len(below), 0)
        return [*lines[max(len(lines) - room, 0) :], *below]

    # -- writing -------------------------------------------------------------------------------------------------------

    def note(self, text: str, style: str = "") -> None:
        """Write a line about the conversation."""
        self._write("notes", self._paint.wrapped(text, style)[:_OPENED])

    def lines(self, lines: Sequence[str], style: str = "") -> None:
        """Write lines that belong together, each cut where the terminal ends."""
        self._write("notes", [self._paint.text(self._paint.cut(line, self._paint.width - 1), style) for line in lines])

    def user(self, text: str) -> None:
        """Write what the user has said."""
        paint = self._paint
        parts = text.splitlines() or [""]
        first, *rest = [line for part in parts[:_SAID] for line in paint.wrapped(part) or [""]]
        lines = [f"> {first}", *(f"  {line}" for line in rest)]
        if len(parts) > _SAID:
            lines.append(f"  ... {len(parts) - _SAID} more lines")
        self._write("user", ["", *(paint.text(line, "bold") for line in lines), ""])

    def command(self, text: str) -> None:
        """Write a command that the user has typed."""
        line = self._paint.cut(f"> {text}", self._paint.width - 1)
        self._write("user", ["", self._paint.text(line, "dim")])

    def reply(self, message: Message) -> None:
        """Write a message of an earlier turn."""
        if message.role == "user":
            self.user(message.content)
        elif message.role == "assistant":
            if message.content:
                stream = MarkdownStream(self._paint)
                stream.feed(message.content)
                self._write("text", stream.finish())
            for call in message.tool_calls:
                self._write("calls", [self._paint.text(self._paint.cut(f"- {_line(call)}", self._paint.width - 1))])

    def _write(self, kind: str, lines: list[str]) -> None:
        """Write lines, set off from those of another kind by a blank one."""
        if not lines:
            return
        while kind != self._last and self._last == "user" and lines and not lines[0]:
            lines = lines[1:]
        if self._last not in ("", kind, "user") and kind != "user":
            lines = ["", *lines]
        self._last = kind
        self._prompt.print(*lines)

    def _write_text(self, speaker: _Speaker, lines: list[str]) -> None:
        if lines:
            label = self._label(speaker)
            self._write(f"{speaker.kind} {speaker.name}", [*label, *lines])

    def _label(self, speaker: _Speaker) -> list[str]:
        """The name of an agent that is not the one spoken to, where its text begins."""
        if speaker.name in ("", self._agent) or self._last == f"{speaker.kind} {speaker.name}":
            return []
        return [self._paint.text(f"[{escaped(speaker.name)}]", "dim")]

    def _finish(self, session_id: str) -> None:
        speaker = self._speakers.pop(session_id, None)
        if speaker is not None:
            self._write_text(speaker, speaker.stream.finish())

    # -- events --------------------------------------------------------------------------------------------------------

    def show(self, event: events.Event) -> None:
        """Show ``event``, where there is something to see."""
        self._show(event)
        self._next = min(self._next, time.monotonic() + _FRAME)

    @singledispatchmethod
    def _show(self, event: events.Event) -> None:
        pass

    @_show.register
    def _(self, event: events.AgentChoice) -> None:
        self._text(event, "text", event.content)

    @_show.register
    def _(self, event: events.AgentChoiceReasoning) -> None:
        self._text(event, "thought", event.content)

    def _text(self, event: events.Event, kind: str, text: str) -> None:
        speaker = self._speakers.get(event.session_id)
        if speaker is None or (speaker.kind, speaker.name) != (kind, event.agent_name):
            self._finish(event.session_id)
            stream = MarkdownStream(self._paint) if kind == "text" else PlainStream(self._paint)
            speaker = self._speakers[event.session_id] = _Speaker(event.agent_name, kind, stream)
            self._progress("writing" if kind == "text" else "thinking")
        if len(self._speakers) > 1:  # who speaks is the last of them
            self._speakers[event.session_id] = self._speakers.pop(event.session_id)
        speaker.stream.feed(text)

    @_show.register
    def _(self, event: events.UserMessage) -> None:
        self._finish(event.session_id)
        if event.agent_name not in ("", self._agent):
            return  # what an agent has told another: it is in the call
        if self._queue:
            self._queue.pop(0)
        self.user(event.message)

    @_show.register
    def _(self, event: events.SubSessionCompleted) -> None:
        self._finish(event.sub_session_id)  # before the result of the call that has run it

    @_show.register
    def _(self, event: events.PartialToolCall) -> None:
        if event.tool_call.name:
            self._progress(f"calling {named(event.tool_call)}")

    @_show.register
    def _(self, event: events.ToolCallStarted) -> None:
        self._finish(event.session_id)
        self._calls[event.tool_call.id] = f"{self._who(event)}{_line(event.tool_call)}", ""
        self._progress("waiting for the tools")

    @_show.register
    def _(self, event: events.ToolCallOutput) -> None:
        if event.tool_call.id in self._calls:
            of = "" if event.total is None else f"/{event.total:g}"
            progress = "" if event.progress is None else f"{event.progress:g}{of} "
            line, _ = self._calls[event.tool_call.id]
            self._calls[event.tool_call.id] = line, f"{progress}{event.output[:_PROGRESS]}"

    @_show.register
    def _(self, event: events.ToolCallResponse) -> None:
        self._finish(event.session_id)
        who = self._who(event)
        line, _ = self._calls.pop(event.tool_call.id, (f"{who}{_line(event.tool_call)}", ""))
        self._done.append(_Done(who, event.tool_call, event.response, event.is_error))
        self._write("calls", [self._summary(line, event)])
        if not self._calls:
            self._progress("thinking")

    def _summary(self, line: str, event: events.ToolCallResponse) -> str:
        paint = self._paint
        lines = event.response.strip().splitlines()
        first = next((each.strip() for each in lines if each.strip()), "")
        more = f" (+{len(lines) - 1} line{'s' if len(lines) > 2 else ''}, Ctrl-O)" if len(lines) > 1 else ""
        images = f" [{len(event.images)} image{'s' if len(event.images) != 1 else ''}]" if event.images else ""
        verdict = "failed: " if event.is_error else ""
        call = paint.cut(f"- {line}", max((paint.width - 1) * 6 // 10, 20))
        room = paint.width - 5 - len(call) - len(more) - len(images)
        result = f"{paint.cut(verdict + first, max(room, 8))}{more}{images}"
        return paint.text(call) + paint.text(" -> ", "dim") + paint.text(result, "red" if event.is_error else "dim")

    @_show.register
    def _(self, event: events.Warning) -> None:
        self.note(f"warning: {event.message}", "yellow")

    @_show.register
    def _(self, event: events.ModelFallback) -> None:
        self.note(f"{event.from_model} failed, {event.to_model} takes over: {event.reason}", "yellow")

    @_show.register
    def _(self, event: events.AgentSwitching) -> None:
        self._agent = event.to_agent
        self.note(f"{event.from_agent} hands over to {event.to_agent}", "dim")

    @_show.register
    def _(self, event: events.AuthorizationEvent) -> None:
        self.note(f"{event.server}: {event.status} {event.url}".rstrip(), "yellow")

    @_show.register
    def _(self, event: events.SessionCompaction) -> None:
        if event.status == "started":
            self._progress("shortening the conversation")
        elif event.status == "completed":
            self.note("the older part of the conversation was summarised for the model", "dim")

    @_show.register
    def _(self, event: events.McpInitStarted) -> None:
        self._progress(f"starting {event.toolset}")

    @_show.register
    def _(self, event: events.McpInitFinished) -> None:
        self._progress("thinking")

    def _progress(self, what: str) -> None:
        if self._doing != "stopping":
            self._doing = what

    def _who(self, event: events.Event) -> str:
        return "" if event.agent_name in ("", self._agent) else f"[{escaped(event.agent_name)}] "

    # -- calls that are over -------------------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """How many calls can be opened."""
        return len(self._done)

    def open(self, number: int = 1) -> bool:
        """Write the call that was over last, or the ``number``th before the end, in full; whether there is one."""
        if not 0 < number <= len(self._done):
            return False
        done = self._done[-number]
        parsed = done.call.parsed
        given = done.call.arguments if parsed is None else json.dumps(parsed, indent=2, ensure_ascii=False)
        title = self._paint.text(f"- {done.who}{named(done.call)}{' failed' if done.is_error else ''}", "bold")
        lines = [title, *self._whole(given), self._paint.text("->", "dim"), *self._whole(done.response)]
        self._write(f"open {id(done)}", lines)
        return True

    def _whole(self, text: str) -> list[str]:
        lines = printable(text).strip("\n").splitlines()
        rest = len(lines) - _OPENED
        shown = [line for part in lines[:_OPENED] for line in self._paint.wrapped(part) or [""]]
        return [f"  {line}" for line in shown] + ([f"  ... {rest} more lines; /save writes them"] if rest > 0 else [])


def _line(call: ToolCall) -> str:
    """A call in one line."""
    parsed = call.parsed
    given = said(parsed, _ARGUMENT) if parsed is not None else escaped(call.arguments)[:_ARGUMENT]
    return f"{named(call)}({given})"
