"""Questions and confirmations: asked on the terminal, or answered with what the command line says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from .._errors import InvalidAnswer, NotPending
from ..agent._tool import Action, Answer
from ..events import ElicitationRequest, Event, ToolCallConfirmation
from ..foreign._printable import escaped, printable
from ..permissions import Scope
from ..stream._event_stream import EventStream
from ._fields import Field, NotUnderstood, fields_of
from ._show import named, said
from ._terminal import Over, Terminal

Read: TypeAlias = Callable[[str, Callable[[], bool]], str]

_ACTIONS: Final[dict[str, Action]] = {"/decline": "decline", "/cancel": "cancel"}
_SCOPES: Final[dict[str, Scope]] = {
    "y": "once", "yes": "once", "t": "tool", "tool": "tool", "s": "session", "session": "session"
}  # fmt: skip
_KEYS: Final = "y: yes, n: no (n REASON tells the model why), t: always this tool, s: always"
_SHOWN: Final = 4_000  # characters of an argument that is decided on; v shows all of it
_NOTHING: Final = object()  # an optional field that was left empty


def _tool(request: ToolCallConfirmation) -> tuple[str, ...]:
    """The key of the tool that a confirmation is about, which no namesake shares."""
    return request.session_id, request.agent_name, request.server, request.tool_call.name


class _Left(Exception):
    """The user leaves the question without an answer."""

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        self.action = action


class Questions:
    """Gets answers to the questions of a stream: from the terminal, or from the command line.

    ``given`` are the answers of the command line, by field: proposals where there is a terminal, otherwise all there
    is, and a question that they leave open is declined. ``read`` is `Terminal.read`, ``agent`` who is spoken to: others
    are named when they ask.
    """

    def __init__(self, terminal: Terminal, given: Mapping[str, str], read: Read, agent: str = "") -> None:
        self._agent = agent
        self._terminal = terminal
        self._given = given
        self._read = read
        self._over: Callable[[], bool] = lambda: False
        # The tools of which the user wants to hear no more: of which session, agent and server they are; () for all.
        self._approved: set[tuple[str, ...]] = set()

    def confirm(self, stream: EventStream, request: ToolCallConfirmation) -> None:
        """Have a tool call approved or rejected."""
        terminal, call = self._terminal, request.tool_call
        self._over = lambda: stream.reason is not None
        try:
            if self._approved & {(), _tool(request)}:  # it was waiting already when the user said so
                return stream.approve(request)
            terminal.part(f"confirmation {request.confirmation_id}")
            what = f"{self._who(request)}{named(call)}({said(request.arguments, _SHOWN)}){_whose(request)}"
            undone = " What it does cannot be undone." if request.destructive else ""
            terminal.forget_typed()
            terminal.ask(f"? Run {what}?{undone}", "cyan", whole=True)
            if terminal.asks:
                self._decide(stream, request)
            else:
                stream.reject(request, "nobody is there to approve it")
                terminal.ask("  rejected: there is no terminal to ask on; --yes approves every call", "yellow")
        except (NotPending, Over):
            terminal.ask("  Nobody waits for this answer any more.", "yellow")

    def _decide(self, stream: EventStream, request: ToolCallConfirmation) -> None:
        whole = said(request.arguments, _SHOWN) == said(request.arguments, sys.maxsize)
        keys = _KEYS if whole else f"{_KEYS}, v: view all of it"
        self._terminal.ask(f"  {keys}", "dim")
        while True:
            try:
                typed, _, reason = self._read("  > ", self._over).strip().partition(" ")
            except EOFError:
                return stream.reject(request)
            key = typed.lower()
            if key in ("n", "no"):
                return stream.reject(request, reason.strip())
            if key == "v" and not reason:
                self._terminal.ask(f"  {named(request.tool_call)}({said(request.arguments, sys.maxsize)})", whole=True)
            elif (scope := _SCOPES.get(key)) and not reason:
                if scope != "once":
                    self._approved.add(() if scope == "session" else _tool(request))
                return stream.approve(request, scope)
            else:
                self._terminal.ask(f"  That is no answer. {keys}", "yellow")
            self._terminal.forget_typed()

    def _who(self, event: Event) -> str:
        return "" if event.agent_name in ("", self._agent) else f"[{escaped(event.agent_name)}] "

    def answer(self, stream: EventStream, request: ElicitationRequest) -> None:
        """Show the question, have it answered, and send the answer, until one fits."""
        terminal = self._terminal
        terminal.part(f"question {request.elicitation_id}")
        terminal.forget_typed()
        # Set off line by line, so that nothing in it passes for a question of another kind.
        message = printable(request.message).replace("\n", "\n  | ")
        asks = f"{escaped(request.tool_name)}{_whose(request)} asks: " if request.tool_name else ""
        terminal.ask(f"? {self._who(request)}{asks}{message}", "cyan")
        if request.mode == "url":
            terminal.ask(f"  {escaped(request.url)}", "bold")
        self._over = lambda: stream.reason is not None
        try:
            self._settle(stream, request)
        except (NotPending, Over):
            terminal.ask("  Nobody waits for this answer any more.", "yellow")

    def _settle(self, stream: EventStream, request: ElicitationRequest) -> None:
        fields = fields_of(request.schema)
        before: Mapping[str, Any] = {}
        while True:
            answer = self._ask(request, fields, before) if self._terminal.asks else self._look_up(request, fields)
            try:
                return stream.respond(request, answer.action, answer.content)
            except InvalidAnswer as error:
                self._terminal.ask(f"  {error}", "red")
                before = answer.content
            if not self._terminal.asks:
                return stream.respond(request, "decline")

    # -- with a terminal -----------------------------------------------------------------------------------------------

    def _ask(self, request: ElicitationRequest, fields: list[Field], before: Mapping[str, Any]) -> Answer:
        """Ask for every field. ``before`` is an answer that did not fit as a whole."""
        stars = any(field.required for field in fields)
        self._terminal.ask(f"  ({', '.join(_ACTIONS)} to say no{'; * has to be answered' if stars else ''})", "dim")
        try:
            if request.mode == "url" or not fields:
                said = self._ask_field(Field("done" if request.mode == "url" else "agreed", {"type": "boolean"}), None)
                return Answer("accept" if said else "decline")
            content = {}
            for field in fields:
                value = self._ask_field(field, self._proposal(field, before))
                if value is not _NOTHING:
                    content[field.name] = value
            return Answer("accept", content)
        except _Left as left:
            return Answer(left.action)

    def _proposal(self, field: Field, before: Mapping[str, Any]) -> str | None:
        if field.name in before:
            return field.show(before[field.name])
        try:
            return field.show(field.read(self._given[field.name]))
        except (KeyError, NotUnderstood):
            return None if field.default is None else field.show(field.default)

    def _ask_field(self, field: Field, proposal: str | None) -> Any:
        self._terminal.ask(f"  {escaped(field.label)} - {escaped(field.note)}")
        while True:
            entered = self._enter("  > " if proposal is None else f"  [{escaped(proposal)}] > ") or proposal or ""
            try:
                if entered:
                    return field.read(entered)
                if not field.required:
                    return _NOTHING
                problem = f"{field.name} has to be answered"
            except NotUnderstood as error:
                problem = str(error)
            self._terminal.ask(f"  {problem}", "red")

    def _enter(self, prompt: str) -> str:
        try:
            entered = self._read(prompt, self._over).strip()
        except EOFError:
            raise _Left("decline") from None
        if entered in _ACTIONS:
            raise _Left(_ACTIONS[entered])
        return entered

    # -- without -------------------------------------------------------------------------------------------------------

    def _look_up(self, request: ElicitationRequest, fields: list[Field]) -> Answer:
        """Answer with what the command line says."""
        terminal = self._terminal
        content: dict[str, Any] = {}
        missing = []
        for field in fields:
            source = "from --answer"
            try:
                if field.name in self._given:
                    content[field.name] = field.read(self._given[field.name])
                elif field.default is not None:
                    source, content[field.name] = "the default", field.default
            except NotUnderstood as error:
                terminal.ask(f"  declined: --answer does not fit: {error}", "yellow")
                return Answer("decline")
            if field.name in content:
                terminal.ask(f"  {escaped(field.label)} - {escaped(field.note)}")
                terminal.ask(f"  > {field.show(content[field.name])} ({source})")
            elif field.required:
                missing.append(field)
        if content and not missing:
            return Answer("accept", content)
        for field in missing:
            terminal.ask(f"  {escaped(field.label)} - {escaped(field.note)}")
        options = " ".join(f"--answer {field.name}=..." for field in missing)
        need = f"; {options} would answer it" if options else ""
        terminal.ask(f"  declined: there is no terminal to ask on{need}", "yellow")
        return Answer("decline")


def _whose(request: ToolCallConfirmation | ElicitationRequest) -> str:
    return f" (of server {escaped(request.server)})" if request.server else ""
