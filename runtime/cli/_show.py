"""Events, as the terminal shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import singledispatchmethod
from typing import Any, Final

from .. import events
from ..foreign._printable import escaped
from ..session._message import ToolCall
from ._terminal import Terminal

_ARGUMENT: Final = 200  # characters of one argument
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/-]+")
_RESULT_LINES: Final = 20
_RESULT: Final = 2000  # characters of one result


class Screen:
    """Shows the events of a stream, and keeps the status line in step with them. ``agent`` is who is spoken to."""

    def __init__(self, terminal: Terminal, agent: str) -> None:
        self._terminal = terminal
        self._agent = agent
        self._calls: dict[str, str] = {}  # under way: the names, by their ids
        self._twins: set[str] = set()  # the names of which there are several

    def show(self, event: events.Event) -> None:
        """Show ``event``, where there is something to see."""
        self._show(event)
        self.wait()

    def wait(self) -> None:
        """Say, when it takes long, what is being waited for."""
        running = ", ".join(dict.fromkeys(self._calls.values()))
        self._terminal.waiting(f"waiting for {running or 'the model'}")

    @singledispatchmethod
    def _show(self, event: events.Event) -> None:
        pass

    @_show.register
    def _(self, event: events.AgentInfo) -> None:
        self._terminal.part("head")
        self._terminal.line(f"{event.agent_name} ({event.model})", "dim")

    @_show.register
    def _(self, event: events.UserMessage) -> None:
        self._terminal.part("head")
        self._terminal.line(f"> {event.message}", "bold")

    @_show.register
    def _(self, event: events.AgentChoice) -> None:
        self._terminal.part(f"text {event.agent_name}")
        self._terminal.text(event.content)

    @_show.register
    def _(self, event: events.AgentChoiceReasoning) -> None:
        self._terminal.part(f"thought {event.agent_name}")
        self._terminal.text(event.content, "dim")

    @_show.register
    def _(self, event: events.ToolCallStarted) -> None:
        call = event.tool_call
        if call.name in self._calls.values():
            self._twins.add(call.name)
        self._calls[call.id] = call.name
        self._terminal.part("calls")
        self._terminal.line(f"-> {self._who(event)}{named(call)}({arguments(call)})", "bold")

    @_show.register
    def _(self, event: events.ToolCallOutput) -> None:
        of = "" if event.total is None else f"/{event.total:g}"
        progress = "" if event.progress is None else f" {event.progress:g}{of}"
        self._terminal.part("calls")
        self._terminal.line(f"   {self._who(event)}{named(event.tool_call)}{progress}: {event.output}", "dim")

    @_show.register
    def _(self, event: events.ToolCallResponse) -> None:
        call = event.tool_call
        self._terminal.part("calls")
        which = f"{named(call)}({arguments(call)})" if call.name in self._twins else named(call)
        verdict = f"{which} failed" if event.is_error else which
        self._terminal.line(
            f"<- {self._who(event)}{verdict}: {result(event.response)}", "red" if event.is_error else ""
        )
        self._calls.pop(call.id, None)
        if not self._calls:
            self._twins.clear()

    @_show.register
    def _(self, event: events.Warning) -> None:
        self._terminal.note(f"warning: {event.message}", "yellow")

    @_show.register
    def _(self, event: events.ModelFallback) -> None:
        self._terminal.note(f"{event.from_model} failed, {event.to_model} takes over: {event.reason}", "yellow")

    @_show.register
    def _(self, event: events.AgentSwitching) -> None:
        self._terminal.note(f"{event.from_agent} hands over to {event.to_agent}", "dim")

    @_show.register
    def _(self, event: events.AuthorizationEvent) -> None:
        self._terminal.note(f"{event.server}: {event.status} {event.url}".rstrip(), "yellow")

    @_show.register
    def _(self, event: events.McpInitStarted) -> None:
        self._calls[f"toolset {event.toolset}"] = f"the tools of {event.toolset}"

    @_show.register
    def _(self, event: events.McpInitFinished) -> None:
        self._calls.pop(f"toolset {event.toolset}", None)

    def _who(self, event: events.Event) -> str:
        return "" if event.agent_name in ("", self._agent) else f"[{event.agent_name}] "


def arguments(call: ToolCall) -> str:
    """The arguments of a call, in one line."""
    parsed = call.parsed
    if parsed is None:
        return _short(escaped(call.arguments), _ARGUMENT)
    return said(parsed, _ARGUMENT)


def said(arguments: Mapping[str, Any], most: int) -> str:
    """Arguments by name, in one line, at most ``most`` characters of each. None can pass for something else."""
    return ", ".join(
        f"{_name(name)}={_short(escaped(json.dumps(value, ensure_ascii=False)), most)}"
        for name, value in arguments.items()
    )


def named(call: ToolCall) -> str:
    """The name of the called tool, as `_name` writes it."""
    return _name(call.name)


def _name(name: str) -> str:
    """A name as it is where it cannot pass for something else, otherwise quoted."""
    return name if _PLAIN.fullmatch(name) else escaped(json.dumps(name, ensure_ascii=False))


def _short(text: str, most: int) -> str:
    """The beginning of a text, and its end where something is decided on it: what matters may stand there."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text)} characters) ... {text[-half:]}"


def result(text: str) -> str:
    """The beginning of a result, its lines set off."""
    text = text.strip()
    lines = text.splitlines()
    shown = "\n".join(lines[:_RESULT_LINES])[:_RESULT]
    rest = len(text) - len(shown)
    more = f"\n... {rest} more characters" if rest > 0 and shown != text else ""
    return (shown + more).replace("\n", "\n   ")
