"""Questions and confirmations: asked on the terminal, or answered with what the command line says."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from .._errors import InvalidAnswer, NotParkable, NotPending
from ..agent._tool import Action, Answer
from ..events import ElicitationRequest, Event, MaxIterationsReached, StopReason, ToolCallConfirmation
from ..foreign._printable import escaped, printable
from ..loop._limits import MORE
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
_MOMENT: Final = 0.3  # seconds
_NOTHING: Final = object()  # an optional field that was left empty


class Asking(Protocol):
    """Who asks, and takes the answers: an `EventStream`, or a store that keeps the question."""

    @property
    def reason(self) -> StopReason | None: ...
    @property
    def pending(self) -> Sequence[Event]: ...
    def approve(self, call: ToolCallConfirmation | str, scope: Scope = "once") -> None: ...
    def reject(self, call: ToolCallConfirmation | str, reason: str = "") -> None: ...
    def respond(
        self, request: ElicitationRequest | str, action: Action, content: Mapping[str, Any] | None = None
    ) -> None: ...


def question_of(event: Event) -> ElicitationRequest | None:
    """The question that ``event`` asks, if it asks one."""
    if isinstance(event, MaxIterationsReached) and event.request_id:
        text = f"It has reached its turn limit of {event.max_iterations}. How many more may it take?"
        return ElicitationRequest(event.request_id, text, schema=MORE)
    return event if isinstance(event, ElicitationRequest) else None


def id_of(event: Event) -> str:
    """The id of the request that ``event`` tells of."""
    match event:
        case ToolCallConfirmation():
            return event.confirmation_id
        case ElicitationRequest():
            return event.elicitation_id
        case MaxIterationsReached():
            return event.request_id
    return ""


def _waits(stream: Asking, id: str) -> bool:
    """Whether the answer to a request is still waited for: another process may have given one."""
    return stream.reason is None and any(id_of(event) == id for event in stream.pending)


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
    are named when they ask. With ``park`` nobody is asked: what ``given`` does not answer is left to wait.
    """

    def __init__(
        self, terminal: Terminal, given: Mapping[str, str], read: Read, agent: str = "", *, park: bool = False
    ) -> None:
        self._agent = agent
        self._park = park
        self._terminal = terminal
        self._given = given
        self._read = read
        self._over: Callable[[], bool] = lambda: False
        self._left: list[tuple[Event, float]] = []  # to wait, and since when
        # The tools of which the user wants to hear no more: of which session, agent and server they are; () for all.
        self._approved: set[tuple[str, ...]] = set()

    def confirm(self, stream: Asking, request: ToolCallConfirmation) -> None:
        """Have a tool call approved or rejected."""
        terminal, call = self._terminal, request.tool_call
        self._over = lambda: not _waits(stream, request.confirmation_id)
        try:
            if self._approved & {(), _tool(request)}:  # it was waiting already when the user said so
                return stream.approve(request)
            terminal.part(f"confirmation {request.confirmation_id}")
            what = f"{self._who(request)}{named(call)}({said(request.arguments, _SHOWN)}){_whose(request)}"
            undone = " What it does cannot be undone." if request.destructive else ""
            terminal.forget_typed()
            terminal.ask(f"? Run {what}?{undone}", "cyan", whole=True)
            if self._park:
                terminal.ask("  it waits to be approved", "yellow")
                self._leave(request)
            elif terminal.asks:
                self._decide(stream, request)
            else:
                stream.reject(request, "nobody is there to approve it")
                terminal.ask("  rejected: there is no terminal to ask on; --yes approves every call", "yellow")
        except (NotPending, Over):
            terminal.ask("  Nobody waits for this answer any more.", "yellow")

    def _decide(self, stream: Asking, request: ToolCallConfirmation) -> None:
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

    def answer(self, stream: Asking, request: ElicitationRequest) -> None:
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
        self._over = lambda: not _waits(stream, request.elicitation_id)
        try:
            self._settle(stream, request)
        except (NotPending, Over):
            terminal.ask("  Nobody waits for this answer any more.", "yellow")

    def park(self, stream: EventStream) -> bool:
        """Let the run end, to wait, where only what was left to wait is missing; whether anything was left.

        The question of a tool that cannot be called again would wait for ever, and is declined.
        """
        self._left = [(event, since) for event, since in self._left if _waits(stream, id_of(event))]
        parking = stream._core.parking
        if not self._left or parking is None:
            return False
        with contextlib.suppress(NotParkable):
            stream.park()
            return True
        for event, since in self._left:
            # A tool is known to ask a moment after its question is.
            if not isinstance(event, ElicitationRequest) or time.monotonic() - since < _MOMENT:
                continue
            if f"{event.agent_name}'s tool {event.tool_name}" in parking.under_way:
                name = escaped(event.tool_name)
                self._terminal.ask(f"  declined: {name} cannot wait, as it is not @tool(resumable=True)", "yellow")
                with contextlib.suppress(NotPending):
                    stream.respond(event, "decline")
        return True

    def _leave(self, event: Event) -> None:
        self._left.append((event, time.monotonic()))

    def _settle(self, stream: Asking, request: ElicitationRequest) -> None:
        fields = fields_of(request.schema)
        before: Mapping[str, Any] = {}
        while True:
            asks = self._terminal.asks and not self._park
            answer = self._ask(request, fields, before) if asks else self._look_up(request, fields)
            if answer is None:
                return self._leave(request)
            try:
                return stream.respond(request, answer.action, answer.content)
            except InvalidAnswer as error:
                self._terminal.ask(f"  {error}", "red")
                before = answer.content
            if self._park:
                return self._leave(request)
            if not asks:
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

    def _look_up(self, request: ElicitationRequest, fields: list[Field]) -> Answer | None:
        """Answer with what the command line says; None where the question is left to wait."""
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
                verdict = "it waits for an answer" if self._park else "declined"
                terminal.ask(f"  {verdict}: --answer does not fit: {error}", "yellow")
                return None if self._park else Answer("decline")
            if field.name in content:
                terminal.ask(f"  {escaped(field.label)} - {escaped(field.note)}")
                terminal.ask(f"  > {field.show(content[field.name])} ({source})")
            elif field.required:
                missing.append(field)
        if content and not missing and not (self._park and self._given.keys().isdisjoint(content)):
            return Answer("accept", content)
        for field in missing:
            terminal.ask(f"  {escaped(field.label)} - {escaped(field.note)}")
        if self._park:
            terminal.ask("  it waits for an answer", "yellow")
            return None
        options = " ".join(f"--answer {field.name}=..." for field in missing)
        need = f"; {options} would answer it" if options else ""
        terminal.ask(f"  declined: there is no terminal to ask on{need}", "yellow")
        return Answer("decline")


def _whose(request: ToolCallConfirmation | ElicitationRequest) -> str:
    return f" (of server {escaped(request.server)})" if request.server else ""
